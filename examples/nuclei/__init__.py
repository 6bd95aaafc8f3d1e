"""What is of nuclei in the study on nuclei: the data, its settings, and what a run says in the end."""
