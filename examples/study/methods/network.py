"""The network that is trained: the paper's, or any from a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from latentaug import FTN, CooperativeModel
from study.data.frame import DataError
from study.methods.pretrained import load_encoder, load_trained

PAPERS = "FTN"
HEADS: Mapping[str, Any] = {"reconstruction": True, "shape_prior": True}
"""Arguments of `CooperativeModel` that put the paper's two heads beside any network."""


class Sizes(Protocol):
    """What a network is sized by; a preset says it."""

    @property
    def classes(self) -> int:
        """Labels, the background included."""

    @property
    def side(self) -> int:
        """Side of the images."""

    @property
    def width(self) -> int:
        """Channels of the first level of the paper's network."""

    @property
    def depth(self) -> int:
        """Levels of the paper's network."""


@dataclass(frozen=True)
class Network:
    """Which network to train, and where its latent codes are.

    Args:
        name: "FTN", the paper's; or library:Architecture:encoder, such as "smp:Unet:resnet34" from
            segmentation-models-pytorch, without the encoder for the library's own choice.
        layers: Names of the layers to mask in segmentations; empty for what the network declares or is found.
        image_code: Name of the layer that images are reconstructed from; None for what it declares or is found.
        encoder_weights: What the library calls the weights that the encoder starts from; None for random ones.
        pretrained: File with weights of the encoder, alone or within those of a network.
        start: Checkpoint of a run's training, which the network alone starts from; "{draw}" in it is the draw.

    Raises:
        DataError: the name has another form, or the paper's network is given weights.
    """

    name: str = PAPERS
    layers: tuple[str, ...] = ()
    image_code: str | None = None
    encoder_weights: str | None = None
    pretrained: Path | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        library, _, rest = self.name.partition(":")
        if self.name != PAPERS and (library != "smp" or not 0 <= rest.count(":") <= 1 or not all(rest.split(":"))):
            raise DataError(
                f"--model must be {PAPERS} or smp:Architecture:encoder, such as smp:Unet:resnet34; got {self.name!r}. "
                "Correct it."
            )
        if self.name == PAPERS and self.encoder_weights is not None:
            raise DataError(f"--encoder-weights {self.encoder_weights}: the {PAPERS} has none. Pass --model too.")
        if self.name == PAPERS and self.pretrained is not None:
            raise DataError(f"--pretrained {self.pretrained}: the {PAPERS} has no encoder of others. Pass --model too.")

    @property
    def stages(self) -> tuple[str, str]:
        """What the table calls the network alone, and the network corrected by the shape prior."""
        short = self.name.split(":")[1] if ":" in self.name else self.name
        return short, f"{short}+STN"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by their flags' names."""
        return {
            "model": self.name,
            "layers": [*self.layers],
            "image_code": self.image_code,
            "encoder_weights": self.encoder_weights,
            **({"pretrained": str(self.pretrained)} if self.pretrained else {}),
            **({"start": self.start} if self.start else {}),
        }

    def build(self, sizes: Sizes, options: Mapping[str, Any]) -> CooperativeModel:
        """Make the network with its heads, from PyTorch's global random stream.

        Args:
            sizes: Sizes of the images and of the paper's network.
            options: Further arguments of `CooperativeModel`.

        Raises:
            DataError: there is no such network or layer, or images of this size don't suit it.
        """
        network = self._network(sizes)
        example = torch.zeros(2, 1, sizes.side, sizes.side)
        codes = {"image": self.image_code, "shape": [*self.layers] or None}
        if not options.get("reconstruction") and self.name != PAPERS:
            del codes["image"]  # images are not decoded
        named = {name: code for name, code in codes.items() if code is not None}
        try:
            return CooperativeModel(
                network, num_classes=sizes.classes, example=example, codes=named, image_range=(0, 1), **options
            )
        except (ValueError, TypeError, RuntimeError) as error:
            where = f" with --layers {' '.join(self.layers)}" if self.layers else ""
            where += f" with --image-code {self.image_code}" if self.image_code else ""
            raise DataError(
                f"--model {self.name}{where} cannot be trained on images of {sizes.side} x {sizes.side}: "
                f"{_one_line(error)} Change it, or the images' size by --image-size, --crop and --halve."
            ) from None

    def load_start(self, network: nn.Module, draw: int) -> None:
        """Load the weights that a training of a draw starts from, if any.

        Raises:
            DataError: there is no such file, or it is of another network.
        """
        if self.start is not None:
            load_trained(network, Path(self.start.replace("{draw}", str(draw))))

    def _network(self, sizes: Sizes) -> nn.Module:
        if self.name == PAPERS:
            return FTN(num_classes=sizes.classes, width=sizes.width, depth=sizes.depth)
        try:
            import segmentation_models_pytorch as smp
        except ImportError:
            raise DataError(
                f"--model {self.name} needs the package segmentation-models-pytorch. Install it, or leave --model out."
            ) from None
        _, architecture, *encoder = self.name.split(":")
        names = {"arch": architecture} | ({"encoder_name": encoder[0]} if encoder else {})
        try:
            network = smp.create_model(
                **names, encoder_weights=self.encoder_weights, in_channels=1, classes=sizes.classes
            )
        except Exception as error:  # whatever the library, or those that it asks for weights, may raise
            raise DataError(f"--model {self.name} cannot be made: {_one_line(error)} Correct it.") from None
        if self.pretrained is not None:
            load_encoder(network, self.pretrained)
        return network


def _one_line(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    text = text if len(text) < 400 else f"{text[:400]} …"
    return text if text.endswith(".") else f"{text}."
