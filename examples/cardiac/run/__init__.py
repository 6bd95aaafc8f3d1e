"""The run of the cardiac study: its data, its settings, and what is kept to look at."""
