"""FIND the latent code of a model never seen."""
