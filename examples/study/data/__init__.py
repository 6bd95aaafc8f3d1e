"""Cases with their labels, batches of them, and the files that they come from."""
