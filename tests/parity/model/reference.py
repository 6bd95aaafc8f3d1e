"""The authors' networks and one of their training iterations, as numbers."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentaug.nets.ftn import FTN
from latentaug.nets.heads import ShapePrior

FOLDER = Path(os.environ.get("LATENTAUG_GOLDEN_DIR") or Path(__file__).parents[1] / "data")
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
# From the authors' names to ours, in this order.
RENAMED = [
    (r"^image_encoder\.general_encoder", "model.encoder"),
    (r"^image_encoder\.code_decoupler", "model.decoupler.body"),
    (r"^segmentation_decoder", "model.segmentation_decoder"),
    (r"^image_decoder", "model.image_decoder.decoder"),
    (r"^shape_", "shape_prior."),
    (r"\.inc\.", ".stem."),
    (r"\.(?:down|up)(\d+)\.", lambda match: f".blocks.{int(match[1]) - 1}."),
    (r"\.down\.", ".downsample."),
    (r"\.up\.", ".upsample."),
    (r"\.conv\.", ".body."),
    (r"\.conv_input\.", ".shortcut."),
    (r"\.final_conv\.", ".projection."),
]


def translated(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


class Reference:
    """What the authors' code computed with one network in one precision."""

    def __init__(self, network: str, precision: str) -> None:
        self.network, self.precision, self.dtype = network, precision, DTYPES[precision]
        self._arrays = np.load(FOLDER / f"model_{network}_{precision}.npz")
        with np.load(FOLDER / f"state_{network}.npz") as state:
            self.state = {translated(name): torch.from_numpy(state[name]) for name in state.files}
        self.names = self._arrays.files

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])

    def strings(self, name: str) -> list[str]:
        return [translated(entry) for entry in self._arrays[name]]

    def buffers(self, stage: str) -> dict[str, Tensor]:
        """Buffers of the normalisation layers after a stage."""
        prefix = f"bn_{stage}__"
        return {translated(name.removeprefix(prefix)): self[name] for name in self.names if name.startswith(prefix)}

    @cached_property
    def settings(self) -> list[str]:
        """The five settings of the hard pass, as in c0_img-channel_seg-channel_p0.5000."""
        return sorted({name.split("__")[0] for name in self.names if re.match(r"c\d_", name)})

    @property
    def images(self) -> Tensor:
        return self["clean_image"].to(self.dtype)

    @property
    def noisy_images(self) -> Tensor:
        return self["noisy_image"].to(self.dtype)

    @property
    def labels(self) -> Tensor:
        return self["label"].long()

    def networks(self) -> nn.ModuleDict:
        """Build the five networks, with the authors' weights, from the public classes."""
        width, in_channels = self.state["model.encoder.stem.0.weight"].shape[:2]
        num_classes = self.state["shape_prior.encoder.stem.0.weight"].shape[1]
        depth = sum(
            re.fullmatch(r"model\.encoder\.blocks\.\d+\.shortcut\.weight", name) is not None for name in self.state
        )
        networks = nn.ModuleDict(
            {
                "model": FTN(in_channels, num_classes, width=width, depth=depth),
                "shape_prior": ShapePrior(num_classes, width=width, depth=depth),
            }
        ).to(self.dtype)
        networks.load_state_dict(self.state)
        return networks
