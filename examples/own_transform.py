"""A transform of your own in 20 lines: it gets the layouts, the gate, the generator and the replays for free."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from latentaug import Context, LatentTap, LatentTransform, augmented


class ChannelShift(LatentTransform):
    """Shift each channel of each sample by a random part of its own deviation.

    Args:
        strength: Largest shift, in deviations of the channel.
        p: Chance that it acts.
    """

    def __init__(self, strength: float = 0.5, *, p: float = 0.5) -> None:
        super().__init__(p=p, per_sample=True)
        self.strength = strength

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample what the change consists of; the code is [B, C, *S] here, whatever its layout."""
        return {"shift": self.strength * (2 * context.rand(*code.shape[:2]) - 1)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Make the change: the same each time, and differentiable."""
        shift: Tensor = params["shift"].view(*code.shape[:2], *[1] * (code.ndim - 2))
        deviation: Tensor = code.std(dim=tuple(range(2, code.ndim)), keepdim=True, correction=0)
        return code + shift * deviation.detach()


torch.manual_seed(0)
down = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
model = nn.Sequential(*down, nn.Upsample(scale_factor=4), nn.Conv2d(32, 2, 3, 1, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
labels = torch.zeros(8, 64, 64, dtype=torch.long)
labels[:, 20:44, 20:44] = 1

with augmented(model, {"0": ChannelShift()}):  # in one pass
    for iteration in range(30):
        images = 0.5 * labels[:, None] + 0.3 * torch.randn(8, 1, 64, 64)
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 10 == 9:
            print(f"iteration {iteration + 1}: loss {loss.item():.3f}")

with LatentTap(model, "2") as tap:  # or in a replay, as often as you like, with the same draw
    model(images)
    change = tap.draw(ChannelShift(p=1.0), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tap.replay(change), tap.replay(change))
    print(change)
