"""Heads that attach to a latent code, and the residual blocks they and the paper's network are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from latentaug.checks import flag, number, shown, whole
from latentaug.layout import CHANNELS_FIRST, Layout
from latentaug.nets.blocks import Decoder, Encoder, check_spatial_dims, conv_norm_relu, double_conv, initialize
from latentaug.nets.functional import crop, resize, scaled_by, shrink, to_probabilities


class CodeDecoupler(nn.Module):
    """Turn an image code into a shape code of the same size.

    Two convolutions, each with batch normalisation, that filter out of the code what a segmentation doesn't need.

    Args:
        channels: Channels of the code, in and out.
        spatial_dims: 1, 2 or 3.

    Shape:
        code: [B, C, *S].   output: [B, C, *S], never negative.

    Raises:
        ValueError: `channels` is no positive whole number, or `spatial_dims` isn't 1, 2 or 3.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the code decoupler H).

    Example:
        >>> import torch
        >>> CodeDecoupler(32)(torch.rand(2, 32, 4, 4)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        whole("channels", channels)
        check_spatial_dims(spatial_dims)
        self.body = nn.Sequential(*double_conv(channels, channels, spatial_dims), nn.ReLU(inplace=True))
        initialize(self)

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
        stride: Pixels of the image per spatial position of the code, one number for each spatial axis.
        width: Channels at the image's resolution.
        image_range: Lowest and highest image value, kept by a scaled sigmoid; None leaves the output linear.
        scale: Resolution that images are decoded at, relative to the one that `stride` counts pixels of. The `size` of
            a call is that of these smaller images.
        layout: Where the code holds its channels; with tokens, prefix tokens are left out.

    Shape:
        code: [B, C, *S] or as `layout` says.   output: [B, out_channels, *size].

    Raises:
        ValueError: `image_range` is empty, or the tokens of a code don't fill the grid that `size` and `stride` give.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the image decoder D_i).

    Example:
        >>> import torch
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
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_scale(scale)
        for name, value in (("channels", channels), ("out_channels", out_channels), ("width", width)):
            whole(name, value)
        as_image_range(image_range)
        self.stride = tuple(stride) if scale == 1 else tuple(scale * step for step in stride)
        self.scale = scale
        self.image_range = image_range
        self.layout = layout
        widest = 8 * width
        narrow = channels > widest
        self.squeeze = conv_norm_relu(channels, widest, len(self.stride)) if narrow else nn.Identity()
        factors = _up_factors(self.stride)
        self.decoder = Decoder(min(channels, widest), out_channels, factors, width, len(self.stride), transposed=True)
        initialize(self.squeeze)

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
        """Give tokens [B, C, N] their spatial axes back; an axis more than the image has, of one site, goes."""
        if code.ndim == 2 + len(self.stride):
            return code
        code = code.flatten(2)
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
        scale = "" if self.scale == 1 else f"scale={self.scale}, "
        return f"stride={self.stride}, {scale}image_range={self.image_range}, layout={self.layout}"


def as_image_range(image_range: object) -> tuple[float, float] | None:
    """Return a range of images, or None.

    Raises:
        TypeError: It is no pair of numbers.
        ValueError: It is empty or has no end.
    """
    if image_range is None:
        return None
    if not isinstance(image_range, tuple | list) or len(image_range) != 2:
        raise TypeError(f"image_range must be a pair (low, high), or None; got {shown(image_range)}.")
    low, high = image_range
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"image_range must be a pair (low, high) with low < high, or None; got {image_range}.")
    return float(low), float(high)


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
        scale: Resolution that shapes are corrected at, in (0, 1]: probabilities are averaged down to it, and the logits
            interpolated up again. Half costs a quarter in 2-D.
        regions: Whether channels are regions, which may overlap, and not classes, of which each pixel has one.

    Shape:
        probabilities: [B, num_classes, *S], any S.   output: logits of the same shape.

    Raises:
        ValueError: There is no class, no level, or a temperature that isn't positive.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (the STN).

    Example:
        >>> import torch
        >>> from latentaug.nets.functional import one_hot
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
        scale: float = 1.0,
        regions: bool = False,
    ) -> None:
        super().__init__()
        _check_scale(scale)
        for name, value in (("num_classes", num_classes), ("width", width), ("depth", depth)):
            whole(name, value)
        check_spatial_dims(spatial_dims)
        number("temperature", temperature, above=0)
        self.num_classes = num_classes
        self.temperature = temperature
        self.scale = scale
        self.regions = flag("regions", regions)
        self.encoder = Encoder(num_classes, width, depth, spatial_dims)
        self.decoder = Decoder(8 * width, num_classes, [(2,) * spatial_dims] * depth, width, spatial_dims)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return the logits of the corrected segmentation, at the size of the input and in this module's precision."""
        size = probabilities.shape[2:]
        given = shrink(_in_precision_of(self, probabilities), scaled_by(size, self.scale))
        return resize(crop(self.decoder(self.encoder(given)), given.shape[2:]), size)

    def refine(self, logits: Tensor) -> Tensor:
        """Correct the segmentation that `logits` stand for, made softer by the temperature."""
        softer = _in_precision_of(self, logits) / self.temperature
        refined: Tensor = self(to_probabilities(softer, regions=self.regions))
        return refined

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        scale = "" if self.scale == 1 else f", scale={self.scale}"
        regions = ", regions=True" if self.regions else ""
        return f"num_classes={self.num_classes}, temperature={self.temperature}{scale}{regions}"


def _check_scale(scale: float) -> None:
    """Check the resolution that a head works at.

    Raises:
        TypeError: It is no number.
        ValueError: It is not in (0, 1].
    """
    if not 0 < number("scale", scale) <= 1:
        raise ValueError(f"scale must be above 0, and 1 at most; got {scale}.")


def _in_precision_of(head: nn.Module, tensor: Tensor) -> Tensor:
    """Cast what a model returned that enters autocast by itself, and leaves it before the head is called."""
    return tensor.to(next(head.parameters()).dtype)


def _up_factors(stride: Sequence[float]) -> list[tuple[int, ...]]:
    """Powers of two nearest to `stride`, as a factor per level and axis; an axis with fewer takes the deepest levels.

    Example:
        >>> _up_factors((2, 8, 8))
        [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    """
    doublings = [max(round(math.log2(s)), 0) for s in stride]
    return [tuple(2 if level < n else 1 for n in doublings) for level in range(max(doublings))]
