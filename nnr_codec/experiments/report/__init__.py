"""The report of an experiment: tables, plots, and the page."""
