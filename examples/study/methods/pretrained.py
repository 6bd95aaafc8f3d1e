"""Weights that a network starts from: an encoder's, or those of a whole network that was trained before."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from study.data.frame import DataError
from study.data.plain_files import open_file

_NESTED = ("state_dict", "model", "model_state_dict")  # where checkpoints have the weights
_PREFIXES = ("encoder.", "model.encoder.", "module.encoder.", "backbone.", "module.", "")


def load_encoder(network: nn.Module, file: Path) -> None:
    """Load weights into the encoder of a network, which has it as `encoder`.

    The file holds a state dict of the encoder, alone or as part of a network's, as torchvision, timm and
    segmentation-models-pytorch write them. Where it was trained on three channels, and the images have one, the first
    layer's weights are summed over channels, so that a grey image gives what it gave as a coloured one.

    Raises:
        DataError: the file can't be read, or lacks weights of the encoder, or has others.
    """
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    own, found = encoder.state_dict(), _read(file, "--pretrained")
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in found for name in own))
    given = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    given = {name: _to_channels(value, own[name]) for name, value in given.items() if name in own}
    if lacking := [name for name in own if name not in given and not name.endswith("num_batches_tracked")]:
        raise DataError(f"--pretrained {file}: lacks {lacking[0]}, and {len(lacking)} weights in all, of the encoder.")
    if other := [name for name, value in given.items() if value.shape != own[name].shape]:
        shapes = f"{tuple(given[other[0]].shape)}, not {tuple(own[other[0]].shape)}"
        raise DataError(f"--pretrained {file}: {other[0]} has the shape {shapes}. Pass weights of the same encoder.")
    _load(encoder, given, f"--pretrained {file}", strict=False)


def load_trained(network: nn.Module, file: Path) -> None:
    """Load the weights of a whole network: its state dict, or a checkpoint of a run's training.

    Raises:
        DataError: the file can't be read, or is of another network.
    """
    found = _read(file, "--start")
    if any(name.startswith("model.") for name in found):  # what a run keeps: the network, and what stood beside it
        found = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    _load(network, found, f"--start {file}")


def _load(module: nn.Module, weights: Mapping[str, Tensor], what: str, *, strict: bool = True) -> None:
    own = module.state_dict()
    for name, value in weights.items():
        if name in own and own[name].is_floating_point() != value.is_floating_point():
            raise DataError(f"{what}: {name} is of {value.dtype}, not {own[name].dtype}. Pass weights of this network.")
    try:
        module.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{what}: these are no weights of the network ({reason}). Correct --model.") from None


def _read(file: Path, flag: str) -> dict[str, Tensor]:
    try:
        with open_file(file) as opened:
            if zipfile.is_zipfile(opened) and (damaged := zipfile.ZipFile(opened).testzip()) is not None:
                raise ValueError(f"it is damaged, in {damaged}")
            opened.seek(0)
            content: Any = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is none may raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{flag} {file}: cannot be read ({reason}). Pass a file of weights, by torch.save.") from None
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    items = content.items() if isinstance(content, Mapping) else ()
    found = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not found:
        raise DataError(f"{flag} {file}: holds no weights. Pass a file with a state dict.")
    for name, value in found.items():
        if value.is_complex() or not (value.is_meta or value.isfinite().all()):
            raise DataError(f"{flag} {file}: {name} is complex or not finite. Pass another checkpoint.")
    return found


def _to_channels(weight: Tensor, own: Tensor) -> Tensor:
    """Sum weights of several input channels where there is but one."""
    fits = weight.ndim == own.ndim > 2 and own.shape[1] == 1 < weight.shape[1] and weight.shape[0] == own.shape[0]
    return weight.sum(1, keepdim=True) if fits else weight
