"""Which tissue is where in a made-up chest: a beating heart in short-axis planes, and the torso around it.

Lengths are in millimetres. The plane's origin is the left ventricle's axis at mid height; x points to the right of the
picture, y down, and z runs along the heart's long axis from base to apex. Shapes are radii as functions of an angle, so
that a plane is painted by comparing every point's distance from a centre with a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]

ANGLES = 720
_THETA = np.arange(ANGLES, dtype=np.float32) * (2 * np.pi / ANGLES)


class Tissue(IntEnum):
    """What a point is made of; the scanner decides how bright that is."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    LUNG = 5
    VESSEL = 6
    LIVER = 7
    SPLEEN = 8
    STOMACH = 9
    BLOOD = 10
    MYOCARDIUM = 11
    FLUID = 12


class Plane(NamedTuple):
    """Points of one plane: x and y in mm, and two standard-normal textures, coarse (about 8 mm) and fine (2 mm)."""

    x: Array
    y: Array
    coarse: Array
    fine: Array

    def window(self, where: tuple[slice, slice]) -> Plane:
        """The same plane, cut to a rectangle of array indices."""
        return Plane(*(field[where] for field in self))

    def polar(self, x: float, y: float) -> tuple[Array, npt.NDArray[np.intp]]:
        """Distance from a centre, and the direction seen from it as an index into a table of `ANGLES` radii."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        turn = np.arctan2(dy, dx) * np.float32(ANGLES / (2 * np.pi))
        return np.hypot(dx, dy), turn.astype(np.intp) % ANGLES

    def ellipse(self, x: float, y: float, a: float, b: float, tilt: float = 0.0, rough: float = 0.0) -> Mask:
        """Points inside an ellipse with half axes `a` and `b`, its edge roughened by the coarse texture."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        inside = ((cos * dx + sin * dy) / np.float32(a)) ** 2 + ((cos * dy - sin * dx) / np.float32(b)) ** 2
        return inside < 1 + np.float32(rough) * self.coarse


def texture(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Array:
    """Smooth random values of mean 0 and standard deviation 1; `grain` is the smoothing in voxels."""
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), grain, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def ripple(rng: np.random.Generator, amplitude: float, orders: range = range(2, 6)) -> Array:
    """A smooth random function of the angle with mean 0, for outlines that no compass drew."""
    waves = [rng.normal(0, 1 / n) * np.cos(n * _THETA + rng.uniform(0, 2 * np.pi)) for n in orders]
    return (amplitude * np.sum(waves, axis=0)).astype(np.float32)


def bump(direction: float, width: float) -> Array:
    """1 in one direction, falling to 0 over `width` radians on either side."""
    away = np.angle(np.exp(1j * (_THETA - direction)))
    return np.exp(-((away / width) ** 2)).astype(np.float32)


def oval(a: float, b: float, tilt: float = 0.0) -> Array:
    """Radius of an ellipse as a function of the angle."""
    return (a * b / np.hypot(b * np.cos(_THETA - tilt), a * np.sin(_THETA - tilt))).astype(np.float32)


@dataclass(frozen=True)
class Heart:
    """One heart: its shape in end diastole and how it contracts."""

    group: str
    length: float
    radius: float
    wall: float
    shortening: float
    descent: float
    right: float
    septum: float
    apex_shift: tuple[float, float]
    outline: Array
    thickness: Array
    stretch: Array
    right_outline: Array
    fat: Array
    padding: float
    papillary: tuple[tuple[float, float, float], ...]

    @property
    def frame(self) -> tuple[float, float, float]:
        """Centre (x, y) and half size of a square that holds the heart with the fat around it."""
        outer = self.radius + self.wall
        x, y = 0.5 * outer * np.cos(self.septum), 0.5 * outer * np.sin(self.septum)
        return x, y, 1.7 * outer * max(self.right, 1) + 18


GROUPS = {
    #       cavity radius, wall, fractional shortening, right ventricle relative to the left
    "NOR": ((24, 28), (7.5, 9.5), (0.30, 0.38), (0.92, 1.02)),
    "DCM": ((31, 36), (7.0, 8.5), (0.07, 0.14), (0.75, 0.95)),
    "HCM": ((20, 24), (12.0, 16.0), (0.38, 0.46), (0.85, 1.0)),
    "MINF": ((26, 31), (7.5, 9.5), (0.14, 0.22), (0.85, 1.0)),
    "RV": ((22, 26), (7.0, 9.0), (0.24, 0.32), (1.15, 1.32)),
}


def draw_heart(rng: np.random.Generator, group: str) -> Heart:
    """Draw a heart of one of ACDC's five groups."""
    radius, wall, shortening, right = (rng.uniform(*limits) for limits in GROUPS[group])
    septum = np.pi + rng.normal(0, 0.25)
    thickness, stretch = 1 + ripple(rng, 0.07), np.ones(ANGLES, np.float32)
    if group == "HCM":
        thickness += 0.45 * bump(septum + rng.uniform(-0.6, 0.6), 0.9)
    if group == "MINF":
        scar = bump(rng.uniform(0, 2 * np.pi), 0.8)
        thickness -= 0.35 * scar
        stretch -= 0.9 * scar
    return Heart(
        group=group,
        length=rng.uniform(80, 92) + 0.5 * (radius - 25),
        radius=radius,
        wall=wall,
        shortening=shortening,
        descent=rng.uniform(35, 45) * shortening,
        right=right,
        septum=septum,
        apex_shift=(rng.normal(6, 4), rng.normal(2, 4)),
        outline=1 + ripple(rng, 0.05),
        thickness=thickness,
        stretch=stretch,
        right_outline=1 + ripple(rng, 0.07) + 0.06 * np.cos(3 * (_THETA - septum)).astype(np.float32),
        fat=np.clip(1.5 + ripple(rng, 3.0) + 4 * bump(septum - 0.8, 0.9), 0, None),
        padding=rng.uniform(8, 18),
        papillary=tuple(
            (septum + side * rng.uniform(1.6, 2.3), rng.uniform(0.2, 0.27), rng.uniform(0.13, 0.18)) for side in (-1, 1)
        ),
    )


class Section(NamedTuple):
    """A heart cut at one height and moment: where the plane's points lie in it, and how far from its walls."""

    height: float
    centre: tuple[float, float]
    left: Mask
    wall: Mask
    right: Mask
    direction: npt.NDArray[np.intp]
    left_depth: Array
    right_depth: Array
    outside: Array


def cut(heart: Heart, plane: Plane, z: float, contraction: float) -> Section:
    """Cut a heart with a plane: `contraction` is 0 in end diastole and 1 in end systole.

    The apex stays where it is and the base descends; a height is 0 at the base and 1 at the apex.
    """
    base = -heart.length / 2 + heart.descent * contraction
    height = float((z - base) / (heart.length / 2 - base))
    x, y = ((height - 0.5) * shift for shift in heart.apex_shift)
    endo, epi = _left_ventricle(heart, height, contraction)
    radius, direction = plane.polar(x, y)
    left, body = radius < endo[direction], radius < epi[direction]
    away = 0.84 * epi[int(heart.septum / (2 * np.pi) * ANGLES) % ANGLES]
    right_radius, right_direction = plane.polar(x + away * np.cos(heart.septum), y + away * np.sin(heart.septum))
    right_depth = _right_ventricle(heart, height, contraction)[right_direction] - right_radius
    return Section(
        height=height,
        centre=(x, y),
        left=left,
        wall=body & ~left,
        right=(right_depth > 0) & ~body,
        direction=direction,
        left_depth=endo[direction] - radius,
        right_depth=right_depth,
        outside=_soft_union(radius - epi[direction], -right_depth - 3),
    )


def _left_ventricle(heart: Heart, height: float, contraction: float) -> tuple[Array, Array]:
    """Radii of cavity and muscle; the muscle thickens as the cavity shrinks and the heart shortens."""
    cavity = heart.radius * _taper(height / 0.93, 2.2)
    full = (heart.radius + heart.wall) * _taper(height, 2.4)
    endo = cavity * heart.outline * (1 - heart.shortening * contraction * heart.stretch)
    muscle = (full**2 - cavity**2) * heart.thickness * (1 + 0.12 * contraction)
    return endo, np.sqrt(endo**2 + muscle)


def _right_ventricle(heart: Heart, height: float, contraction: float) -> Array:
    """Radius of the right cavity around its own centre, as if the left ventricle did not take a bite out of it."""
    size = heart.right * (heart.radius + heart.wall) * _taper(height / 0.92, 2.4)
    squeeze = 0.8 * heart.shortening * contraction
    return (
        oval(0.88 * size * (1 - squeeze) + 0.001, 1.15 * size * (1 - squeeze / 2) + 0.001, heart.septum)
        * heart.right_outline
    )


def _taper(height: float, blunt: float) -> float:
    """Radius of a ventricle relative to its base: nearly a tube at first, closing round at height 1."""
    height = min(max(height, 0.0), 1.0)
    return float((1 - height**blunt) ** 0.6 * (0.93 + 0.07 * min(height / 0.25, 1)))


def _soft_union(a: Array, b: Array, softness: float = 5.0) -> Array:
    """Distance to the nearer of two shapes, rounded where both are near: fat fills the grooves between ventricles."""
    return np.minimum(a, b) - softness * np.exp(-np.abs(a - b) / softness) * np.float32(0.7)


def paint_heart(codes: Codes, heart: Heart, plane: Plane, room: Array, z: float, contraction: float) -> None:
    """Paint the heart over the tissue codes of a plane, in place, with fat in the narrow gaps that `room` leaves."""
    section = cut(heart, plane, z, contraction)
    if section.height >= 1:
        return
    codes[section.outside < heart.fat[section.direction] + plane.coarse] = Tissue.FAT
    codes[(room > 0) & (section.outside + room < heart.padding + 2 * plane.coarse)] = Tissue.FAT
    if section.height < 0:
        _paint_above_base(codes, heart, plane, section)
        return
    codes[(section.right_depth > -3) & ~section.left] = Tissue.MYOCARDIUM
    codes[section.right] = Tissue.BLOOD
    sparse = 1.0 - 0.6 * section.height + (0.22 - 0.12 * section.height) * section.right_depth
    codes[section.right & (plane.fine > sparse)] = Tissue.MYOCARDIUM
    codes[section.wall] = Tissue.MYOCARDIUM
    codes[section.left] = Tissue.BLOOD
    codes[section.left & _muscle_in_cavity(heart, plane, section)] = Tissue.MYOCARDIUM


def _muscle_in_cavity(heart: Heart, plane: Plane, section: Section) -> Mask:
    """Trabeculae along the wall, more towards the apex, and the two papillary muscles in the middle of the heart."""
    from_wall = section.left_depth / heart.radius
    muscle = plane.fine + 0.3 * plane.coarse > 0.7 - 0.7 * section.height + (8 - 5 * section.height) * from_wall
    if 0.15 < section.height < 0.85:
        plump = np.sin(np.pi * (section.height - 0.15) / 0.7) ** 0.5
        distance = section.left_depth.max() * (0.56 + 0.15 * section.height)
        for angle, along, across in heart.papillary:
            x, y = section.centre[0] + distance * np.cos(angle), section.centre[1] + distance * np.sin(angle)
            a, b = (heart.radius * plump * extent for extent in (along, across))
            muscle |= plane.ellipse(x, y, a, b, angle, rough=0.35)
    return muscle


def _paint_above_base(codes: Codes, heart: Heart, plane: Plane, section: Section) -> None:
    """Above the valves: aortic root, left atrium and the right ventricle's outflow, none of them labelled."""
    codes[section.right_depth > -2.5] = Tissue.MYOCARDIUM
    codes[section.right_depth > 0] = Tissue.BLOOD
    r = heart.radius
    for x, y, a, b in ((0.75 * r, 0.25 * r, 0.95 * r, 0.75 * r), (-0.1 * r, -0.1 * r, 0.62 * r, 0.62 * r)):
        codes[plane.ellipse(x, y, a + 2.5, b + 2.5, rough=0.05)] = Tissue.MYOCARDIUM
        codes[plane.ellipse(x, y, a, b, rough=0.05)] = Tissue.BLOOD


@dataclass(frozen=True)
class Torso:
    """The chest and upper abdomen around one heart."""

    cavity: Array
    muscle: Array
    fat: Array
    rib_phase: float
    hilum: tuple[float, float]
    diaphragm: tuple[float, float, float, float]
    liver: tuple[float, float, float, float, float]
    organs: tuple[tuple[Tissue, tuple[float, float, float, float, float]], ...]


ORGANS = (
    #               x, y, half axes, tilt; those that hang from the diaphragm come first
    (Tissue.SPLEEN, (88, 88, 20, 38, 0.3)),
    (Tissue.STOMACH, (56, 72, 34, 24, 0.3)),
    (Tissue.MUSCLE, (66, 112, 16, 12, 0.5)),
    (Tissue.MUSCLE, (-12, 132, 18, 24, 0.2)),
    (Tissue.MARROW, (18, 130, 20, 18, 0.0)),
    (Tissue.BLOOD, (8, 98, 11, 11, 0.0)),
    (Tissue.BLOOD, (-18, 88, 10, 8, 0.3)),
    (Tissue.FLUID, (22, 156, 8, 7, 0.0)),
)


def draw_torso(rng: np.random.Generator) -> Torso:
    """Draw a torso; sizes are those of adults, thin to stout."""
    stout = rng.uniform(0, 1)
    jitter = rng.normal(0, 6, (len(ORGANS), 2))
    meal = Tissue(rng.choice([Tissue.STOMACH, Tissue.SPLEEN, Tissue.FLUID, Tissue.BONE]))
    return Torso(
        cavity=oval(rng.uniform(84, 98), rng.uniform(140, 160), rng.normal(0.15, 0.06)) * (1 + ripple(rng, 0.06)),
        muscle=np.clip(12 + ripple(rng, 7), 6, None) + 9 * bump(-2.0, 0.5),
        fat=np.clip(6 + 18 * stout + ripple(rng, 10), 3, None),
        rib_phase=rng.uniform(0, 2 * np.pi),
        hilum=(rng.normal(18, 6), rng.normal(-58, 6)),
        diaphragm=(rng.uniform(34, 42), rng.uniform(-45, -25), rng.uniform(40, 60), rng.uniform(4, 12)),
        liver=(rng.normal(-45, 6), 112, rng.normal(88, 8), 78, 0.2),
        organs=tuple(
            (meal if t is Tissue.STOMACH else t, (x + i, y + j, a, b, w))
            for (t, (x, y, a, b, w)), (i, j) in zip(ORGANS, jitter, strict=True)
        ),
    )


def paint_chest(torso: Torso, plane: Plane) -> tuple[Codes, Array]:
    """Skin, chest wall and lung, the same in every slice; and each point's depth inside the chest wall."""
    radius, direction = plane.polar(22, 2)
    depth = torso.cavity[direction] - radius
    muscle = torso.muscle[direction]
    codes = np.full(plane.x.shape, Tissue.AIR, np.uint8)
    codes[depth > -muscle - torso.fat[direction]] = Tissue.FAT
    codes[depth > -muscle + 1.2 * plane.coarse] = Tissue.MUSCLE
    codes[(depth > -muscle) & (plane.fine + plane.coarse > 1.9)] = Tissue.FAT
    along = np.cos(14 * _THETA + torso.rib_phase)[direction]
    rib = ((depth + 5.5) / 5) ** 2 + ((1 - along) / 0.75) ** 2 + 0.15 * plane.coarse
    codes[rib < 1] = Tissue.BONE
    codes[rib < 0.4] = Tissue.MARROW
    codes[depth > 0] = Tissue.LUNG
    return codes, depth


def paint_slice(codes: Codes, torso: Torso, plane: Plane, depth: Array, z: float) -> Array:
    """Paint lung vessels and abdomen of one slice, in place; returns the room that chest wall and diaphragm leave."""
    _paint_lung_vessels(codes, torso, plane)
    height, peak, width, hump = torso.diaphragm
    dome = height - 0.3 * z - hump * np.exp(-(((plane.x - peak) / width) ** 2))
    dome += 0.0022 * np.clip(plane.x - 20, 0, None) ** 2
    below = plane.y - dome + 1.5 * plane.coarse
    codes[(depth > 0) & (below > -2)] = Tissue.MUSCLE
    rows = slice(int(np.argmax((below > -2).any(1))), None)
    _paint_abdomen(codes[rows], torso, plane.window((rows, slice(None))), np.minimum(depth, below)[rows], z)
    return np.minimum(depth, -below)


def _paint_lung_vessels(codes: Codes, torso: Torso, plane: Plane) -> None:
    """Bright dots and short branches, crowded around the hilum above the heart."""
    x, y = torso.hilum
    crowd = np.exp(-(((plane.x - x) / 38) ** 2) - ((plane.y - y) / 30) ** 2)
    dots = plane.fine + plane.coarse > 3.5 - 1.3 * crowd
    branches = (np.abs(plane.coarse) < 0.16 * crowd - 0.05) & (plane.fine > -0.3)
    codes[(codes == Tissue.LUNG) & (dots | branches)] = Tissue.VESSEL


def _paint_abdomen(codes: Codes, torso: Torso, plane: Plane, depth: Array, z: float) -> None:
    """Below the diaphragm: liver on the left of the picture, then stomach, spleen, great vessels and spine, in fat."""
    inside = depth > 0
    codes[inside] = Tissue.FAT
    codes[inside & (np.abs(plane.coarse) + 0.3 * plane.fine < 0.25)] = Tissue.MUSCLE
    x, y, a, b, tilt = torso.liver
    liver = inside & plane.ellipse(x, y - 0.3 * z, a, b, tilt, rough=0.03)
    codes[liver] = Tissue.LIVER
    codes[liver & (plane.coarse + 0.4 * plane.fine > 2.0)] = Tissue.VESSEL
    for tissue, (x, y, a, b, tilt) in torso.organs:
        y -= 0.3 * z if x > 40 else 0.0  # spleen and stomach hang from the diaphragm
        rim = Tissue.BONE if tissue is Tissue.MARROW else Tissue.MUSCLE
        codes[inside & plane.ellipse(x, y, a + 2, b + 2, tilt, rough=0.12)] = rim
        codes[inside & plane.ellipse(x, y, a, b, tilt, rough=0.12)] = tissue
