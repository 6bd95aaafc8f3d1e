"""What is trained: methods, the images that they see, and networks."""
