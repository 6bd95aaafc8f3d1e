"""Read a code's layout and stride off its shape and the image's: where its channels are, and where its sites."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout

Shape: TypeAlias = tuple[int, ...]


# Axis of the tokens, and how many lead that are no sites: none, a class token, class and distillation tokens, class and
# four register tokens. Registers without a class, or eight of them, are rarer than channels that come before sites.
_TOKENS = ((1, 0), (1, 1), (1, 2), (1, 5), (2, 0))


_RARE_TOKENS = ((1, 4), (1, 8), (1, 9))


def infer_layout(shape: Sequence[int], image: Sequence[int]) -> tuple[Layout, tuple[int, ...]] | None:
    """Read layout and stride of a code off its shape and that of the image [B, C, *S]; None where nothing fits.

    Example:
        >>> layout, stride = infer_layout((2, 2, 3, 192), (2, 3, 64, 96))
        >>> print(layout, stride)
        channels last (32, 32)
        >>> layout, stride = infer_layout((2, 17, 32), (2, 3, 64, 64))
        >>> print(layout, stride)
        tokens, 1 prefix (16, 16)
    """
    if torch.compiler.is_compiling():  # which would trace through the cache, and warn of it
        return next(layouts(tuple(shape), tuple(image)), None)
    return _likeliest(tuple(shape), tuple(image))


@functools.lru_cache(maxsize=1024)  # one pass asks for every tensor of a model, and many have one shape
def _likeliest(shape: Shape, image: Shape) -> tuple[Layout, Shape] | None:
    return next(layouts(shape, image), None)


def grid_of(shape: Shape, layout: Layout) -> Shape:
    """Return the number of sites along each axis; tokens have one axis, with those that are no sites."""
    sites = list(shape)
    del sites[layout.channel_dim], sites[0]
    return tuple(sites)


def layouts(shape: Shape, image: Shape, grids: Collection[Shape] | None = None) -> Iterator[tuple[Layout, Shape]]:
    """Yield the layouts, with strides, that a code may have, the likeliest first.

    Tokens make up one of `grids`, if given; or else any that one stride would leave of the image.
    """
    size = image[2:]
    if len(shape) < 3 or not size or shape[0] != image[0] or 0 in shape:
        return
    if len(shape) == len(size) + 3 and 1 in shape[2:]:  # an axis more than the image has, as for frames of a film
        extra = 2 + shape[2:].index(1)
        yield from (fit for fit in layouts(shape[:extra] + shape[extra + 1 :], image) if fit[0] == CHANNELS_FIRST)
        return
    if len(shape) == len(size) + 2:
        options = [(CHANNELS_FIRST, shape[2:]), (CHANNELS_LAST, shape[1:-1])]
        if _is_padded(size, shape[2:]) and any(s % g for s, g in zip(size, shape[1:-1], strict=True)):
            return
        # The more alike and the rounder the strides, the likelier; channels first where they tie.
        for layout, grid in sorted(options, key=lambda option: _oddness(size, option[1])):
            if all(g <= s for g, s in zip(grid, size, strict=True)):
                yield layout, _stride(size, grid)
            elif all(g <= 2 * s for g, s in zip(grid, size, strict=True)):
                return  # as fine as the input: no code, however its channels might be counted as sites
    if len(shape) == 3:
        yield from _token_layouts(shape, size, grids)


def _is_padded(size: Shape, grid: Shape) -> bool:
    """Tell whether a grid is a little finer than the input's, as where a convolution pads more than it needs."""
    return grid != size and all(s <= g <= s + s // 4 for g, s in zip(grid, size, strict=True))


def _oddness(size: Shape, grid: Shape) -> tuple[float, bool]:
    ratios = [s / g for s, g in zip(size, grid, strict=True)]
    return max(ratios) / min(ratios), not all(_strides(s, g) for s, g in zip(size, grid, strict=True))


def _strides(size: int, sites: int) -> list[int]:
    """List the strides that may turn `size` pixels into so many sites, the likeliest first.

    Each convolution of a strided stack rounds, up or down. One that divides, or else a power of two, is the likeliest.
    """
    near = range(max(1, size // (sites + 1)), size // max(1, sites - 1) + 2)
    fits = [s for s in near if size // s <= sites <= -(-size // s)]
    return sorted(fits, key=lambda s: (s * sites != size, s & (s - 1) != 0, abs(s - size / sites)))


def _stride(size: Shape, grid: Shape) -> tuple[int, ...]:
    """Return the stride of each axis: a divisor, or else one power of two for all, or else the nearest that fits."""
    axes = [_strides(s, g) for s, g in zip(size, grid, strict=True)]
    shared = [stride for stride in axes[0] if stride & (stride - 1) == 0 and all(stride in axis for axis in axes)]
    if shared and any(s % g for s, g in zip(size, grid, strict=True)):
        return (shared[0],) * len(grid)
    return tuple(axis[0] if axis else max(1, round(s / g)) for axis, s, g in zip(axes, size, grid, strict=True))


def _token_layouts(shape: Shape, size: Shape, grids: Collection[Shape] | None) -> Iterator[tuple[Layout, Shape]]:
    if grids is None:
        common, rare = ([(axis, n) for axis, n in ways if shape[axis] > 2 * n] for ways in (_TOKENS, _RARE_TOKENS))
        yield from _tokens(shape, _strided(size, even=True), common + rare)
        yield from _tokens(shape, _strided(size, even=False), common)
    else:
        known = {math.prod(grid): _stride(size, grid) for grid in grids if len(grid) == len(size)}
        yield from _tokens(shape, known, _TOKENS + _RARE_TOKENS)


@functools.lru_cache(maxsize=64)  # one pass asks for every tensor of a model
def _strided(size: Shape, *, even: bool) -> dict[int, Shape]:
    """Tell the stride by the number of sites that it leaves; of even strides only, or of all."""
    strides = [stride for stride in range(max(size), 0, -1) if not (even and any(s % stride for s in size))]
    return {math.prod(-(-s // stride) for s in size): (stride,) * len(size) for stride in strides}


def _tokens(
    shape: Shape, strides: dict[int, Shape], options: Iterable[tuple[int, int]]
) -> Iterator[tuple[Layout, Shape]]:
    for axis, prefix in options:
        if (stride := strides.get(shape[axis] - prefix)) is not None:
            yield (Layout(-1, prefix) if axis == 1 else CHANNELS_FIRST), stride
