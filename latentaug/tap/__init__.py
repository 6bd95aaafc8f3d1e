"""TAP a code, and REPLAY the rest of the model from another."""
