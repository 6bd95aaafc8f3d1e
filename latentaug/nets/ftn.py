"""The paper's dual-branch network."""

from __future__ import annotations

from torch import Tensor, nn

from latentaug.checks import whole
from latentaug.nets.blocks import Decoder, Encoder, check_spatial_dims
from latentaug.nets.functional import crop
from latentaug.nets.heads import CodeDecoupler, ReconstructionHead, as_image_range


class FTN(nn.Module):
    """Segment an image by way of two latent codes: the paper's fast-thinking network (FTN).

    The encoder's image code serves the reconstruction of the image; the decoupler makes a shape code of it, which
    serves the segmentation. Calling the network gives the segmentation only; `image_decoder` reconstructs.

    Keep the grid of the code rather than its stride when the images are smaller than the paper's 192 x 192: `depth=3`
    at half their size. The code has 8 · `width` channels at every depth.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits; 1 means a binary segmentation.
        width: Channels at full resolution.
        depth: Number of times that the size is halved; the codes have stride 2^depth.
        spatial_dims: 1, 2 or 3.
        image_range: Lowest and highest image value, as in `ReconstructionHead`.

    Shape:
        images: [B, in_channels, *S], any S.   output: logits [B, num_classes, *S].

    Raises:
        ValueError: A number is no positive whole one, `spatial_dims` isn't 1, 2 or 3, or `image_range` isn't a pair
            (low, high).

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (E, H, D_s and D_i).

    Example:
        >>> import torch
        >>> network = FTN(in_channels=1, num_classes=4, width=4)
        >>> images = torch.rand(2, 1, 64, 64)
        >>> network(images).shape
        torch.Size([2, 4, 64, 64])
        >>> network.image_decoder(network.encoder(images), size=(64, 64)).shape
        torch.Size([2, 1, 64, 64])
    """

    image_code = "encoder"
    shape_code = "decoupler"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        width: int = 16,
        depth: int = 4,
        spatial_dims: int = 2,
        image_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("num_classes", num_classes),
            ("width", width),
            ("depth", depth),
        ):
            whole(name, value)
        check_spatial_dims(spatial_dims)
        as_image_range(image_range)
        channels = 8 * width
        self.encoder = Encoder(in_channels, width, depth, spatial_dims)
        self.decoupler = CodeDecoupler(channels, spatial_dims)
        self.segmentation_decoder = Decoder(channels, num_classes, [(2,) * spatial_dims] * depth, width, spatial_dims)
        self.image_decoder = ReconstructionHead(
            channels, in_channels, (2**depth,) * spatial_dims, width=width, image_range=image_range
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the segmentation."""
        logits: Tensor = self.segmentation_decoder(self.decoupler(self.encoder(images)))
        return crop(logits, images.shape[2:])
