"""Make a trained network robust in a tenth of its training time: GIN on images, hard examples of codes, a low rate.

    python examples/finetune.py --weights unet.pt
    python examples/finetune.py

Without weights it trains a network first, to have one. Put your own network and data where the comments say so.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch.nn.functional import cross_entropy

from latentaug import GIN, CooperativeModel, cooperative_backward
from latentaug.robustness import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", type=Path, metavar="FILE", help="state dict of the trained network, by torch.save")
parser.add_argument("--trained-for", type=int, default=300, metavar="N", help="iterations that its training took")
parser.add_argument("--rate", type=float, default=1e-4, help="learning rate: a tenth of the training's, or less")
parser.add_argument("--output", type=Path, default=Path("finetuned.pt"), metavar="FILE", help="the new weights")
options = parser.parse_args()
if options.trained_for < 1 or not 0 < options.rate < 1:
    parser.error("--trained-for must be 1 or more, --rate above 0 and below 1")
if options.output.is_dir() or not os.access(options.output.absolute().parent, os.W_OK):
    parser.error(f"--output {options.output}: must be a file, in a folder that is there and can be written to")
torch.manual_seed(0)


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Make n images of two nested squares, and their labels; put your own data loader here."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre, half = torch.randint(20, 44, (n, 2, 1, 1)), torch.randint(6, 12, (n, 1, 1))
    distance = torch.maximum((y - centre[:, 0]).abs(), (x - centre[:, 1]).abs())
    labels = (distance < half).long() + (distance < half // 2).long()
    return (0.2 + 0.3 * labels[:, None] + 0.05 * torch.randn(n, 1, 64, 64)).clamp(0, 1), labels


unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)  # put your own network here
if options.weights is not None:
    try:
        unet.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a file that is none may raise
        reason = f"{type(error).__name__}: {str(error)[:120]}"  # PyTorch lists all names
        parser.error(f"--weights {options.weights}: no state dict of this network, and of that alone ({reason} ...)")
else:
    optimizer = torch.optim.Adam(unet.parameters(), lr=10 * options.rate)
    for _ in range(options.trained_for):
        images, labels = batch()
        optimizer.zero_grad()
        cross_entropy(unet(images), labels).backward()
        optimizer.step()

iterations = max(1, options.trained_for // 10)
before = {name: weight.clone() for name, weight in unet.state_dict().items()}
coop = CooperativeModel(unet, num_classes=3, example=batch()[0])  # the same object: `unet` is what is trained
augment = GIN(p=0.5)
optimizer = torch.optim.Adam(coop.parameters(), lr=options.rate)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
coop.train()
for iteration in range(iterations):
    images, labels = batch()
    optimizer.zero_grad()
    output = cooperative_backward(coop, augment.augment(images).clamp(0, 1), labels)
    optimizer.step()
    schedule.step()
    if iteration % 10 == 9:
        print(f"iteration {iteration + 1} of {iterations}: loss {output.loss.item():.3f}")
torch.save(unet.state_dict(), options.output)

# What came of it: on images as they are, and under shifts. Put your own test images here.
tests = [batch(8) for _ in range(2)]
old = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
old.load_state_dict(before)
print(measure({"before": old, "after": unet}, tests, num_classes=3, severities=[2, 4]).to_markdown())
