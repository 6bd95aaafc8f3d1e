"""Heads that attach to a latent code, and the residual blocks they and the paper's network are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.layout import CHANNELS_FIRST, Layout

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_BATCH_NORM: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class CodeDecoupler(nn.Module):
    """Turn an image code into a shape code of the same size.

    Two convolutions, each with batch normalisation, that filter out of the code what a segmentation doesn't need.

    Args:
        channels: Channels of the code, in and out.
        spatial_dims: 1, 2 or 3.

    Shape:
        code: [B, C, *S].   output: [B, C, *S], never negative.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the code decoupler H).

    Example:
        >>> CodeDecoupler(32)(torch.rand(2, 32, 4, 4)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(*_double_conv(channels, channels, spatial_dims), nn.ReLU(inplace=True))
        _initialize(self)

    def forward(self, code: Tensor) -> Tensor:
        """Return the shape code for an image code."""
        shape_code: Tensor = self.body(code)
        return shape_code


class ReconstructionHead(nn.Module):
    """Reconstruct the image from a latent code.

    Residual blocks, each after a learned upsampling by two, as many as the stride of the code needs; an axis that is
    finer than another is upsampled at the deepest levels only. Where powers of two don't give the image's size, the
    output is resized to the grid the code stands for, and what hangs over the image is cut off. Codes wider than
    8 · `width` are first squeezed to 8 · `width`, so that the head stays small: 0.25 M parameters on the paper's code
    (128 channels at stride 16), 0.5 M on 2048 channels at stride 32.

    Args:
        channels: Channels of the code.
        out_channels: Channels of the image.
        stride: Pixels of the image per site of the code, one number per axis; its length is the number of spatial axes.
        width: Channels at the image's resolution.
        image_range: Lowest and highest image value, kept by a scaled sigmoid; None leaves the output linear.
        layout: Where the code holds its channels; with tokens, prefix tokens are left out.

    Shape:
        code: [B, C, *S] or as `layout` says.   output: [B, out_channels, *size].

    Raises:
        ValueError: `image_range` is empty, or the tokens of a code don't fill the grid that `size` and `stride` give.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the image decoder D_i).

    Example:
        >>> head = ReconstructionHead(128, out_channels=1, stride=(16, 16))
        >>> head(torch.rand(2, 128, 4, 6), size=(64, 96)).shape
        torch.Size([2, 1, 64, 96])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        stride: Sequence[float],
        *,
        width: int = 16,
        image_range: tuple[float, float] | None = (0.0, 1.0),
        layout: Layout = CHANNELS_FIRST,
    ) -> None:
        super().__init__()
        if image_range is not None and not image_range[0] < image_range[1]:
            raise ValueError(f"image_range must be a pair (low, high) with low < high, or None; got {image_range}.")
        self.stride = tuple(stride)
        self.image_range = image_range
        self.layout = layout
        widest = 8 * width
        narrow = channels > widest
        self.squeeze = _conv_norm_relu(channels, widest, len(self.stride)) if narrow else nn.Identity()
        factors = _up_factors(self.stride)
        self.decoder = Decoder(min(channels, widest), out_channels, factors, width, len(self.stride), transposed=True)
        _initialize(self.squeeze)

    def forward(self, code: Tensor, size: Sequence[int]) -> Tensor:
        """Return the image of the given spatial `size` that `code` stands for."""
        code = _in_precision_of(self, self._on_grid(self.layout.to_channels_first(code), size))
        image: Tensor = self.decoder(self.squeeze(code))
        if self.image_range is not None:
            low, high = self.image_range
            image = image.sigmoid() if (low, high) == (0, 1) else low + (high - low) * image.sigmoid()
        # A code covers a whole number of strides, the image may end inside the last one.
        covered = [max(math.ceil(n * s), m) for n, s, m in zip(code.shape[2:], self.stride, size, strict=True)]
        return crop(resize(image, covered), size)

    def _on_grid(self, code: Tensor, size: Sequence[int]) -> Tensor:
        """Give tokens [B, C, N] their spatial axes back."""
        if code.ndim == 2 + len(self.stride):
            return code
        ratios = [m / s for m, s in zip(size, self.stride, strict=True)]
        for rounding in (math.ceil, math.floor):
            grid = [rounding(ratio) for ratio in ratios]
            if math.prod(grid) == code.shape[2]:
                return code.reshape(*code.shape[:2], *grid)
        raise ValueError(
            f"ReconstructionHead needs {' x '.join(map(str, grid))} tokens for images of size {tuple(size)} at stride "
            f"{self.stride}; got {code.shape[2]}. Check `stride` and the prefix tokens of {self.layout}."
        )

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"stride={self.stride}, image_range={self.image_range}, layout={self.layout}"


class ShapePrior(nn.Module):
    """Correct a segmentation by what plausible shapes look like: the slow-thinking network (STN).

    A denoising autoencoder on segmentations, trained to return the true labels from predictions, corrupted predictions
    and the labels themselves.

    Args:
        num_classes: Channels of the segmentation; 1 means a binary one, with a single logit.
        width: Channels at full resolution; the code has 8 · `width`.
        depth: Number of times that the size is halved.
        spatial_dims: 1, 2 or 3.
        temperature: What `refine` divides logits by, so that the prior sees soft predictions.

    Shape:
        probabilities: [B, num_classes, *S], any S.   output: logits of the same shape.

    Raises:
        ValueError: There is no class, no level, or a temperature that isn't positive.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the STN).

    Example:
        >>> prior = ShapePrior(num_classes=4, width=4)
        >>> prior.refine(torch.randn(2, 4, 50, 37)).shape
        torch.Size([2, 4, 50, 37])
        >>> prior(one_hot(torch.randint(4, (2, 32, 32)), num_classes=4)).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 16,
        depth: int = 4,
        spatial_dims: int = 2,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, which means one logit; got {num_classes}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; got {temperature}. 1 leaves logits as they are.")
        self.num_classes = num_classes
        self.temperature = temperature
        self.encoder = Encoder(num_classes, width, depth, spatial_dims)
        self.decoder = Decoder(8 * width, num_classes, [(2,) * spatial_dims] * depth, width, spatial_dims)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return the logits of the corrected segmentation, at the size of the input and in this module's precision."""
        return crop(self.decoder(self.encoder(_in_precision_of(self, probabilities))), probabilities.shape[2:])

    def refine(self, logits: Tensor) -> Tensor:
        """Correct the segmentation that `logits` stand for, made softer by the temperature."""
        refined: Tensor = self(to_probabilities(_in_precision_of(self, logits) / self.temperature))
        return refined

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"num_classes={self.num_classes}, temperature={self.temperature}"


class Encoder(nn.Module):
    """Halve an image `depth` times: a stem, residual blocks, and a projection to a code that is never negative."""

    def __init__(self, in_channels: int, width: int, depth: int, spatial_dims: int) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}.")
        # Doubling up to 8 · width, which the code always has: 1, 2, 4, 8, 8 for the paper's depth of 4.
        widths = [min(2**level, 8) * width for level in range(depth)] + [8 * width]
        self.stem = nn.Sequential(*_double_conv(in_channels, width, spatial_dims), _leaky_relu())
        self.blocks = nn.Sequential(*(DownBlock(a, b, spatial_dims) for a, b in itertools.pairwise(widths)))
        self.projection = _conv_norm_relu(8 * width, 8 * width, spatial_dims)
        _initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the code."""
        code: Tensor = self.projection(self.blocks(self.stem(image)))
        return code


class Decoder(nn.Module):
    """Upsample a code by each of `factors` in turn, with at most 4 · `width` channels, halved down to `width`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        factors: Sequence[tuple[int, ...]],
        width: int,
        spatial_dims: int,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        # 4, 2, 1, 1 for the paper's four levels; with fewer, the last that many of 4, 2, 1.
        levels = len(factors)
        widths = [in_channels, *(min(max(8 >> n, 1), 1 << (levels - n)) * width for n in range(1, levels + 1))]
        channels = zip(itertools.pairwise(widths), factors, strict=True)
        self.blocks = nn.Sequential(*(UpBlock(a, b, factor, transposed) for (a, b), factor in channels))
        self.projection = _CONV[spatial_dims](widths[-1], out_channels, 1)
        _initialize(self)

    def forward(self, code: Tensor) -> Tensor:
        """Return what the code stands for, linearly projected."""
        output: Tensor = self.projection(self.blocks(code))
        return output


class DownBlock(nn.Module):
    """Residual block on the input at half its size."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int) -> None:
        super().__init__()
        conv = _CONV[spatial_dims]
        self.downsample = conv(in_channels, in_channels, 3, stride=2, padding=1)
        self.body = nn.Sequential(*_double_conv(in_channels, out_channels, spatial_dims))
        self.shortcut = conv(in_channels, out_channels, 1)
        self.activation = _leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return features at half the size, rounded up."""
        x = self.downsample(x)
        features: Tensor = self.activation(self.body(x).add_(self.shortcut(x)))
        return features


class UpBlock(nn.Module):
    """Residual block on the input at `factor` times its size."""

    def __init__(self, in_channels: int, out_channels: int, factor: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        spatial_dims = len(factor)
        self.upsample = (
            _CONV_TRANSPOSE[spatial_dims](in_channels, in_channels, factor, stride=factor)
            if transposed
            else nn.Upsample(scale_factor=tuple(map(float, factor)))
        )
        self.body = nn.Sequential(*_double_conv(in_channels, out_channels, spatial_dims))
        self.shortcut = _CONV[spatial_dims](in_channels, out_channels, 1)
        self.activation = _leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return features at `factor` times the size."""
        x = self.upsample(x)
        features: Tensor = self.activation(self.body(x).add_(self.shortcut(x)))
        return features


def crop(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut off what lies beyond `size`, at the end of every spatial axis."""
    for axis, length in enumerate(size, start=2):
        image = image.narrow(axis, 0, length)
    return image


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate to `size` linearly, if the image doesn't have it."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode=_INTERPOLATION[len(size)])


def to_probabilities(logits: Tensor) -> Tensor:
    """Apply the softmax over classes, or the sigmoid where there is one logit only."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def to_labels(logits: Tensor) -> Tensor:
    """Return the label map that logits stand for; with one logit, 1 where it is positive."""
    return (logits > 0).squeeze(1).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def one_hot(
    labels: Tensor, num_classes: int, *, ignore_index: int = -100, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Write a label map as probabilities, with zeros where the label is to be ignored.

    Args:
        labels: Class indices, or 0 and 1 where there is one class only.
        num_classes: Channels of the result; 1 gives the binary label itself.
        ignore_index: Label of pixels that belong to no class.
        dtype: What the result is made of.

    Shape:
        labels: [B, *S].   output: [B, num_classes, *S], contiguous.

    Example:
        >>> one_hot(torch.tensor([[0, 2, -100]]), num_classes=3)
        tensor([[[1., 0., 0.],
                 [0., 0., 0.],
                 [0., 1., 0.]]])
    """
    first = 1 if num_classes == 1 else 0
    classes = torch.arange(first, first + num_classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    # Compared in place of F.one_hot, whose channels-last result would change the memory layout of one branch only.
    hits = (labels.unsqueeze(1) == classes) & (labels != ignore_index).unsqueeze(1)
    return hits.to(dtype)


def _in_precision_of(head: nn.Module, tensor: Tensor) -> Tensor:
    """Cast what a model returned that enters autocast by itself, and leaves it before the head is called."""
    return tensor.to(next(head.parameters()).dtype)


def _initialize(module: nn.Module) -> None:
    """Initialise convolutions and batch normalisation as the paper's networks are."""
    for child in module.modules():
        if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(child.weight)
        elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(child.weight, mean=1.0, std=0.02)
            nn.init.zeros_(child.bias)


def _double_conv(in_channels: int, out_channels: int, spatial_dims: int) -> list[nn.Module]:
    """Two normalised convolutions, the first activated."""
    conv, norm = _CONV[spatial_dims], _BATCH_NORM[spatial_dims]
    return [
        conv(in_channels, out_channels, 3, padding=1),
        norm(out_channels),
        _leaky_relu(),
        conv(out_channels, out_channels, 3, padding=1),
        norm(out_channels),
    ]


def _conv_norm_relu(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Sequential:
    """Project to other channels, never negative."""
    conv = _CONV[spatial_dims](in_channels, out_channels, 1)
    return nn.Sequential(conv, _BATCH_NORM[spatial_dims](out_channels), nn.ReLU(inplace=True))


def _leaky_relu() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, inplace=True)


def _up_factors(stride: Sequence[float]) -> list[tuple[int, ...]]:
    """Powers of two nearest to `stride`, as a factor per level and axis; an axis with fewer takes the deepest levels.

    Example:
        >>> _up_factors((2, 8, 8))
        [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    """
    doublings = [max(round(math.log2(s)), 0) for s in stride]
    return [tuple(2 if level < n else 1 for n in doublings) for level in range(max(doublings))]
