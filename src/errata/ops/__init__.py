"""Pure tensor functions on (B, T): scores, divergences, credit, weights. Nothing here knows a trainer, a method or a
text."""
