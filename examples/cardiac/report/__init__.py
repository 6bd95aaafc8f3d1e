"""The page of a run of the cardiac study."""
