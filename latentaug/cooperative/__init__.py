"""The METHOD of Chen et al., MICCAI 2021."""
