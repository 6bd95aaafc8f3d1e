"""Change codes within the user's own pass: the layer returns the changed code, at the cost of the change alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from latentaug.layout import Layout
from latentaug.tap.capture import modules_down_to
from latentaug.tap.latent_tap import Layer, Sampled, Sampler, compiled_wrappers, layout_of
from latentaug.tap.whole_pass import ChangedReads
from latentaug.tracing.intercept import is_compiled, stand_in
from latentaug.tracing.location import Location, find_spot, image_in, spot_in, unwrap
from latentaug.tracing.tree import item_at, map_tensors

Criterion = Callable[[Any, Tensor], Tensor]


def augmented(
    model: nn.Module, transforms: Mapping[Layer, Sampler], *, generator: torch.Generator | None = None
) -> Augmented:
    """Let layers of a model return changed codes, in the user's own pass: one pass, whatever the transform.

    Within the context, or from `attach` on, a tapped layer returns its code changed wherever it is in train mode, and
    its code itself in eval mode. Name the module itself ("encoder.layer1") to change all that follows; an index into
    what a module returns ("encoder[2]") changes what its reader gets, in a U-Net the skip connection.

    Args:
        model: Any `nn.Module`; also wrapped for distributed training. Submodules that are compiled stay so, but for
            those that hold a tapped layer; a model that is compiled as a whole runs uncompiled meanwhile.
        transforms: Transforms by layers: dotted names, modules or `Location`s. A transform that changes a whole pass,
            as `ManifoldMixup` does, at one layer only.
        generator: Source of the random numbers. Default: PyTorch's global CPU generator.

    Raises:
        ValueError: The model has no such layer, or there is none.
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

    def __init__(
        self, model: nn.Module, transforms: Mapping[Layer, Sampler], generator: torch.Generator | None = None
    ) -> None:
        if not isinstance(transforms, Mapping) or not transforms:
            raise ValueError(f"augmented needs `transforms`, a dict from layer to transform; got {transforms!r}.")
        self._model = model
        self._root = unwrap(model)
        self._generator = generator
        self._layers = [_Layer(self._root, layer, transform) for layer, transform in transforms.items()]
        self._whole = [layer for layer in self._layers if layer.transform.whole_pass]
        if len(self._whole) > 1:
            raise ValueError("augmented needs at most one transform that changes a whole pass; got more.")
        if len({(layer.name, layer.path) for layer in self._layers}) < len(self._layers):
            raise ValueError("augmented needs different layers; got one twice. Use Compose for several transforms.")
        self._changes: dict[str, Sampled] = {}
        self._image: tuple[int, ...] = ()
        self._reads: ChangedReads | None = None
        self._undo: Callable[[], None] | None = None

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
        for change in reversed(self._changes.values()):
            criterion = functools.partial(getattr(change, "loss"), criterion)  # noqa: B009 - not part of `Sampled`
        return criterion(logits, labels)

    def attach(self) -> Self:
        """Change the codes of every pass from now on, until `remove` is called; for loops that one does not own."""
        self.__enter__()
        return self

    def remove(self) -> None:
        """Leave the model as it was; may be called again."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo()
        self._changes = {}

    def __enter__(self) -> Self:
        if self._undo is not None:
            raise RuntimeError("This `augmented` is at work already. Leave it, or remove it, first.")
        modules: dict[str, nn.Module] = {f"wrapper {i}": one for i, one in enumerate(compiled_wrappers(self._model))}
        for layer in self._layers:
            modules |= {name: one for name, one in modules_down_to(self._root, layer.name) if is_compiled(one)}
            modules[layer.name] = layer.module
        self._undo = stand_in({**modules, "": self._root}, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Augmented:
        raise TypeError("What `augmented` returns cannot be copied: call `augmented` on the copied model.")

    # Standing in --------------------------------------------------------------------------------------------------

    def _handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layers = [layer for layer in self._layers if layer.name == name]
        run = functools.partial(self._tapped, layers, original) if layers else original
        return self._pass(run, args, kwargs) if name == "" else run(*args, **kwargs)

    def _pass(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a pass of the model."""
        if torch._C._current_graph_task_id() != -1:  # the model as a whole is computed again by checkpointing
            return original(*args, **kwargs)
        self._changes = {}
        image = image_in((args, kwargs))
        self._image = () if image is None else tuple(image.shape)
        if not any(layer.module.training for layer in self._whole):
            return original(*args, **kwargs)
        reads = self._reads = ChangedReads(self._root, grad=torch.is_grad_enabled())
        try:
            with reads.watching():
                reads.add((args, kwargs))
                return map_tensors(original(*args, **kwargs), reads.read)
        finally:
            self._reads = None

    def _tapped(self, layers: list[_Layer], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a tapped layer, and change what it returns."""
        output = original(*args, **kwargs)
        if not layers[0].module.training:
            return output
        again = torch._C._current_graph_task_id() != -1  # by activation checkpointing, in the backward pass
        if self._generator is not None and (again or _is_checkpointed()):
            raise RuntimeError(
                f"{layers[0].name or 'the model'!r} is in a part of {type(self._root).__name__} that is checkpointed: "
                "its backward pass would sample from `generator` anew. Leave `generator` out, as checkpointing "
                "restores PyTorch's global stream."
            )
        put: dict[int, Tensor] = {}
        for layer in layers:
            code = layer.code_in(output)
            change = layer.transform(
                code, layout=layer.layout(code, self._image), generator=self._generator, training=True
            )
            if not again:
                self._changes[layer.label] = change
            if not change.whole_pass:
                put[id(code)] = change.apply(code)
            elif self._reads is None:
                raise RuntimeError(
                    f"{type(layer.transform).__name__} changes a whole pass, but {layer.label!r} was called by itself. "
                    f"Call {type(self._root).__name__}, or use a transform of the code alone."
                )
            else:
                self._reads.add(output)
                self._reads.begin(change, batch=len(code))
        return map_tensors(output, lambda tensor: put.get(id(tensor), tensor)) if put else output


class _Layer:
    """One layer, and the transform of its code."""

    def __init__(self, root: nn.Module, layer: Layer, transform: Sampler) -> None:
        if not isinstance(transform, Sampler) or not isinstance(transform, nn.Module):
            raise TypeError(f"augmented needs a transform for {str(layer)!r}; got {transform!r}. Pass an instance.")
        if transform.needs:
            raise TypeError(
                f"{type(transform).__name__} asks for the {transform.needs[0]}, for which one pass is not enough. "
                "Replay it: LatentTap(model, layer) and tap.replay(transform, objective=...)."
            )
        self.transform: Any = transform
        self.name, self.path = find_spot(root, layer)
        self.module = root.get_submodule(self.name)
        self.label = str(layer) if isinstance(layer, str | Location) else self.name
        self._given = layer if isinstance(layer, Location) else None

    def code_in(self, output: Any) -> Tensor:
        """Return the code in what the layer returned."""
        code: Tensor = item_at(output, spot_in(self.name, self.path, output).path)
        return code

    def layout(self, code: Tensor, image: tuple[int, ...]) -> Layout:
        """Return the code's layout."""
        if self._given is not None:
            return self._given.layout
        if self.transform.whole_pass or not image:
            return Layout()
        return layout_of(self.name, tuple(code.shape), image)[0]


def _is_checkpointed() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
