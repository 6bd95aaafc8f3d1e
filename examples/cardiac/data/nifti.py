"""One volume of a NIfTI file. Its header is read as it is, and checked, before any voxel is.

nibabel mends headers in silence (a voxel size of 0 becomes 1 mm) and believes what they say about the file's size. Here
a header that makes no sense is refused, and never more is unpacked than what it may say.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import data_type_codes
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from study.data.plain_files import open_file

MAX_VOXELS = 2**28
"""Of a file: as float64, the numbers that preprocessing needs, they take 2 GB."""
MAX_FRAME_VOXELS = 2**25
"""Of one moment in it: preprocessing needs them several times over."""
MAX_FILE_BYTES = 2**31
SPACING_RANGE = (0.05, 30.0)
"""Voxel sizes in mm that an image of a heart may have."""
INTENSITY_LIMIT = 1e30
"""Preprocessing computes in float32, which holds no numbers that are much larger, or smaller than its reciprocal."""

_UNITS = {"metres": 1e3, "micrometres": 1e-3, "millimetres": 1.0}
_UNIT_CODES = {1: "metres", 2: "millimetres", 3: "micrometres"}  # others say nothing: millimetres
_FORMATS = (  # header, its size, its magic string and where that is, and where voxels begin at the earliest
    (nib.Nifti1Header, 348, b"n+1\0", slice(344, 348), 352),
    (nib.Nifti2Header, 540, b"n+2\0", slice(4, 8), 544),
)
_LEAST_SPREAD = 1e-5  # of voxels, relative to what is added to them: float32 tells 1e-7 apart
_MAX_OFFSET = 2**26
_PADDING = 16  # bytes after the last voxel that some programs write; a row of voxels has more
_PACKED, _UNPACKED = 1 << 16, 1 << 20  # bytes that go into and come out of the unpacker at once


class Unfit(Exception):
    """A file that cannot be used; the message says why, and what would do."""


@dataclass(frozen=True)
class Nifti:
    """What the header of a file says.

    Attributes:
        path: The file.
        shape: Voxels along each axis, in the file's order (x, y, z and perhaps time).
        spacing: Voxel size in mm (x, y, z).
        placements: Where the volume lies in space, in mm, by the header's fields ("sform", "qform"). Left out are those
            that are not set, and those of another voxel size than the header's own: ACDC's sforms have 1 mm.
        dtype: Of the voxels in the file.
        offset: Where they begin.
        slope: What they are multiplied by; None for nothing.
        intercept: What is added then.
    """

    path: Path
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    placements: Mapping[str, npt.NDArray[np.float64]]
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    intercept: float | None

    @property
    def step(self) -> float:
        """The difference of two voxels that the file can tell apart, where it stores scaled integers; else 0."""
        return abs(self.slope) if self.slope is not None and self.dtype.kind in "iu" else 0.0

    def voxels(self) -> npt.NDArray[np.generic]:
        """Read the voxels, scaled as the header says, their axes in the file's order.

        Raises:
            Unfit: there are fewer or more than the header says, they are damaged, or not finite.
            OSError, EOFError, zlib.error: the file cannot be read.
        """
        count = math.prod(self.shape)
        end = self.offset + count * self.dtype.itemsize
        content = bytearray()
        with open_file(self.path) as file:
            for piece in _unpacked(file):
                content += piece
                if len(content) >= end + _PADDING:
                    raise Unfit(f"holds more than the {_times(self.shape)} voxels of its header; copy it again.")
        if len(content) < end:
            raise EOFError(f"{end - len(content)} bytes are missing")
        stored = np.frombuffer(content, self.dtype, count, self.offset).reshape(self.shape, order="F")
        with np.errstate(all="ignore"):
            voxels = apply_read_scaling(stored, _float64(self.slope), _float64(self.intercept))
            low, high = float(voxels.min()), float(voxels.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise Unfit("has voxels that are not finite; export it again without NaN or infinity.")
        largest = max(-low, high)
        if largest > INTENSITY_LIMIT or 0 < largest < 1 / INTENSITY_LIMIT or self._is_drowned(stored):
            raise Unfit(f"has voxels of {low:g} to {high:g}; correct its scl_slope and scl_inter, or export it again.")
        return voxels

    def _is_drowned(self, stored: npt.NDArray[np.generic]) -> bool:
        """Whether what is added is so large that float32 would hold little or nothing of the voxels' differences."""
        if self.slope is None or self.intercept is None:
            return False
        spread = (float(stored.max()) - float(stored.min())) * abs(self.slope)
        return 0 < spread < abs(self.intercept) * _LEAST_SPREAD


def read_header(path: Path) -> Nifti:
    """Read and check what a file says about its volume, packed or not, whatever its name.

    Raises:
        Unfit: the volume is none of numbers, too large, or of no voxel size that a heart's may be.
        OSError, EOFError, ValueError, zlib.error: the file cannot be read, or is no NIfTI file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise Unfit(f"has {size} bytes; files of more than {MAX_FILE_BYTES} are not read. Crop it, or cut it up.")
        start = b""
        for piece in _unpacked(file):
            start += piece
            if len(start) >= 540:
                break
    header, earliest = _parse(start)
    shape = _shape(header)
    dtype = _dtype(header)
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ValueError(str(error)) from None
    frame = math.prod(shape[:3])
    if frame > MAX_FRAME_VOXELS or math.prod(shape) > MAX_VOXELS:
        raise Unfit(
            f"has {_times(shape)} voxels; more than {MAX_FRAME_VOXELS} a frame or {MAX_VOXELS} a file are not read. "
            "Crop it, or copy it again if it has not so many."
        )
    start_of_voxels = float(header["vox_offset"])
    if not (earliest <= start_of_voxels <= _MAX_OFFSET and start_of_voxels.is_integer()):
        raise ValueError(f"vox_offset is {start_of_voxels:g}")
    unit = _UNIT_CODES.get(int(header["xyzt_units"]) & 7, "millimetres")
    spacing = _spacing(header, unit)
    placements = _placements(header, _UNITS[unit])
    return Nifti(path, shape, spacing, placements, dtype, int(start_of_voxels), slope, intercept)


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield what is in a file, packed or not, in blocks of one size.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    content = bytearray()
    with open_file(path) as file:
        for piece in _unpacked(file):
            content += piece
            while len(content) >= _UNPACKED:
                yield bytes(content[:_UNPACKED])
                del content[:_UNPACKED]
    yield bytes(content)


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes in pieces; gzip, known by its first bytes, is unpacked, and its checksums are checked."""
    packed = file.read(_PACKED)
    if not packed:
        raise EOFError("it is empty")
    if not packed.startswith(b"\x1f\x8b"):
        while packed:
            yield packed
            packed = file.read(_PACKED)
        return
    unpacker = zlib.decompressobj(wbits=31)
    while packed:
        yield unpacker.decompress(packed, _UNPACKED)
        while unpacker.unconsumed_tail:
            yield unpacker.decompress(unpacker.unconsumed_tail, _UNPACKED)
        packed = unpacker.unused_data if unpacker.eof else file.read(_PACKED)
        if unpacker.eof:  # other members may follow, and zeros that fill a block
            while not (packed := packed.lstrip(b"\0")) and (block := file.read(_PACKED)):
                packed = block
            if packed:
                unpacker = zlib.decompressobj(wbits=31)
    if not unpacker.eof:
        raise EOFError("it ends too early")


def _parse(start: bytes) -> tuple[nib.Nifti1Header, int]:
    for header, size, magic, place, earliest in _FORMATS:
        for order in "<>":
            if start[:4] == struct.pack(f"{order}i", size) and start[place] == magic and len(start) >= size:
                return header(start[:size], endianness=order, check=False), earliest
    raise ValueError("it does not begin like one")


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    count, *sizes = (int(n) for n in header["dim"])
    if not (1 <= count <= 7 and all(n >= 1 for n in sizes[:count])):
        raise ValueError(f"dim is {count}, {', '.join(map(str, sizes))}")
    return tuple(sizes[:count])


def _dtype(header: nib.Nifti1Header) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in data_type_codes.code:
        raise ValueError(f"datatype is {code}")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise Unfit(f"its voxels are {data_type_codes.label[code]}, not plain numbers; export grey values or labels.")
    return dtype


def _spacing(header: nib.Nifti1Header, unit: str) -> tuple[float, float, float]:
    """The voxel size in mm; refused if it is none, with the units in which it would be one."""
    said = [float(step) for step in header["pixdim"][1:4]]
    if not all(math.isfinite(step) and step > 0 for step in said):
        raise Unfit(f"voxel size {_times(said)} (pixdim in its header) is none; correct it, or copy the file again.")
    if _plausible(said, unit):
        x, y, z = said if unit == "millimetres" else (_rounded(step * _UNITS[unit]) for step in said)
        return x, y, z
    others = [other for other in _UNITS if _plausible(said, other)]
    guess = f"it may be in {' or '.join(others)}; " if others else ""
    low, high = SPACING_RANGE
    raise Unfit(
        f"voxel size {_times(said)} {unit} is not within {low:g} to {high:g} mm; {guess}"
        "correct pixdim or xyzt_units in its header."
    )


def _plausible(spacing: list[float], unit: str) -> bool:
    low, high = SPACING_RANGE
    return all(low <= _rounded(step * _UNITS[unit]) <= high for step in spacing)


def _rounded(step: float) -> float:
    """What float32, as headers have it, can hold of a number: 0.0015 m are 1.5 mm."""
    return float(np.float32(f"{step:.7g}"))


def _placements(header: nib.Nifti1Header, millimetres: float) -> dict[str, npt.NDArray[np.float64]]:
    header = header.copy()
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # what the format says of a 0
    found = {}
    for name, read in (("sform", header.get_sform), ("qform", header.get_qform)):
        if int(header[f"{name}_code"]) <= 0:
            continue
        try:
            with np.errstate(all="ignore"):
                affine = np.array(read(), np.float64)
                steps = np.sqrt((affine[:3, :3] ** 2).sum(0))
        except (ValueError, HeaderDataError):  # no rotation
            continue
        if np.isfinite(affine).all() and np.allclose(steps, header["pixdim"][1:4], rtol=1e-3, atol=1e-6):
            affine[:3] *= millimetres
            found[name] = affine
    return found


def _float64(factor: float | None) -> np.float64 | None:
    return None if factor is None else np.float64(factor)


def _times(numbers: tuple[int, ...] | list[float]) -> str:
    return " x ".join(f"{n:g}" if isinstance(n, float) else str(n) for n in numbers)
