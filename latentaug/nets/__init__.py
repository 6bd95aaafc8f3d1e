"""Networks of the paper, and the heads that any model is given."""
