"""Latent-space data augmentation for segmentation models."""
