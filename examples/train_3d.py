"""Cooperative training of a 3-D network with deep supervision."""

import torch
from monai.networks.nets.dynunet import DynUNet

from latentaug import CooperativeModel, HardExamples, cooperative_backward

torch.manual_seed(0)


def volumes(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Make n volumes of a ball, with the ball as label; put your own data loader here."""
    z, y, x = torch.meshgrid(torch.arange(16), torch.arange(32), torch.arange(32), indexing="ij")
    centre, radius = torch.randint(6, 10, (n, 3, 1, 1, 1)), torch.randint(4, 7, (n, 1, 1, 1))
    squared = (z - centre[:, 0]) ** 2 + (y - 8 - centre[:, 1]) ** 2 + (x - 8 - centre[:, 2]) ** 2
    labels = (squared < radius**2).long()
    return (0.3 + 0.4 * labels[:, None] + 0.1 * torch.randn(n, 1, 16, 32, 32)).clamp(0, 1), labels


network = DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32], deep_supervision=True, deep_supr_num=1)
coop = CooperativeModel(
    network,
    num_classes=2,
    example=volumes()[0],
    reconstruction=True,  # hard volumes too, of an image decoder at half the resolution
    hard=HardExamples(mix=0.5),  # in the place of half of the batch
)
optimizer = torch.optim.Adam(coop.parameters(), lr=3e-3)

for iteration in range(10):
    images, labels = volumes()
    optimizer.zero_grad()
    output = cooperative_backward(coop, images, labels)
    optimizer.step()
    if iteration % 5 == 4:
        print(f"iteration {iteration + 1}: " + ", ".join(f"{name} {loss:.2f}" for name, loss in output.losses.items()))

images, labels = volumes()
print(f"{(coop.predict(images) == labels).float().mean():.1%} of voxels right")
