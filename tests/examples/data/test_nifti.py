from __future__ import annotations

import gzip
import math
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from cardiac.data.nifti import MAX_FILE_BYTES, MAX_FRAME_VOXELS, MAX_VOXELS, Nifti, Unfit, read_header

SHAPE = (5, 4, 3)
SPACING = (1.5, 1.25, 8.0)
VOXELS = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def content(voxels: npt.NDArray[Any] = VOXELS, kind: type[nib.Nifti1Image] = nib.Nifti1Image, **header: Any) -> bytes:
    """A file's bytes; fields of its header may be set as they are, sense or not."""
    image = kind(voxels, np.diag([*SPACING, 1.0]), dtype=voxels.dtype)
    start = len(image.header.binaryblock)
    whole = image.to_bytes()
    raw = type(image.header)(whole[:start], check=False)
    for name, value in header.items():
        raw[name] = value
    return bytes(raw.binaryblock) + whole[start:]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "volume.nii.gz"


def read(file: Path, data: bytes) -> tuple[Nifti, npt.NDArray[np.generic]]:
    file.write_bytes(data)
    header = read_header(file)
    return header, header.voxels()


def dims(*shape: int) -> list[int]:
    return [len(shape), *shape, *[1] * (7 - len(shape))]


# Reading


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "i4", "i8", "u2", "f4", ">f8"])
def test_voxels_are_those_that_nibabel_reads(
    tmp_path: Path, pack: Callable[[bytes], bytes], kind: type[nib.Nifti1Image], dtype: str
) -> None:
    voxels = (VOXELS % 250).astype(dtype)
    image = kind(
        voxels,
        np.diag([*SPACING, 1.0]),
        header=kind.header_class(endianness=dtype[0] if dtype[0] == ">" else "<"),
        dtype=voxels.dtype,
    )
    plain = tmp_path / "plain.nii"
    for slope, intercept in ((1, 0), (0.25, 0), (3.7, -20)):
        raw = bytearray(image.to_bytes())
        head = type(image.header)(bytes(raw[: image.header.sizeof_hdr]), check=False)
        head["scl_slope"], head["scl_inter"] = slope, intercept
        plain.write_bytes(head.binaryblock + raw[len(head.binaryblock) :])
        expected = np.asanyarray(nib.load(plain).dataobj)
        header, found = read(tmp_path / "volume.nii.gz", pack(plain.read_bytes()))
        assert (header.shape, header.spacing) == (SHAPE, SPACING)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_packing_is_known_by_the_content_whatever_the_name(tmp_path: Path) -> None:
    for name, data in (("a.nii", gzip.compress(content())), ("b.nii.gz", content())):
        np.testing.assert_array_equal(read(tmp_path / name, data)[1], VOXELS)


def test_packed_in_members_and_padded_with_zeros(file: Path) -> None:
    whole = content()
    members = [gzip.compress(part) for part in (whole[:100], b"", whole[100:400], whole[400:])]
    for data in (b"".join(members), b"".join(members) + bytes(200_000), (bytes(70_000)).join(members)):
        np.testing.assert_array_equal(read(file, data)[1], VOXELS)


@pytest.mark.parametrize("shape", [(64, 64, 257), (128, 128, 64), (256, 256, 16)])
def test_any_size_comes_out_of_the_unpacker_whole(file: Path, shape: tuple[int, ...]) -> None:
    for voxels in (np.zeros(shape, np.uint8), np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)):
        for level in (0, 1, 9):
            np.testing.assert_array_equal(read(file, gzip.compress(content(voxels), level))[1], voxels)


def test_a_few_bytes_after_the_voxels_do_no_harm(file: Path) -> None:
    np.testing.assert_array_equal(read(file, content() + b"\n")[1], VOXELS)


# Voxel size


@pytest.mark.parametrize(
    ("code", "factor"),
    [(0, 1), (2, 1), (1, 1e-3), (3, 1e3), (10, 1), (9, 1e-3), (5, 1)],
    ids=lambda value: f"{value:g}",
)
def test_a_voxel_size_is_converted_where_the_header_says_its_unit(file: Path, code: int, factor: float) -> None:
    steps = [1, *(step * factor for step in (1.36719, 1.5, 10.0)), 0, 0, 0, 0]
    millimetres, _ = read(file, content(pixdim=[1, 1.36719, 1.5, 10.0, 0, 0, 0, 0]))
    assert read(file, content(pixdim=steps, xyzt_units=code))[0].spacing == millimetres.spacing


@pytest.mark.parametrize(
    ("spacing", "code", "reason"),
    [
        ((0, 1.5, 8), 2, r"voxel size 0 x 1\.5 x 8 \(pixdim in its header\) is none; correct it"),
        ((0, 0, 0), 0, "is none"),
        ((1.5, -1.5, 8), 2, "-1.5 x 8 .* is none"),
        ((1.5, 1.5, math.inf), 2, "inf .* is none"),
        ((math.nan, 1.5, 8), 2, "nan .* is none"),
        ((math.nan, 1.5, 8), 1, "nan .* is none"),
        ((1e-30, 1e-30, 8), 2, r"1e-30 x 8 millimetres is not within 0\.05 to 30 mm; correct pixdim or xyzt_units"),
        ((1e30, 1.5, 8), 2, "1e[+]30 .* not within"),
        ((0.0015, 0.0015, 0.008), 2, "it may be in metres;"),
        ((0.0015, 0.0015, 0.008), 0, "it may be in metres;"),
        ((1500, 1500, 8000), 2, "it may be in micrometres;"),
        ((1.5, 1.5, 8), 1, r"1\.5 x 1\.5 x 8 metres is not within .* it may be in millimetres;"),
        ((1.5, 1.5, 8), 3, "micrometres is not within .* it may be in millimetres;"),
        ((0.04, 1.5, 8), 2, r"0\.04 .* not within"),
        ((1.5, 1.5, 31), 2, "31 millimetres is not within .* mm; correct"),
    ],
)
def test_what_is_no_voxel_size_is_refused_with_the_unit_that_it_may_be_in(
    file: Path, spacing: tuple[float, float, float], code: int, reason: str
) -> None:
    file.write_bytes(gzip.compress(content(pixdim=[1, *spacing, 0, 0, 0, 0], xyzt_units=code)))
    with pytest.raises(Unfit, match=reason):
        read_header(file)


@pytest.mark.parametrize("spacing", [(0.05, 0.05, 0.05), (30, 30, 30)])
def test_the_ends_of_the_range_are_within_it(file: Path, spacing: tuple[float, float, float]) -> None:
    assert read(file, content(pixdim=[1, *spacing, 0, 0, 0, 0]))[0].spacing == pytest.approx(spacing)


# Placement


def placed(sform: npt.ArrayLike | None, qform: npt.ArrayLike | None, **header: Any) -> bytes:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms(SPACING)
    image.set_qform(qform, 1 if qform is not None else 0, update_affine=False)
    image.set_sform(sform, 2 if sform is not None else 0, update_affine=False)
    raw = nib.Nifti1Header(image.to_bytes()[:348], check=False)
    raw["pixdim"][1:4] = SPACING
    for name, value in header.items():
        raw[name] = value
    return bytes(raw.binaryblock) + image.to_bytes()[348:]


ROTATED = np.array([[0, -1.25, 0, 7], [1.5, 0, 0, 8], [0, 0, 8, 9], [0, 0, 0, 1.0]])


def test_both_placements_are_found(file: Path) -> None:
    header, _ = read(file, placed(ROTATED, np.diag([-1.5, -1.25, 8, 1])))
    assert header.placements.keys() == {"sform", "qform"}
    np.testing.assert_allclose(header.placements["sform"], ROTATED)
    np.testing.assert_allclose(header.placements["qform"], np.diag([-1.5, -1.25, 8, 1]), atol=1e-6)


def test_a_placement_is_in_millimetres_whatever_the_unit(file: Path) -> None:
    metres = {"pixdim": [1, 0.0015, 0.00125, 0.008, 0, 0, 0, 0], "xyzt_units": 1}
    rows = {f"srow_{axis}": ROTATED[row] * 1e-3 for row, axis in enumerate("xyz")}
    header, _ = read(file, placed(ROTATED, None, **metres, **rows))
    np.testing.assert_allclose(header.placements["sform"], ROTATED, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "header",
    [
        {"sform_code": 0},
        {"srow_x": [-1, 0, 0, 0], "srow_y": [0, -1, 0, 0], "srow_z": [0, 0, 1, 0]},
        {"srow_x": [math.nan] * 4},
        {"srow_z": [0, 0, 8, math.inf]},
        {"srow_x": [0] * 4},
    ],
    ids=["not set", "of 1 mm", "NaN", "infinite", "zero"],
)
def test_a_placement_that_contradicts_the_header_says_nothing(file: Path, header: dict[str, Any]) -> None:
    assert not read(file, placed(ROTATED, None, **header))[0].placements


def test_a_quaternion_that_is_no_rotation_says_nothing(file: Path) -> None:
    for values in ({"quatern_b": 2.0}, {"quatern_b": math.nan}):
        assert not read(file, placed(None, ROTATED, **values))[0].placements
    pixdim = [0, *SPACING, 0, 0, 0, 0]  # the format says that this means 1
    np.testing.assert_allclose(
        read(file, placed(None, ROTATED, pixdim=pixdim))[0].placements["qform"], ROTATED, atol=1e-5
    )


# What cannot be read


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_complex_and_coloured_voxels_are_refused(file: Path, dtype: Any) -> None:
    file.write_bytes(content(np.zeros(SHAPE, dtype)))
    with pytest.raises(Unfit, match=r"its voxels are (complex\d+|RGB), not plain numbers; export"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"datatype": 77}, "datatype is 77"),
        ({"datatype": 0}, "not plain numbers"),
        ({"datatype": 1}, "not plain numbers"),
        ({"dim": [0, 5, 4, 3, 1, 1, 1, 1]}, "dim is 0, 5, 4, 3"),
        ({"dim": [8, 5, 4, 3, 1, 1, 1, 1]}, "dim is 8"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "dim is 3, 5, 0, 3"),
        ({"dim": [3, -1, 1, 1, 1, 1, 1, 1], "glmin": 60}, "dim is 3, -1"),
        ({"vox_offset": math.nan}, "vox_offset is nan"),
        ({"vox_offset": math.inf}, "vox_offset is inf"),
        ({"vox_offset": 0}, "vox_offset is 0"),
        ({"vox_offset": 352.5}, "vox_offset is 352.5"),
        ({"vox_offset": 1e9}, "vox_offset is 1e[+]09"),
        ({"vox_offset": 400}, "48 bytes are missing"),
        ({"scl_slope": 1, "scl_inter": math.nan}, "invalid intercept"),
        ({"magic": b"ni1"}, "does not begin like one"),
        ({"magic": b""}, "does not begin like one"),
        ({"sizeof_hdr": 0}, "does not begin like one"),
    ],
)
def test_headers_of_no_sense_are_refused(file: Path, header: dict[str, Any], reason: str) -> None:
    with pytest.raises((Unfit, ValueError, EOFError), match=reason):
        read(file, gzip.compress(content(**header)))


@pytest.mark.parametrize(
    ("slope", "intercept", "reason"),
    [
        (1e38, 0, "scl_slope"),
        (-1e38, 0, "voxels of -"),
        (1, 1e31, "scl_inter"),
        (1e-40, 0, "scl_slope"),
        (1, 1e9, "scl_inter"),
        (1, -1e25, "scl_inter"),
        (1e-7, 100, "scl_slope"),
    ],
)
def test_numbers_that_float32_cannot_compute_with_are_refused(
    file: Path, slope: float, intercept: float, reason: str
) -> None:
    with pytest.raises(Unfit, match=reason):
        read(file, content(scl_slope=slope, scl_inter=intercept))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_voxel_that_is_not_finite_is_refused(file: Path, number: float) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[3, 2, 1] = number
    with pytest.raises(Unfit, match="not finite; export"):
        read(file, content(voxels))


def test_damaged_packing_is_always_noticed(file: Path) -> None:
    packed = gzip.compress(content())
    for place in range(10, len(packed)):  # of the first ten bytes most say nothing about the content
        damaged = bytearray(packed)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((Unfit, ValueError, EOFError, zlib.error)):
            read(file, bytes(damaged))
    for length in range(len(packed)):
        with pytest.raises((EOFError, ValueError)):
            read(file, packed[:length])


def test_a_file_of_other_size_than_its_header_says_is_refused(file: Path) -> None:
    for pack in (bytes, gzip.compress):
        with pytest.raises(EOFError, match="24 bytes are missing"):
            read(file, pack(content(dim=dims(5, 4, 3)))[:-24] if pack is bytes else pack(content()[:-24]))
        with pytest.raises(Unfit, match="more than the 5 x 4 x 2 voxels of its header"):
            read(file, pack(content(dim=dims(5, 4, 2))))


# What is too large


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "shape", [(8192, 8192, 150), (32767, 32767, 32767), (512, 512, 129), (256, 256, 16, 257), (1, 1, 1, *[32767] * 4)]
)
def test_more_voxels_than_are_read_are_refused_before_they_are(
    file: Path, kind: type[nib.Nifti1Image], shape: tuple[int, ...]
) -> None:
    assert math.prod(shape[:3]) > MAX_FRAME_VOXELS or math.prod(shape) > MAX_VOXELS
    file.write_bytes(gzip.compress(content(kind=kind, dim=dims(*shape))))
    with pytest.raises(Unfit, match=" x ".join(map(str, shape)) + r" voxels; more than .* are not read\. Crop it"):
        read_header(file)


def packed_zeros(file: Path, start: bytes, megabytes: int) -> None:
    """Write a small file that unpacks to a large one."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    with open(file, "wb") as opened:
        opened.write(head)
        for _ in range(megabytes >> 4):
            opened.write(block)


@pytest.mark.parametrize(
    "header",
    [
        {"dim": dims(8192, 8192, 150)},
        {},
        {"dim": dims(32, 32, 32), "vox_offset": 2**26},
        {"dim": dims(8, 8, 8), "vox_offset": 2**31},
        {"magic": b"x"},
    ],
    ids=["as it says", "more than it says", "far from its header", "farther than may be", "no header"],
)
def test_what_unpacks_to_ten_gigabytes_takes_little_time_and_memory(file: Path, header: dict[str, Any]) -> None:
    packed_zeros(file, content(np.zeros((2, 2, 2), np.uint8), **header)[:352], 10 << 10)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises((Unfit, ValueError)):
            read_header(file).voxels()
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 10


def test_headers_of_packing_without_end_take_little_time(file: Path) -> None:
    name = b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * (20 << 20)
    members = gzip.compress(b"", mtime=0) * 100_000
    start = time.perf_counter()
    for data in (name, members, members + bytes(20 << 20)):
        with pytest.raises((EOFError, ValueError)):
            read(file, data)
    assert time.perf_counter() - start < 10


def test_a_file_of_more_bytes_than_are_read_is_refused_unread(file: Path) -> None:
    for start in (content(), struct.pack("<HBB", 0x8B1F, 8, 0)):
        with open(file, "wb") as opened:
            opened.write(start)
            opened.truncate(MAX_FILE_BYTES + 1)
        with pytest.raises(Unfit, match=f"has {MAX_FILE_BYTES + 1} bytes; files of more than"):
            read_header(file)
    os.truncate(file, 0)
    with pytest.raises(EOFError, match="it is empty"):
        read_header(file)
