"""LatentTap: capture a submodule's output, and replay the model with another."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from typing_extensions import Self

from latentaug.checks import called_on_example, shown
from latentaug.discovery.bottleneck import bottleneck
from latentaug.discovery.suggest import suggest
from latentaug.layout import Layout
from latentaug.tap.capture import Capture, Plan
from latentaug.tap.draw import Drawing, is_sampler
from latentaug.tap.plan import make_plan
from latentaug.tap.plan_cache import PlanCache, cache_of
from latentaug.tap.proof import captured
from latentaug.tap.sampling import Divergence, Layer, New, Objective, Sampled, Sampler
from latentaug.tap.start import see_what_is_known
from latentaug.tap.whole_pass import CannotFollow, Unmixed, see_that_rows_are_samples
from latentaug.tracing.compiled import gradients_twice, uncompiled
from latentaug.tracing.fast_path import modules_are_called
from latentaug.tracing.intercept import LIVE, Handler, Override, overridden
from latentaug.tracing.isolation import submodules
from latentaug.tracing.lazy import initialise
from latentaug.tracing.location import (
    Location,
    Spot,
    as_inputs,
    compiled_wrappers,
    complete_spots,
    find_spot,
    image_in,
    layout_of,
    unwrap,
)
from latentaug.tracing.own_passes import depth_of
from latentaug.tracing.record import saving_now
from latentaug.tracing.strand import Strand
from latentaug.tracing.tree import Path, tensors_in

logger = logging.getLogger("latentaug")


class LatentTap:
    """Capture a latent code of any model, and run the rest of the model again from another one.

    Inside the context, call the model as ever. The tap then holds the code that the layer returned, live in the graph;
    `replay` runs the model with a new code in its place, skip connections included, without running again what came
    before. The results equal those of a whole forward pass with the code replaced: same dropout masks, same batch
    statistics, same gradients.

    The first pass in each mode costs a few passes over two samples more, the most of them over smaller images where two
    are much of the batch: they find out what a replay may skip, and prove it. Models whose modules pass results around
    in other ways than by returning them are replayed in full.

    Args:
        model: Any `nn.Module`; also compiled, or wrapped for distributed training.
        layer: A dotted name, with the index into the module's output if that holds several tensors ("encoder[5]"), a
            module, a `Location`, or a list of these to tap several. Default None: the bottleneck that
            `find_bottleneck` finds, logged once.
        example: A batch of inputs for finding it. Default: the first batch that the model is called with.
        call: Which of the layer's calls in one pass to tap, if it is called several times. Default -1, the last.
        transform: What the tap is for: without a layer, those that `suggest_layers` names for it are tapped, and not
            the bottleneck.

    Raises:
        ValueError: The model has no such layer; or none for `transform`, as for one of images.
        RuntimeError: `code` or `replay` before the model was called in the context.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2))
        >>> with LatentTap(model, "1") as tap:
        ...     logits = model(torch.randn(2, 1, 16, 16))
        ...     hard_logits = tap.replay(tap.code * 0.5)
        >>> tap.layers[0].shape, hard_logits.shape
        ((2, 8, 8, 8), torch.Size([2, 2, 16, 16]))
    """

    @uncompiled
    def __init__(
        self,
        model: nn.Module,
        layer: Layer | Sequence[Layer] | None = None,
        *,
        example: Any = None,
        call: int = -1,
        transform: Sampler | None = None,
    ):
        if transform is not None and layer is not None:
            raise ValueError("LatentTap needs a layer, or a transform to find layers for; got both.")
        if transform is not None and not is_sampler(transform):
            raise TypeError(f"transform must be a LatentTransform; got {shown(transform)}.")
        if isinstance(call, bool) or not isinstance(call, int):
            raise TypeError(f"call must be a whole number, which call of the layer is meant; got {shown(call)}.")
        self._transform: Any = transform
        self._model = model
        self._root = unwrap(model)
        self._call = call
        self._cut = False
        self._targets: tuple[tuple[str, Path | None], ...] | None = None
        self._wanted = self._resolve(layer)
        self._shared = cache_of(self._root)
        self._seen: tuple[list[tuple[int, ...]], tuple[int, ...]] | None = None
        self._capture: Capture | None = None
        self._context: ExitStack | None = None
        self._running = False
        self._depth, self._strand = 0, Strand()
        self._strand.close()
        if example is not None:
            with self._shared.lock.held(), self._shared.ours():
                args, kwargs = as_inputs(example)
                with called_on_example("LatentTap", self._root, example):
                    self._spots(args, kwargs)
                shapes = self._shared.spots[self._sought].values()
                self._seen = list(shapes), _image_shape(args, kwargs)

    # Reading ------------------------------------------------------------------------------------------------------

    @property
    @uncompiled
    def layers(self) -> list[Location]:
        """The tapped locations; known once the model was called, or at once if `example` was given."""
        if self._seen is None:
            raise RuntimeError(
                "LatentTap.layers is known once the model was called in the context. Call it first, or pass example=."
            )
        shapes, image = self._seen
        spots = tuple(self._shared.spots[self._sought])
        given = self._wanted or self._shared.found[self._sought]
        return [_location(spot, shape, image, one) for spot, shape, one in zip(spots, shapes, given, strict=True)]

    @property
    def layout(self) -> Layout:
        """Layout of the (first) code: pass it on to maskers."""
        return self.layers[0].layout

    @property
    @uncompiled
    def codes(self) -> list[Tensor]:
        """The codes of the last pass, one for each layer, live in its graph."""
        return self._captured("codes").codes

    @property
    @uncompiled
    def code(self) -> Tensor:
        """The code of the last pass, live in its graph; with several layers, the first."""
        return self._captured("code").codes[0]

    @uncompiled
    def cut(self) -> Self:
        """Let what follows the codes be derived by itself, without what precedes them; return the tap.

        In passes from here on, leaves stand for all that the tapped modules return. A loss that is backpropagated goes
        as far as these, in `cuts`; whoever asks for this takes their gradients further, all at once.
        """
        self._cut = True
        return self

    @property
    @uncompiled
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        """The leaves of the last pass, each with what it stands for; none without `cut`."""
        return self._captured("cuts").cuts

    # Capturing ----------------------------------------------------------------------------------------------------

    @uncompiled
    def __enter__(self) -> Self:
        if self._context is not None:
            raise RuntimeError("This LatentTap is open already. Make another one for a nested context.")
        with ExitStack() as stack:
            stack.enter_context(self._shared.lock.held())
            wrappers = {f"wrapper {i}": module for i, module in enumerate(compiled_wrappers(self._model))}
            stack.enter_context(overridden({**wrappers, "": self._root}, self._handle))
            stack.enter_context(_prepared(self._root, self._before))
            stack.enter_context(_uncopied(self._root, self._shared))
            stack.enter_context(modules_are_called(self._root, [name for name, _ in self._targets or ()]))
            self._depth, self._strand = depth_of(self._root), Strand()
            stack.callback(self._strand.close)
            self._context = stack.pop_all()
        self._shared.open.append(weakref.ref(self))
        return self

    @uncompiled
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is None:
            raise RuntimeError("This LatentTap is not open.")
        self._shared.open[:] = [one for one in self._shared.open if one() not in (None, self)]
        self._drop_capture()
        context, self._context = self._context, None
        context.close()

    def _drop_capture(self) -> None:
        if self._capture is not None and self._capture.start is not None:
            self._shared.verdicts += self._capture.start.verdicts
        self._capture = None

    def _before(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prepare before the model's own hooks run, which may gather sharded weights for this one pass."""
        _, args, kwargs = args
        if not self._is_none_of_the_user_s():
            self._prepare(args, kwargs)

    def _handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name != "" or self._is_none_of_the_user_s():
            return original(*args, **kwargs)
        self._drop_capture()
        see_what_is_known(self._shared.verdicts)
        plan = self._prepare(args, kwargs)
        capture = Capture(self._root, plan, args, kwargs, cut=self._cut)
        self._running = True
        try:
            with gradients_twice():
                output = capture.run(original, args, kwargs)
        finally:
            self._running = False
        self._capture = capture
        self._seen = [tuple(code.shape) for code in capture.codes], _image_shape(args, kwargs)
        if capture.unplanned or (not capture.fits and plan.fast):
            self._distrust(capture, args, kwargs)
        return output

    def _distrust(self, capture: Capture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See what is to become of a plan that did not fit a pass."""
        key = self._key(capture.plan.spots)
        if capture.checkpointed:  # or its replays would not know whether their gradients are right
            del self._shared.plans[key]
            capture.plan = replace(self._prepare(args, kwargs), fast=False)
            if capture.start is not None:
                capture.start.expect(dict(capture.plan.saving))
        elif capture.unplanned:
            self._shared.renew(self._root, key, capture.unplanned - _learning(self._root))
        else:
            self._shared.distrust(self._root, key)

    def _is_none_of_the_user_s(self) -> bool:
        """Tell whether a pass is the library's own, within one that is captured, or another thread's or task's."""
        own = self._shared.busy or self._running or depth_of(self._root) > self._depth
        return own or self._strand.is_elsewhere()

    @uncompiled
    def draw(
        self,
        transform: Sampler | Sequence[Sampler],
        *,
        objective: Objective | None = None,
        divergence: Divergence | None = None,
        same: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Sample a change of the code: what `replay` does with a transform, to be used more than once.

        Args:
            transform: The transform; with several layers one for all of them, or a list of one for each.
            objective: Returns the loss, a scalar, of what the model returns. Its gradient at the code of the captured
                pass is the saliency, and its value in a replay is what adversarial transforms climb. Of several layers,
                one such transform for all climbs over all of them together.
            divergence: Returns how far what the model returns is from what it returned of the code as it was: what
                `VAT` climbs. Default: `kl_divergence` of the logits, which are what it returns, or "out", or "logits",
                or the first of a list.
            same: Whether, with several layers, the change that is sampled for the first is made at all of them.
            generator: Source of the random numbers.

        Returns:
            A `Change`; with several layers a list of one for each, but for transforms of the whole pass.

        Raises:
            RuntimeError: The model was not called in this context, or without gradients where a saliency is asked for.
            ValueError: The transform asks for what `objective` would give; or with `same`, its parameters do not fit
                every layer.

        Example:
            >>> from latentaug import TargetedChannelMask
            >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2))
            >>> with LatentTap(model, "1") as tap:
            ...     logits = model(torch.randn(2, 1, 16, 16))
            ...     change = tap.draw(TargetedChannelMask(), objective=lambda output: output.square().mean())
            ...     same = torch.equal(tap.replay(change), tap.replay(change.apply(tap.code)))
            >>> same
            True
        """
        capture = self._captured("draw")
        count = len(capture.plan.spots)
        single = not isinstance(transform, Sequence)
        transforms: list[Any] = [transform] * count if single else list(transform)  # type: ignore[arg-type]
        if len(transforms) != count or not all(map(is_sampler, transforms)):
            raise ValueError(
                f"LatentTap.draw needs a transform, or a list of {count}, one for each layer; got {transform!r}."
            )
        if same and not single:
            raise ValueError("LatentTap.draw with same=True needs one transform; got a list.")
        drawing = self._drawing(objective, divergence, generator)
        whole = single and getattr(transform, "whole_pass", False)
        if single and count > 1 and not whole:
            if same:
                return drawing.same(transforms[0])
            if hasattr(transform, "draw_together") and "loss_at" in transforms[0].needs:
                return drawing.together(transform)
        sampled = drawing.each(transforms[:1] if whole else transforms)
        if whole and count > 1 and not (sampled[0].whole_pass or _is_identity(sampled[0])):
            raise ValueError(
                f"LatentTap.draw needs, with {count} layers, a transform that changes the whole pass whatever it "
                f"chooses, or never; got {transform!r}. Pass a list of one for each layer."
            )
        return sampled[0] if len(sampled) == 1 else sampled

    @uncompiled
    def replay(
        self,
        code: New | Sequence[New],
        *,
        objective: Objective | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        full: bool = False,
        detach: bool = False,
        update_stats: bool = False,
    ) -> Any:
        """Run what follows the tap again, with another code, and return what the model returns.

        Uses the inputs, random state, autocast state and grad mode of the captured pass; under `torch.no_grad()` no
        graph is built. The caller's random state is left alone, but for what a transform samples.

        Args:
            code: The new code, shaped like `tap.code`; or a transform, a change, or any callable, that gets the code;
                or None for the code as it is. With several layers a list of these, one for each, or one transform for
                all: the earliest layer's callable gets the captured code, a later one's the code that the replay
                computes there. A transform that changes a whole pass does so at the earliest layer.
            objective: For transforms that ask for it: see `draw`.
            divergence: The same.
            generator: Source of what a transform samples.
            full: Run also what could be skipped; the result is the same.
            detach: Cut the graph of the captured pass off: gradients reach the new code and what follows it only.
                Needed once that graph was freed by a backward pass.
            update_stats: Let the replay move running statistics and other buffers. Default False: they stay.

        Raises:
            RuntimeError: The model was not called in this context; or inputs or weights have changed since.
            ValueError: The code has another shape or device than `tap.code`, or there are not as many as layers; or a
                transform asks for what `objective` would give.
        """
        capture = self._captured("replay")
        count = len(capture.plan.spots)
        if is_sampler(code):
            code = self.draw(code, objective=objective, divergence=divergence, generator=generator)
        if isinstance(code, Sampled) and code.whole_pass:
            return self._replay_whole(capture, code, full=full, detach=detach, update=update_stats)
        if _is_identity(code):  # of a whole pass, which one stands for, however many layers
            code = [None] * count
        given: list[New] = list(code) if isinstance(code, list | tuple) else [code]  # type: ignore[list-item]
        if len(given) != count:
            raise ValueError(f"LatentTap.replay needs {count} codes, one for each layer; got {len(given)}.")
        new = self._drawing(objective, divergence, generator).each(given)
        if any(isinstance(one, Sampled) and one.whole_pass for one in new):
            raise ValueError("LatentTap.replay needs a change of the whole pass by itself; got it in a list of codes.")
        with self._shared.ours():
            return capture.replay(new, full=full, detach=detach, update=update_stats)

    def _replay_whole(self, capture: Capture, change: Sampled, *, full: bool, **how: bool) -> Any:
        """Replay with a change of the whole pass; what a fast replay cannot follow, a full one may."""
        nothing = [None] * len(capture.plan.spots)
        full = full or not capture.plan.kept  # as a plan that keeps nothing was not proved to skip the tapped call

        def unmixed(inputs: Any) -> None:
            captured(self._root, capture.plan, *inputs)[0].replay(nothing, whole=Unmixed(), full=True)

        with self._shared.ours():
            with torch.set_grad_enabled(torch.is_grad_enabled() and capture.grad):
                see_that_rows_are_samples(self._root, (capture.plan.spots, self._call), capture.inputs, unmixed)
            try:
                return capture.replay(nothing, whole=change, full=full, **how)
            except CannotFollow:
                if full or not capture.can_skip():
                    raise
                return capture.replay(nothing, whole=change, full=True, **how)

    def _drawing(
        self, objective: Objective | None, divergence: Divergence | None, generator: torch.Generator | None
    ) -> Drawing:
        def layouts() -> list[Layout]:
            return [layer.layout for layer in self.layers]

        return Drawing(self._captured("draw"), layouts, self._shared.ours, objective, divergence, generator)

    def _captured(self, what: str) -> Capture:
        if self._context is None:
            raise RuntimeError(f"LatentTap.{what} is gone once the context is left. Use it inside the `with` block.")
        if self._capture is None:
            raise RuntimeError(
                f"LatentTap.{what} needs a forward pass of {type(self._root).__name__} in this context first: call the "
                "model itself, not its parts."
            )
        return self._capture

    # Locating -----------------------------------------------------------------------------------------------------

    def _resolve(self, layer: Layer | Sequence[Layer] | None) -> tuple[Layer, ...] | None:
        if layer is None:
            return None
        if not isinstance(layer, str | nn.Module | Location | list | tuple):
            raise TypeError(f"layer must be a dotted name, a module, a Location or a list of them; got {shown(layer)}.")
        layers = (layer,) if isinstance(layer, str | nn.Module | Location) else tuple(layer)
        if not layers:
            raise ValueError("LatentTap needs at least one layer; got an empty list. Pass None for the bottleneck.")
        self._targets = tuple(find_spot(self._root, one) for one in layers)
        return layers

    def _spots(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Spot, ...]:
        """Find the tapped outputs, by a dry run on the first inputs that this model is seen with."""
        key = self._sought
        if key not in self._shared.spots:
            initialise(self._root, args, kwargs)
            if self._targets is None:
                found, reason = self._find(args, kwargs)
                for one in found:
                    taken = str(one), type(self._root).__name__, one.shape, reason
                    logger.info("LatentTap takes %s of %s, a code %s: %s.", *taken)
                self._shared.found[key] = found
                self._shared.spots[key] = {Spot(one.name, one.index): one.shape for one in found}
            else:
                self._shared.spots[key] = complete_spots(self._root, self._targets, self._call, args, kwargs)
        return tuple(self._shared.spots[key])

    @property
    def _sought(self) -> Any:
        return self._targets, self._call, getattr(self._transform, "place", None)

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Location, ...], str]:
        """Find layers where none was named, and say why."""
        if self._transform is None:
            return (bottleneck(self._root, args, kwargs),), "the coarsest that its modules return"
        found = suggest(self._root, args, kwargs, self._transform)
        if not found.layers:
            raise ValueError(f"LatentTap finds no layer for {type(self._transform).__name__}: {found.reason}.")
        return found.layers[-1:] if self._transform.whole_pass else found.layers, found.reason

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """Make the dry runs of all open taps, before the pass of any is under way; return the plan of this one."""
        first = next(self._root.parameters(), None)
        if any(is_batchedtensor(tensor) for _, tensor in tensors_in((args, kwargs, first))):
            raise RuntimeError(
                f"LatentTap cannot follow a pass of {type(self._root).__name__} within torch.func.vmap, whose tensors "
                "hide an axis. Call the model once for each slice, or open the tap outside and stack the inputs."
            )
        with self._shared.ours():
            taps = filter(None, (reference() for reference in self._shared.open))
            return {tap: tap._plan(args, kwargs) for tap in taps}[self]

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        spots = self._spots(args, kwargs)
        key = self._key(spots)
        if key not in self._shared.plans:
            self._shared.plans[key] = make_plan(self._root, spots, self._call, args, kwargs)
        return self._shared.plans[key]

    def _key(self, spots: tuple[Spot, ...]) -> Any:
        modes = tuple([module.training for module in submodules(self._root)])
        return spots, self._call, modes, saving_now() == "packed"


@contextmanager
def _prepared(root: nn.Module, before: Handler) -> Iterator[None]:
    """Call something before the model's own hooks of each pass."""
    hook = Override("", lambda *_: None, before)
    handle = root.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _uncopied(root: nn.Module, shared: PlanCache) -> Iterator[None]:
    """Refuse `copy.copy` of a tapped model, which would share what stands in for its parts."""

    def refuse(protocol: Any) -> Any:
        asked_by_copy = sys._getframe(1).f_globals.get("__name__") == "copy"
        raise RuntimeError(LIVE.format("copied" if asked_by_copy else "pickled"))

    root.__dict__["__reduce_ex__"] = refuse
    try:
        yield
    finally:
        if not any(one() for one in shared.open):
            root.__dict__.pop("__reduce_ex__", None)


def _is_identity(change: object) -> bool:
    return isinstance(change, Sampled) and bool(getattr(change, "is_identity", False))


def _learning(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def _image_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    image = image_in((args, kwargs))
    return () if image is None else tuple(image.shape)


def _location(spot: Spot, shape: tuple[int, ...], image: tuple[int, ...], given: Layer | None) -> Location:
    if isinstance(given, Location):
        return given._replace(name=spot.name, index=spot.path, shape=shape)
    return Location(spot.name, spot.path, *layout_of(spot.name, shape, image))
