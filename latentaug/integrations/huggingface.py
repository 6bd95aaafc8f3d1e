"""Hugging Face: a `CooperativeModel` as `transformers.Trainer` and accelerate call models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.checks import whole
from latentaug.cooperative.model import CooperativeModel

HEADS = "latentaug_heads.pt"
"""What `save_pretrained` calls the file of the image decoder and the shape prior, where there are any."""


class CooperativeForSegmentation(nn.Module):
    """A segmentation model that `transformers.Trainer` trains on hard examples.

    `forward` takes `pixel_values` and `labels`. It returns a `SemanticSegmenterOutput` with the loss and the logits, at
    the size of the images. In eval mode the loss is that of the images alone.

    Args:
        model: Any model that `CooperativeModel` takes: one of transformers, of segmentation-models-pytorch, ...
        options: Arguments of `CooperativeModel`: `num_classes`, `example`, and what else there is.

    Shape:
        pixel_values: [B, C, *S].   labels: [B, *S] or [B, 1, *S].   logits: [B, num_classes, *S].

    Raises:
        What `CooperativeModel` raises.

    Example:
        >>> unet = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
        >>> model = CooperativeForSegmentation(unet, num_classes=2, example=torch.rand(2, 3, 32, 32))
        >>> sorted(model.coop.weights)[:2]
        ['hard_code_segmentation', 'hard_image_reconstruction']
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.coop = CooperativeModel(model, **options)
        if hasattr(model, "config"):  # what Trainer writes into its checkpoints
            self.config = model.config

    # No **kwargs: a model that takes any is one that divides its loss by the number of accumulated batches by itself.
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        """Return the loss, where there are labels, and the logits.

        Raises:
            ValueError: There are no labels in train mode.
        """
        from transformers.modeling_outputs import SemanticSegmenterOutput

        if labels is None and self.training:
            raise ValueError(
                "CooperativeForSegmentation needs `labels` in train mode; got None. Let batches have them, and leave "
                "label_smoothing_factor and compute_loss_func out: for these Trainer takes labels from the batch."
            )
        if labels is None:
            return SemanticSegmenterOutput(logits=self._logits(pixel_values))
        output = self.coop(pixel_values, labels)
        return SemanticSegmenterOutput(loss=output.loss, logits=output.logits)

    def _logits(self, images: Tensor) -> Tensor:
        return self.coop.reader.main(self.coop(images), images.shape[2:])

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Compute activations of the model's own blocks again in the backward pass, and do not keep them.

        The blocks are those that transformers would checkpoint. They are checkpointed by `CooperativeModel`, whose
        replays know of it, and not by transformers; so `gradient_checkpointing_kwargs` do nothing.

        Args:
            gradient_checkpointing_kwargs: Ignored.
            every_n_layers: Checkpoint every so many blocks, beginning with the first.
            offload: Refused, as what is kept stays where it is.

        Raises:
            ValueError: The model has no such blocks, or `offload` is asked for.
        """
        whole("every_n_layers", every_n_layers)
        if offload:
            raise ValueError("CooperativeForSegmentation keeps activations where they are; got offload=True. Leave it.")
        blocks = [name for name, module in self.coop.model.named_modules() if _is_block(module)]
        outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
        if not outer:
            raise ValueError(
                f"{type(self.coop.model).__name__} has no blocks that transformers would checkpoint. Name some: "
                'model.coop.checkpointed = ["model...."].'
            )
        self.coop.checkpointed = [f"model.{name}" for name in outer[::every_n_layers]]

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Do what `gradient_checkpointing_enable` does, by its newer name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self.coop.checkpointed = ()

    def activation_checkpointing_disable(self) -> None:
        """Do what `gradient_checkpointing_disable` does."""
        self.gradient_checkpointing_disable()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save the model, as it is used without latentaug, and heads that stand beside it in a file of its own.

        A model that has a `save_pretrained` of its own is saved by it, with `options`; the state dict of any other goes
        to `pytorch_model.bin`. Read back: `type(model).from_pretrained(save_directory)`,
        and heads by `load_state_dict(torch.load(file), strict=False)` of the `CooperativeModel`.
        """
        folder, model = Path(save_directory), self.coop.model
        folder.mkdir(parents=True, exist_ok=True)
        save: Any = getattr(model, "save_pretrained", None)
        if callable(save):
            save(folder, **options)
        else:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        heads = {name: value for name, value in self.coop.state_dict().items() if not name.startswith("model.")}
        if not all(name.endswith("_extra_state") for name in heads):  # counts of batches are no heads
            torch.save(heads, folder / HEADS)


def _is_block(module: nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)
