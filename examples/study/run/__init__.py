"""A run: its settings, its trainings and their tests, and the files that it leaves."""
