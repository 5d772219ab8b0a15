"""The engine under ``ops.scores``: preparation of a call, tiles, memory, sums and threads."""
