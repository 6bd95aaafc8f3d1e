"""What is made of the files of runs: tables, comparisons, figures, and the page."""
