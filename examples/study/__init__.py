"""What the studies on cardiac MR and on nuclei have in common: methods, trainings, their tests, and reports."""
