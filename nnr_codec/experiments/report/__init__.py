"""What is made of measured cells: rates, intervals, tables, plots, and the page."""
