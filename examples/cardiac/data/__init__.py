"""From files on disk to batches: readers, the phantom, corruptions, the cache, augmentation."""

from cardiac.data.readers import Frame, halve, read_acdc, read_mnms, read_preprocessed
from study.data.frame import DataError

__all__ = ["DataError", "Frame", "halve", "read_acdc", "read_mnms", "read_preprocessed"]
