"""MixStyle within the one pass of a torchvision model: no replay, no further cost, nothing changed in the loop."""

import torch
from torch.nn.functional import cross_entropy
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from latentaug import GIN, MixStyle, augmented

torch.manual_seed(0)


def scans(n: int, brightness: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Make n images of a disc, as a scanner of some brightness shows it; put your own data loader here."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre, radius = torch.randint(20, 44, (n, 2, 1, 1)), torch.randint(8, 16, (n, 1, 1))
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).long()
    images = brightness + 0.3 * labels[:, None] + 0.05 * torch.randn(n, 1, 64, 64)
    return images.expand(-1, 3, -1, -1).contiguous(), labels


model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
gin = GIN(p=0.5)  # for images: no tap needed

# Early layers hold style. Name the modules themselves, so that all that follows sees the change.
with augmented(model, {"backbone.1": MixStyle(), "backbone.3": MixStyle()}):
    for iteration in range(30):
        images, labels = scans(8)
        loss = cross_entropy(model(gin.augment(images))["out"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 10 == 9:
            print(f"iteration {iteration + 1}: loss {loss.item():.3f}")

model.eval()  # where the transforms leave the codes alone; after the `with` block nothing is left of them
for brightness in (0.3, 0.5):
    images, labels = scans(16, brightness)
    right = (model(images)["out"].argmax(1) == labels).float().mean().item()
    print(f"brightness {brightness}: {right:.1%} of pixels right")
