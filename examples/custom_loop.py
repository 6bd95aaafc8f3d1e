"""Your own loop: train on the image, and on what the network makes of a changed latent code."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from latentaug import LatentTap, TargetedChannelMask

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)


def discs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make n noisy images of a disc, with the disc as label; put your own data loader here."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre, radius = torch.randint(20, 44, (n, 2, 1, 1)), torch.randint(8, 16, (n, 1, 1))
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).long()
    return 0.3 + 0.4 * labels[:, None] + 0.1 * torch.randn(n, 1, 64, 64), labels


encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
model = nn.Sequential(encoder, decoder)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
mask = TargetedChannelMask()  # or any other transform


def losses(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the image, and that of a replay from the masked code: one encoder pass for both."""
    with LatentTap(model, encoder) as tap:
        loss = cross_entropy(model(images), labels)
        hard = tap.replay(mask, objective=lambda output: cross_entropy(output, labels), generator=generator)
        return loss, cross_entropy(hard, labels)


for iteration in range(60):
    loss, hard_loss = losses(*discs(16))
    optimizer.zero_grad()
    (loss + hard_loss).backward()
    optimizer.step()
    if iteration % 20 == 19:
        print(f"iteration {iteration + 1}: loss {loss.item():.3f}, with the code masked {hard_loss.item():.3f}")
