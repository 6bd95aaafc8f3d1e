"""From files on disk to batches: readers, the phantom, corruptions, the cache, augmentation."""

from cardiac.data.readers import DataError, Frame, halve, read_acdc, read_mnms, read_preprocessed

__all__ = ["DataError", "Frame", "halve", "read_acdc", "read_mnms", "read_preprocessed"]
