"""Wrap the U-Net you have: an ordinary training script, and the lines that make it cooperative."""

import segmentation_models_pytorch as smp
import torch

from latentaug import CooperativeModel

torch.manual_seed(0)


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Make n images of two nested squares, and their labels; put your own data loader here."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre, half = torch.randint(20, 44, (n, 2, 1, 1)), torch.randint(6, 12, (n, 1, 1))
    distance = torch.maximum((y - centre[:, 0]).abs(), (x - centre[:, 1]).abs())
    labels = (distance < half).long() + (distance < half // 2).long()
    return (0.2 + 0.3 * labels[:, None] + 0.05 * torch.randn(n, 1, 64, 64)).clamp(0, 1), labels


unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
coop = CooperativeModel(unet, num_classes=3, example=batch()[0])  # finds the levels that the decoder reads
optimizer = torch.optim.Adam(coop.parameters(), lr=1e-3)

for iteration in range(30):
    images, labels = batch()
    output = coop(images, labels)  # instead of loss = cross_entropy(unet(images), labels)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    if iteration % 10 == 9:
        losses = ", ".join(f"{name} {loss.item():.2f}" for name, loss in output.losses.items())
        print(f"iteration {iteration + 1}: {losses}")

images, labels = batch()
accuracy = (coop.predict(images) == labels).float().mean().item()
codes = ", ".join(map(str, coop.shape_codes))
print(f"changes {codes}; {accuracy:.1%} of pixels right after {iteration + 1} iterations")
unet.eval()  # the same object as before: save it, export it, use it alone
