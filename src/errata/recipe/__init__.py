"""Recipes: their settings, how they are read, and the models, rows, verifiers and experts that they name."""
