"""Latent-space data augmentation: make any segmentation model robust to scanners and artefacts it never saw.

The rooms show the method, and imports run one way through them:

- `tracing`: see a forward pass of any model, and leave no trace.
- `discovery`: find the code. `find_bottleneck`, `find_codes`, `find_levels`, `suggest_layers`.
- `tap`: tap it, and replay the rest. `LatentTap`, `augmented`, `SaliencyCalculator`, `describe`.
- `augment`: change a code. `LatentTransform` and `Change`; masks, `MixStyle`, `DropBlock`, `ManifoldMixup`; for
  images `RandConv`, `GIN`, `IPA` and `StrongIntensity`; `Compose`, `OneOf`, `RandomApply`, `paper_masks`.
- `nets`: the paper's networks. `FTN`, `ReconstructionHead`, `ShapePrior`, `CodeDecoupler`.
- `cooperative`: the method of Chen et al., MICCAI 2021. `CooperativeModel`, `cooperative_backward`, `HardExamples`.
- `training`: a loop, for who wants one. `CooperativeTrainer`, callbacks, `tune_allocator`.
- `robustness`: how trained models hold up under shifts. `latentaug.robustness.measure`, and a command.
- `integrations`: doors into the frameworks that people train with, one a file.
- `latentaug.plot`: figures of hard examples.

Tap a model at a latent code, change the code, replay the rest, and train on what comes out::

    with LatentTap(unet) as tap:
        loss = cross_entropy(unet(images), labels)
        hard = tap.replay(paper_masks(), objective=lambda output: cross_entropy(output, labels))
        (loss + cross_entropy(hard, labels)).backward()
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from latentaug.augment.adversarial import FGSM, VAT, AdvStyle, MaxStyle
from latentaug.augment.ascent import Adversarial, ascend
from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.compose import Compose, OneOf, RandomApply, paper_masks
from latentaug.augment.drop import ChannelDropout, Cutout, DropBlock
from latentaug.augment.image import GIN, IPA, RandConv
from latentaug.augment.intensity import StrongIntensity
from latentaug.augment.masks import (
    LatentMask,
    Masker,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    top_mask,
)
from latentaug.augment.mix import ManifoldMixup, MoEx
from latentaug.augment.noise import AdditiveNoise, MultiplicativeNoise
from latentaug.augment.schedule import Schedule
from latentaug.augment.style import DSU, MixStyle, PermutedStyle, TriD
from latentaug.augment.style_exchange import CrossNorm, EFDMix
from latentaug.augment.targeted_drop import RSC, TargetDrop
from latentaug.cooperative.explanation import Explanation
from latentaug.cooperative.given_loss import OutputLoss
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import reconstruction_loss, segmentation_loss
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.discovery.codes import Codes, find_codes, find_levels
from latentaug.discovery.suggest import Suggestion, suggest_layers
from latentaug.divergence import kl_divergence
from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout
from latentaug.nets.ftn import FTN
from latentaug.nets.heads import CodeDecoupler, ReconstructionHead, ShapePrior
from latentaug.saliency import latent_saliency
from latentaug.tap.augmented import augmented
from latentaug.tap.calculator import SaliencyCalculator
from latentaug.tap.describe import Description, describe
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import Location

if TYPE_CHECKING:
    from latentaug.training.allocator import tune_allocator
    from latentaug.training.callbacks import Callback, Ramp
    from latentaug.training.optimization import PerStep, is_native
    from latentaug.training.trainer import CooperativeTrainer
    from latentaug.training.watching import HardExampleLog, ShowHardExamples
else:
    _LOOP = {
        "Callback": "callbacks",
        "CooperativeTrainer": "trainer",
        "HardExampleLog": "watching",
        "is_native": "optimization",
        "PerStep": "optimization",
        "Ramp": "callbacks",
        "ShowHardExamples": "watching",
        "tune_allocator": "allocator",
    }
    """Names of the room `training`, and their modules: whoever has a loop does not wait for ours to be imported."""

    def __getattr__(name: str) -> object:
        if name not in _LOOP:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"latentaug.training.{_LOOP[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LOOP})


try:
    __version__ = metadata.version("latentaug")
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "CHANNELS_FIRST",
    "CHANNELS_LAST",
    "DSU",
    "FGSM",
    "FTN",
    "GIN",
    "IPA",
    "RSC",
    "TOKENS",
    "VAT",
    "AdditiveNoise",
    "AdvStyle",
    "Adversarial",
    "Callback",
    "Change",
    "ChannelDropout",
    "CodeDecoupler",
    "Codes",
    "Compose",
    "Context",
    "CooperativeModel",
    "CooperativeOutput",
    "CooperativeTrainer",
    "CrossNorm",
    "Cutout",
    "Description",
    "DropBlock",
    "EFDMix",
    "Explanation",
    "HardExampleLog",
    "HardExamples",
    "LatentMask",
    "LatentTap",
    "LatentTransform",
    "Layout",
    "Location",
    "ManifoldMixup",
    "Masker",
    "MaxStyle",
    "MixStyle",
    "MoEx",
    "MultiplicativeNoise",
    "OneOf",
    "OutputLoss",
    "PerStep",
    "PermutedStyle",
    "Ramp",
    "RandConv",
    "RandomApply",
    "RandomChannelMask",
    "ReconstructionHead",
    "SaliencyCalculator",
    "Schedule",
    "ShapePrior",
    "ShowHardExamples",
    "StrongIntensity",
    "Suggestion",
    "TargetDrop",
    "TargetedChannelMask",
    "TargetedSpatialMask",
    "TriD",
    "ascend",
    "augmented",
    "cooperative_backward",
    "describe",
    "find_bottleneck",
    "find_codes",
    "find_levels",
    "is_native",
    "kl_divergence",
    "latent_saliency",
    "paper_masks",
    "reconstruction_loss",
    "segmentation_loss",
    "standard_backward",
    "suggest_layers",
    "top_mask",
    "tune_allocator",
]
