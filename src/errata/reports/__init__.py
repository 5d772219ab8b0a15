"""The run directory, and everything made from it: tables, plots, the HTML report."""
