"""Helpers of the cardiac MR example: data, phantom, augmentation, corruptions, protocol, scores and report."""
