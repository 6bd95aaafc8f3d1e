"""SEE a forward pass of any model, and leave no trace."""
