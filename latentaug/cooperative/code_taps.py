"""The codes of a cooperative step: what segmentations are replayed from, and what images are decoded from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.plan_cache import cache_of
from latentaug.tap.reader import CodeReader
from latentaug.tap.replaying import NewCode
from latentaug.tracing.location import Location, unwrap


class CodeTaps:
    """Tap the shape codes, and the image code apart from them if it is none of them.

    Replays start at the shape codes, however much earlier the image code is, which is only read. As with `LatentTap`,
    call the model as ever inside the context.

    Args:
        model: The segmentation model.
        image_code: Where images are decoded from; None if they are not.
        shape_codes: Where segmentations are replayed from, all at once; none if they are not.
        cut: Whether leaves stand for the shape codes, and for all that is returned with them, so that what follows is
            derived by itself; their gradients are to be taken further, through `cuts`.

    Example:
        >>> import torch
        >>> from latentaug import find_codes
        >>> down = (nn.Conv2d(1, 8, 8, 8), nn.Conv2d(8, 16, 3, 2, 1))
        >>> model, images = nn.Sequential(*down, nn.ConvTranspose2d(16, 2, 16, 16)), torch.rand(2, 1, 64, 64)
        >>> image_code, shape_code = find_codes(model, images)
        >>> with CodeTaps(model, image_code, [shape_code]) as taps:
        ...     logits = model(images)
        ...     shapes = [tuple(taps.codes[code].shape) for code in (image_code, shape_code)]
        ...     hard = taps.replay([0.5 * taps.codes[shape_code]])
        >>> shapes, hard.shape
        ([(2, 8, 8, 8), (2, 16, 4, 4)], torch.Size([2, 2, 64, 64]))
    """

    def __init__(
        self, model: nn.Module, image_code: Location | None, shape_codes: Sequence[Location], *, cut: bool = False
    ) -> None:
        self._model = model
        self._shapes = LatentTap(model, shape_codes) if shape_codes else None
        self._image = None if image_code is None or image_code in shape_codes else CodeReader(model, image_code)
        self._locations = [*shape_codes, *filter(None, [None if self._image is None else image_code])]
        if cut and self._shapes is not None:
            self._shapes.cut()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for tap in filter(None, (self._shapes, self._image)):
                stack.enter_context(tap)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def codes(self) -> dict[Location, Tensor]:
        """The codes of the last pass by their locations, live in its graph."""
        codes = [code for tap in filter(None, (self._shapes, self._image)) for code in tap.codes]
        return dict(zip(self._locations, codes, strict=True))

    @property
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        """The leaves, each with what it stands for; see `LatentTap.cuts`."""
        return [] if self._shapes is None else self._shapes.cuts

    def aside(self) -> AbstractContextManager[None]:
        """Return a context in which the model may be called without its codes being taken for those of the pass."""
        return cache_of(unwrap(self._model)).ours()

    def replay(self, shape_codes: Sequence[NewCode]) -> Any:
        """Run what follows the shape codes again, with others in their place; see `LatentTap.replay`."""
        assert self._shapes is not None
        return self._shapes.replay(shape_codes)
