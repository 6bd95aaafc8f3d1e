"""Change codes within the user's own pass: the layer returns the changed code, at the cost of the change alone."""

from __future__ import annotations

import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from latentaug.discovery.suggest import IMAGE, suggest
from latentaug.layout import Layout
from latentaug.tap.capture import modules_down_to
from latentaug.tap.plan_cache import cache_of
from latentaug.tap.sampling import Layer, Sampled, Sampler
from latentaug.tap.whole_pass import (
    ChangedReads,
    Unmixed,
    has_its_own_backward,
    is_checkpointed,
    see_that_rows_are_samples,
)
from latentaug.tracing.compiled import uncompiled
from latentaug.tracing.intercept import Override, is_compiled, stand_in
from latentaug.tracing.location import Location, compiled_wrappers, find_spot, image_in, layout_of, spot_in, unwrap
from latentaug.tracing.tree import item_at, map_tensors

logger = logging.getLogger("latentaug")

Criterion = Callable[[Any, Tensor], Tensor]
Transforms: TypeAlias = Mapping[Layer | tuple[Layer, ...], Sampler]
"""Transforms by layers, each of them a layer or a tuple of several."""


def augmented(
    model: nn.Module, transforms: Transforms | Sampler, *, generator: torch.Generator | None = None
) -> Augmented:
    """Let layers of a model return changed codes, in the user's own pass: one pass, whatever the transform.

    Within the context, or from `attach` on, a tapped layer returns its code changed wherever it is in train mode, and
    its code itself in eval mode. Name the module itself ("encoder.layer1") to change all that follows; an index into
    what a module returns ("encoder[2]") changes what its reader gets, in a U-Net the skip connection.

    Args:
        model: Any `nn.Module`; also wrapped for distributed training. Submodules that are compiled stay so, but for
            those that hold a tapped layer; a model that is compiled as a whole, before or meanwhile, runs uncompiled
            as long.
        transforms: Transforms by layers: dotted names, modules or `Location`s. One transform at several layers samples
            for each; under a tuple of layers, it samples at the first of them that a pass comes to, and the same change
            is made at all. A transform that changes a whole pass, as `ManifoldMixup` does, at one layer only. A
            transform by itself goes to the layers that `suggest_layers` names, found on the first pass and logged once,
            and samples for each anew; one that changes a whole pass to the last of them.
        generator: Source of the random numbers. Default: PyTorch's global CPU generator.

    Raises:
        ValueError: The model has no such layer, or there is none; or a transform of images is to find one.
        TypeError: A transform asks for a saliency or a loss, for which one pass is not enough: use `LatentTap`.

    Example:
        >>> from latentaug import MixStyle
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> images, labels = torch.randn(4, 1, 8, 8), torch.randint(2, (4, 8, 8))
        >>> with augmented(model, {"0": MixStyle()}) as run:
        ...     loss = run.loss(nn.functional.cross_entropy, model(images), labels)
        >>> attached = augmented(model, {"0": MixStyle()}).attach()
        >>> logits = model(images)
        >>> attached.remove()
    """
    return Augmented(model, transforms, generator)


class Augmented:
    """What `augmented` returns: a context manager, or with `attach` a handle to remove."""

    @uncompiled
    def __init__(
        self,
        model: nn.Module,
        transforms: Transforms | Sampler,
        generator: torch.Generator | None = None,
    ) -> None:
        self._model = model
        self._root = unwrap(model)
        self._generator = generator
        self._unplaced = _unplaced(transforms)
        self._set(transforms if self._unplaced is None else {})
        self._changes: list[tuple[str, Any]] = []
        self._shared: dict[bool, dict[Any, tuple[_Layer, Any]]] = {False: {}, True: {}}  # by whether a pass is a tap's
        self._image: tuple[int, ...] = ()
        self._reads: ChangedReads | None = None
        self._proving = False
        self._streams: deque[int] = deque(maxlen=_STREAMS)
        self._differentiable = False
        self._expected: Counter[bool] = Counter()  # of checkpointed calls: whether they were computed again
        self._lost = False  # whether none was, so that a later backward pass would be of another function
        self._undo: Callable[[], None] | None = None

    def _set(self, transforms: Any) -> None:
        if not isinstance(transforms, Mapping) or not (transforms or self._unplaced):
            raise ValueError(
                f"augmented needs `transforms`, a dict from layer to transform, or a transform; got {transforms!r}."
            )
        self._layers = [
            _Layer(self._root, layer, transform, together=layers if len(layers) > 1 else None)
            for layers, transform in ((_several(given), transform) for given, transform in transforms.items())
            for layer in layers
        ]
        self._whole = [layer for layer in self._layers if layer.transform.whole_pass]
        if len(self._whole) > 1:
            raise ValueError("augmented needs at most one transform that changes a whole pass; got more.")
        if len({(layer.name, layer.path) for layer in self._layers}) < len(self._layers):
            raise ValueError("augmented needs different layers; got one twice. Use Compose for several transforms.")

    # Using --------------------------------------------------------------------------------------------------------

    @property
    def changes(self) -> dict[str, Sampled]:
        """The changes of the last pass, by the names of their layers; those that were left alone are not there."""
        return dict(self._changes)

    def loss(self, criterion: Criterion, logits: Any, labels: Tensor) -> Tensor:
        """Return the loss of the last pass: the criterion's, but where a transform mixed labels.

        Args:
            criterion: Callable (logits, labels) -> scalar.
            logits: What the model returned; whatever the criterion takes.
            labels: Labels of the samples as they are.
        """
        for _, change in reversed(self._changes):
            criterion = functools.partial(change.loss, criterion)
        return criterion(logits, labels)

    @uncompiled
    def attach(self) -> Self:
        """Change the codes of every pass from now on, until `remove` is called; for loops that one does not own."""
        self.__enter__()
        return self

    @uncompiled
    def remove(self) -> None:
        """Leave the model as it was; may be called again."""
        try:
            if self._undo is not None:
                self._undo()
            self._undo = None
            self._lost = self._expected[False] > 0 and not self._expected[True]
            self._changes, self._expected = [], Counter()
        except KeyboardInterrupt:
            self.remove()
            raise

    @uncompiled
    def __enter__(self) -> Self:
        if self._undo is not None:
            raise RuntimeError("This `augmented` is at work already. Leave it, or remove it, first.")
        modules: dict[str, nn.Module] = {f"wrapper {i}": one for i, one in enumerate(compiled_wrappers(self._model))}
        modules |= {**self._tapped_modules(), "": self._root}
        try:
            self._undo = stand_in(modules, self._handle, self._note)
            return self
        except BaseException:
            self.remove()
            raise

    def _note(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    @uncompiled
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
        if self._lost and error is None:
            raise RuntimeError(
                f"A layer of {type(self._root).__name__} that is augmented is in a part that is checkpointed: the "
                "backward pass computes it again, and without its change once `augmented` has ended. Call backward() "
                "within the `with` block; passes that need none belong under torch.no_grad()."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Augmented:
        raise TypeError("What `augmented` returns cannot be copied: call `augmented` on the copied model.")

    # Placing ------------------------------------------------------------------------------------------------------

    def _tapped_modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for layer in self._layers:
            modules |= {name: one for name, one in modules_down_to(self._root, layer.name) if is_compiled(one)}
            modules[layer.name] = layer.module
        return modules

    def _put(self, transform: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put a transform where its paper does, by dry runs on what the first pass is given."""
        name, shared = type(transform).__name__, cache_of(self._root)
        if any(type(module.__dict__.get("forward")) is Override for module in list(self._root.modules())[1:]):
            raise RuntimeError(
                f"augmented finds layers for {name} on its first pass, which a LatentTap opened later captures as it "
                f"was. Open the tap first, or name them: suggest_layers({type(self._root).__name__}, images, {name}())."
            )
        key = name, getattr(transform, "place", "")
        if key not in shared.suggested:
            with shared.ours():
                shared.suggested[key] = suggest(self._root, args, kwargs, transform)
            logger.info("augmented puts %s of %s at %s.", name, type(self._root).__name__, shared.suggested[key])
        layers = shared.suggested[key].layers
        self._set(dict.fromkeys(layers[-1:] if transform.whole_pass else layers, transform))
        self._unplaced = None
        remove_root, remove_layers = self._undo, stand_in(self._tapped_modules(), self._handle)

        def undo() -> None:
            remove_layers()
            if remove_root is not None:
                remove_root()

        self._undo = undo

    # Standing in --------------------------------------------------------------------------------------------------

    def _handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layers = [layer for layer in self._layers if layer.name == name]
        run = functools.partial(self._tapped, layers, original) if layers else original
        return self._pass(run, args, kwargs) if name == "" else run(*args, **kwargs)

    def _pass(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a pass of the model."""
        if _is_again():  # checkpointing computes the model as a whole again
            return original(*args, **kwargs)
        shared = cache_of(self._root)
        if not shared.busy:  # a tap's own passes are none of the user's
            self._changes = []
            if self._unplaced is not None:
                self._put(self._unplaced, args, kwargs)
        self._shared[shared.busy] = {}
        self._differentiable = torch.is_grad_enabled() and not shared.busy
        image = image_in((args, kwargs))
        self._image = () if image is None else tuple(image.shape)
        try:
            if not any(layer.module.training for layer in self._whole):
                return original(*args, **kwargs)
            self._refuse_what_would_not_mix(tapped=any(reference() for reference in shared.open))
            see_that_rows_are_samples(
                self._root,
                ("augmented", self._whole[0].name, self._whole[0].path),
                (args, kwargs),
                lambda inputs: self._watched(original, *inputs, proving=True),
            )
            return self._watched(original, args, kwargs)
        finally:
            self._image = ()

    def _watched(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, proving: bool = False
    ) -> Any:
        """Run a pass that is to be changed as a whole; or one that only shows whether it can be."""
        reads = self._reads = ChangedReads(self._root, grad=torch.is_grad_enabled())
        self._proving = proving
        try:
            with reads.watching():
                reads.add((args, kwargs))
                return reads.finished(original(*args, **kwargs))
        finally:
            self._reads, self._proving = None, False

    def _tapped(self, layers: list[_Layer], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a tapped layer, and change what it returns."""
        again, ours = _is_again(), self._proving or cache_of(self._root).busy
        acts = layers[0].module.training
        self._expected[True] += acts and again  # before the call, which checkpointing ends once it has all it needs
        output = original(*args, **kwargs)
        if not acts:
            return output
        self._follow_the_stream(layers[0], again)
        of_codes = not all(layer.transform.whole_pass for layer in layers)  # others mix outside of such parts
        if of_codes and self._differentiable and not (again or ours) and is_checkpointed():
            self._expected[False] += 1
        put: dict[int, Tensor] = {}
        for layer in layers:
            code = layer.code_in(output)
            if id(code) in put:
                raise ValueError(f"augmented needs different codes; got that of {layer.label!r} at two layers.")
            if self._proving and not layer.transform.whole_pass:
                continue
            change = self._sampled(layer, code)
            if not (again or ours):
                self._changes.append((layer.label, change))
            put[id(code)] = code if again and change.whole_pass else self._changed(layer, change, output, code)
        return map_tensors(output, lambda tensor: put.get(id(tensor), tensor)) if put else output

    def _sampled(self, layer: _Layer, code: Tensor) -> Any:
        if self._proving:
            return Unmixed()
        layout = layer.layout(code, self._image, self._root)
        ours = cache_of(self._root).busy
        for passes in (ours, False):  # of a replay, what its own pass came to, and what it has skipped
            sampled_by, change = self._shared[passes].get(layer.together, (layer, None))
            if sampled_by is not layer:
                return change.on(layout)
        change = layer.transform(code, layout=layout, generator=self._generator, training=True)
        if layer.together is not None:
            self._shared[ours][layer.together] = layer, change
        return change

    def _changed(self, layer: _Layer, change: Any, output: Any, code: Tensor) -> Tensor:
        if not change.whole_pass:
            try:
                changed: Tensor = change.apply(code)
            except (RuntimeError, ValueError) as error:
                if layer.together is None:
                    raise
                raise ValueError(
                    f"{layer.label!r} shares a change of {type(layer.transform).__name__} with other layers, which "
                    f"does not fit its code {tuple(code.shape)}: {error} Give it a change of its own."
                ) from error
            return changed
        if self._reads is None:
            raise RuntimeError(
                f"{type(layer.transform).__name__} changes a whole pass, but {layer.label!r} was called by itself. "
                f"Call {type(self._root).__name__}, or use a transform of the code alone."
            )
        self._reads.add(output)
        self._reads.begin(change, code)
        return self._reads.returned(code)

    # Refusing -----------------------------------------------------------------------------------------------------

    def _follow_the_stream(self, layer: _Layer, again: bool) -> None:
        """See that checkpointing, which computes a layer again in the backward pass, samples the same again."""
        where = f"{layer.name or 'the model'!r} of {type(self._root).__name__}"
        if again and layer.together is not None:
            raise RuntimeError(
                f"{where} is in a part that is checkpointed, and shares its change with other layers, to which the "
                "backward pass does not come in order. Give each layer a change of its own."
            )
        if self._generator is not None:
            if again or has_its_own_backward():
                raise RuntimeError(
                    f"{where} is in a part that is checkpointed: its backward pass would sample from `generator` anew. "
                    "Leave `generator` out, as checkpointing restores PyTorch's global stream."
                )
            if any(reference() for reference in cache_of(self._root).open):
                raise RuntimeError(
                    f"{where} is augmented from a `generator` while a LatentTap is open, whose replays would sample "
                    "anew. Leave `generator` out, as replays restore PyTorch's global stream."
                )
            return
        stream = hash(torch.get_rng_state().numpy().tobytes())
        if not again:
            self._streams.append(stream)
        elif stream not in self._streams:
            raise RuntimeError(
                f"{where} is checkpointed without the random state, so that its backward pass samples anew. Pass "
                "preserve_rng_state=True to the checkpointing."
            )

    def _refuse_what_would_not_mix(self, *, tapped: bool) -> None:
        name = type(self._whole[0].transform).__name__
        if has_its_own_backward():
            raise RuntimeError(
                f"{name} changes a whole pass, but {type(self._root).__name__} as a whole is checkpointed: the "
                "backward pass would not mix. Use a transform of the code alone, or leave activation checkpointing."
            )
        if tapped:
            raise RuntimeError(
                f"{name} changes a whole pass, of which replays would see the tapped code alone. Leave the LatentTap "
                f"first; or replay with it: tap.replay({name}())."
            )
        if any(not _is_of_torch(hook) for hook in self._root._forward_hooks.values()):
            raise RuntimeError(
                f"{name} changes a whole pass, but forward hooks of {type(self._root).__name__} itself would see its "
                "inputs as they were. Remove them, or register them on a module that holds the model."
            )


def _unplaced(transforms: Any) -> Any:
    """Return a transform that came without a layer; None where layers were named."""
    if not isinstance(transforms, Sampler) or not isinstance(transforms, nn.Module):
        return None
    _refuse_what_one_pass_cannot_give(transforms)
    if getattr(transforms, "place", "") == IMAGE:
        name = type(transforms).__name__
        raise ValueError(f"{name} belongs on the images, before the model: call model({name}().augment(images)).")
    return transforms


def _refuse_what_one_pass_cannot_give(transform: Sampler) -> None:
    if transform.needs:
        raise TypeError(
            f"{type(transform).__name__} asks for the {transform.needs[0]}, for which one pass is not enough. "
            "Replay it: LatentTap(model, layer) and tap.replay(transform, objective=...)."
        )


class _Layer:
    """One layer, and the transform of its code."""

    def __init__(
        self, root: nn.Module, layer: Layer, transform: Sampler, together: tuple[Layer, ...] | None = None
    ) -> None:
        if not isinstance(transform, Sampler) or not isinstance(transform, nn.Module):
            raise TypeError(f"augmented needs a transform for {str(layer)!r}; got {transform!r}. Pass an instance.")
        _refuse_what_one_pass_cannot_give(transform)
        if together is not None and transform.whole_pass:
            raise ValueError(f"{type(transform).__name__} changes a whole pass, from one layer on; got {together!r}.")
        self.transform: Any = transform
        self.together = together
        self.name, self.path = find_spot(root, layer)
        self.module = root.get_submodule(self.name)
        self.label = str(layer) if isinstance(layer, str | Location) else self.name
        self._given = layer if isinstance(layer, Location) else None
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def code_in(self, output: Any) -> Tensor:
        """Return the code in what the layer returned."""
        code: Tensor = item_at(output, spot_in(self.name, self.path, output).path)
        return code

    def layout(self, code: Tensor, image: tuple[int, ...], root: nn.Module) -> Layout:
        """Return the code's layout; outside of a pass, that of a code like it."""
        if self._given is not None:
            return self._given.layout
        if self.transform.any_layout:
            return Layout()
        shape = tuple(code.shape)
        if image:
            self._layouts[shape] = layout_of(self.name, shape, image)[0]
        if shape not in self._layouts:
            raise RuntimeError(
                f"augmented cannot tell channels from spatial positions in a code {shape} of {self.label!r}, which was "
                f"called without an image. Call {type(root).__name__} itself, or pass a Location as the layer."
            )
        return self._layouts[shape]


def _several(layers: Layer | tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers of a key: a `Location`, which is a tuple too, is one."""
    return layers if isinstance(layers, tuple) and not isinstance(layers, Location) else (layers,)


_STREAMS = 4096  # states of the random stream that are kept: as many layers as passes before a backward pass may hold


def _is_again() -> bool:
    """Tell whether this is a backward pass, in which activation checkpointing computes a layer again."""
    return torch._C._current_graph_task_id() != -1


def _is_of_torch(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.")
