"""Take one masker into a loop of your own: train on the predictions that survive a masked latent code."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from latentaug import LatentTap, TargetedChannelMask, latent_saliency

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)


def discs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw n noisy images of a disc, with the disc as label; put your own data loader here."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre, radius = torch.randint(20, 44, (n, 2, 1, 1)), torch.randint(8, 16, (n, 1, 1))
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).long()
    return 0.3 + 0.4 * labels[:, None] + 0.1 * torch.randn(n, 1, 64, 64), labels


encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
model = nn.Sequential(encoder, decoder)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
masker = TargetedChannelMask()

for step in range(60):
    images, labels = discs(16)
    with LatentTap(model, encoder) as tap:
        loss = cross_entropy(model(images), labels)
        mask = masker(tap.code, latent_saliency(loss, tap.code), generator=generator)
        hard_loss = cross_entropy(tap.replay(mask.apply(tap.code)), labels)
    optimizer.zero_grad()
    (loss + hard_loss).backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {loss.item():.3f}, with the code masked {hard_loss.item():.3f}")
