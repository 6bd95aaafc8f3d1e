"""What each transform does: what a small network decodes images to from codes that it has changed, as one figure."""

import inspect
import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import latentaug
from latentaug import FTN, LatentTap, LatentTransform, suggest_layers
from latentaug.plot import plot_gallery

ITERATIONS, SIDE = 300, 64
BASES = ("LatentTransform", "Masker", "Adversarial", "Compose", "OneOf", "RandomApply")
torch.manual_seed(0)
torch.set_num_threads(1)


class Both(nn.Module):
    """Decode the image and its segmentation from one code, by one decoder."""

    def __init__(self) -> None:
        super().__init__()
        network = FTN(num_classes=3 + 1, width=8, depth=3)
        self.encoder, self.decoder = network.encoder, network.segmentation_decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the image."""
        decoded = self.decoder(self.encoder(images))
        return decoded[:, :3], decoded[:, 3:].sigmoid()


def hearts(n: int) -> tuple[Tensor, Tensor]:
    """Make n images of a bright cavity in a dark wall, on a ground that differs from image to image."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centre, radius = torch.randint(24, 40, (n, 2, 1, 1)), torch.randint(9, 14, (n, 1, 1))
    far = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    labels = (far < radius + 5).long() + (far < radius).long()
    ground = 0.45 + 0.15 * torch.sin(torch.rand(n, 1, 1) * 6 + x / (4 + 6 * torch.rand(n, 1, 1)))
    level = torch.stack([ground, torch.full_like(ground, 0.2), torch.full_like(ground, 0.85)], 1)
    images = level.gather(1, labels[:, None]) * (0.7 + 0.3 * torch.rand(n, 1, 1, 1))
    return (images + 0.02 * torch.randn(images.shape)).clamp(0, 1), labels


def range_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the darkest and the brightest value of each image, without the margin that convolutions mix with zeros."""
    inside = images[..., 4:-4, 4:-4]
    return inside.amin((1, 2, 3), keepdim=True), inside.amax((1, 2, 3), keepdim=True)


model, (images, labels) = Both(), hearts(8)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(ITERATIONS if "--quick" not in sys.argv else 2):
    batch, target = hearts(16)
    logits, decoded = model(batch)
    optimizer.zero_grad()
    (cross_entropy(logits, target) + 10 * mse_loss(decoded, batch)).backward()
    optimizer.step()

pictures = {"images": images, "reconstructed": model(images)[1]}
for name in latentaug.__all__:
    kind = getattr(latentaug, name)
    if not inspect.isclass(kind) or not issubclass(kind, LatentTransform) or name in BASES:
        continue
    transform = kind(p=1.0) if kind.gated and "p" in inspect.signature(kind).parameters else kind()
    generator = torch.Generator().manual_seed(1)
    layers = suggest_layers(model, images, transform).layers
    if not layers:
        changed = transform.augment(images, generator=generator)
        (low, high), (darkest, brightest) = range_of(images), range_of(changed)  # some leave the range of the images
        pictures[name] = (low + (changed - darkest) * (high - low) / (brightest - darkest)).clamp(low, high)
        continue
    with LatentTap(model, transform=transform) as tap:
        model(images)
        replay = tap.replay(transform, objective=lambda both: cross_entropy(both[0], labels), generator=generator)
        where = [layer.name for layer in tap.layers]
        pictures[f"{name}\n{', '.join(where if len(where) < 3 else [where[0], '...', where[-1]])}"] = replay[1]
figure = plot_gallery(pictures, samples=2)
figure.savefig(next((one for one in sys.argv[1:] if not one.startswith("-")), "gallery.jpg"), dpi=80)
