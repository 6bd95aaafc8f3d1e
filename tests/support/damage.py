"""What happens to files: drawn damages of NIfTI files and of text, each with a name that says what it did.

A damage takes a file's bytes, and gives others; `in_place_of` puts what is no file there.
"""

from __future__ import annotations

import gzip
import os
import socket
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import NamedTuple

import nibabel as nib
import numpy as np

ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")
LINE_ENDS = (b"\r\n", b"\r", b"\n\n", b"\n\r", b" \n")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 1e-3, 1e3, 255.0, 352.0, 32767.0, -32768.0, 2e9)
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
NO_FILES = ("pipe", "socket", "folder", "dangling link", "link to a device", "link to itself")


class Damaged(NamedTuple):
    """What a file holds now, and what was done to it."""

    content: bytes
    how: str


def seed_of_the_day() -> int:
    """Return another seed every day, unless LATENTAUG_SEED names one; print it, to be found where a test fails."""
    seed = int(os.environ.get("LATENTAUG_SEED", date.today().toordinal()))
    print(f"LATENTAUG_SEED={seed}")
    return seed


def damaged_bytes(content: bytes, random: Random) -> Damaged:
    """Damage what any file may suffer: bits and bytes that change, go, come, or change places."""
    where = random.randrange(len(content) + 1)
    some = random.choice((1, 1, 2, 8, 64, 600))
    kind = random.choice(("bit", "bytes", "cut", "lost", "inserted", "zeros", "twice", "tail", "swapped"))
    if kind == "bit":
        changed = bytearray(content or b"\0")
        changed[where % len(changed)] ^= 1 << random.randrange(8)
        return Damaged(bytes(changed), f"bit of byte {where} flipped")
    strange = random.randbytes(some)
    head, tail = content[:where], content[where:]
    new = {
        "bytes": head + strange + tail[some:],
        "cut": head,
        "lost": head + tail[some:],
        "inserted": head + strange + tail,
        "zeros": head + bytes(some) + tail[some:],
        "twice": head + tail[:some] + tail,
        "tail": content + strange,
        "swapped": tail[:some] + head[some:] + head[:some] + tail[some:],
    }
    return Damaged(new[kind], f"{kind}, {some} at {where}")


def damaged_nifti(content: bytes, random: Random) -> Damaged:
    """Damage a NIfTI-1 file, packed or not: its bytes, the bytes inside the packing, its header by name, its form."""
    packed = content.startswith(b"\x1f\x8b")
    volume = gzip.decompress(content) if packed else content
    kind = random.choice(("bytes", "inside", "header", "field", "field", "field", "field", "form"))
    if kind == "bytes":
        return damaged_bytes(content, random)
    if kind == "inside":
        changed, how = damaged_bytes(volume, random)
    elif kind == "header":
        head, how = damaged_bytes(volume[:352], random)
        changed, how = head + volume[352:], f"header: {how}"
    elif kind == "field":
        changed, how = _other_field(volume, random)
    else:
        changed, how = _other_form(volume, random)
    return Damaged(gzip.compress(changed, 1, mtime=0) if packed else changed, how)


def damaged_text(content: bytes, random: Random) -> Damaged:
    """Damage a text file of ASCII: its bytes, its lines, its numbers, its encoding."""
    lines = content.splitlines(keepends=True)
    kind = random.choice(("bytes", "lines", "lines", "digit", "encoding", "ends", "sign"))
    if kind == "lines" and lines:
        one, other = random.randrange(len(lines)), random.randrange(len(lines))
        moved = list(lines)
        moved[one], moved[other] = moved[other], moved[one]
        new = {
            "swapped": moved,
            "lost": lines[:one] + lines[one + 1 :],
            "twice": [*lines, lines[one]],
            "joined": [*lines[:one], lines[one].rstrip(b"\r\n"), *lines[one + 1 :]],
            "long": [*lines[:one], b"x" * 200_000, *lines[one:]],
            "quoted": [*lines[:one], b'"', *lines[one:]],
        }
        how = random.choice(tuple(new))
        return Damaged(b"".join(new[how]), f"line {one} {how} ({other})")
    if kind == "digit" and (digits := [i for i, byte in enumerate(content) if chr(byte).isdigit()]):
        where = random.choice(digits)
        number = random.choice(
            (b"0", b"2", b"9", b"-1", b"", b"1.0", b"1.5", b"1e3", b"nan", b"9" * 5000, "²".encode())
        )
        return Damaged(content[:where] + number + content[where + 1 :], f"digit at {where} is {number[:9]!r}")
    if kind == "encoding":
        encoding = random.choice(ENCODINGS)
        return Damaged((content.decode("ascii") + "Grüße: é\n").encode(encoding), f"in {encoding}")
    if kind == "ends":
        end = random.choice(LINE_ENDS)
        return Damaged(end.join(content.splitlines()) + end, f"lines end in {end!r}")
    if kind == "sign":
        old, new = random.choice(b":,\n "), random.choice(b";,\t:\0\x0c\x85\xff")
        return Damaged(content.replace(bytes([old]), bytes([new])), f"{old:#x} is {new:#x}")
    return damaged_bytes(content, random)


def in_place_of(path: Path, what: str) -> None:
    """Put one of `NO_FILES` where a file was."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name may have 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(here)
    elif what == "folder":
        path.mkdir()
    else:
        targets = {"dangling link": "absent", "link to a device": "/dev/zero", "link to itself": path.name}
        path.symlink_to(targets[what])


def _other_field(volume: bytes, random: Random) -> Damaged:
    header = nib.Nifti1Header(volume[:348], check=False)
    name = random.choice([*header.keys(), *("dim", "pixdim", "datatype", "vox_offset", "scl_slope", "xyzt_units") * 3])
    field = header[name]
    place = random.randrange(field.size) if field.ndim else None
    old = field if place is None else field[place]
    if old.dtype.kind == "S":
        header[name] = random.randbytes(old.dtype.itemsize)
        return Damaged(header.binaryblock + volume[348:], f"{name} is {header[name]!r}")
    numbers = [*NUMBERS, *NO_NUMBERS, float(old) * 2, -float(old), float(old) + 1, random.uniform(-9, 9)]
    number = random.choice(numbers)
    with np.errstate(all="ignore"):
        if old.dtype.kind in "iu":
            limits = np.iinfo(old.dtype)
            number = min(max(int(number) if np.isfinite(number) else random.getrandbits(16), limits.min), limits.max)
        if place is None:
            header[name] = number
        else:
            field[place] = number
    return Damaged(header.binaryblock + volume[348:], f"{name}[{place}] was {old}, is {number}")


def _other_form(volume: bytes, random: Random) -> Damaged:
    header, voxels = nib.Nifti1Header(volume[:348]), volume[352:]
    extension = bytes([1, 0, 0, 0]) + struct.pack("<ii", 16, 6) + bytes(8)
    forms: dict[str, Callable[[], bytes]] = {
        "the other byte order": lambda: header.as_byteswapped().binaryblock + bytes(4) + _swapped(voxels, header),
        "NIfTI-2": lambda: _as_nifti2(header) + bytes(4) + voxels,
        "an extension": lambda: _moved(header, 368) + extension + voxels,
        "packed twice": lambda: gzip.compress(volume, mtime=0),
        "two members": lambda: volume,
        "voxels lost": lambda: volume[: -random.randrange(1, len(voxels))],
        "voxels added": lambda: volume + random.randbytes(random.randrange(16, 4096)),
        "of a pair": lambda: volume[:344] + b"ni1\0" + volume[348:],
        "Analyze": lambda: volume[:344] + bytes(4) + volume[348:],
    }
    form = random.choice(tuple(forms))
    return Damaged(forms[form](), form)


def _swapped(voxels: bytes, header: nib.Nifti1Header) -> bytes:
    return np.frombuffer(voxels, header.get_data_dtype()).byteswap().tobytes()


def _as_nifti2(header: nib.Nifti1Header) -> bytes:
    other = nib.Nifti2Header.from_header(header, check=False)
    other["sizeof_hdr"], other["vox_offset"] = 540, 544
    other["magic"], other["eol_check"] = b"n+2", (13, 10, 26, 10)
    return bytes(other.binaryblock)


def _moved(header: nib.Nifti1Header, offset: int) -> bytes:
    header["vox_offset"] = offset
    return bytes(header.binaryblock)
