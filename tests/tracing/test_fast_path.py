"""The fast path of transformer encoders is left only where a named module would not be called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentaug.tracing.fast_path import modules_are_called
from tests.support.traces import traces

INSIDE = {"stem": False, "blocks": False, "blocks.layers.0": True, "blocks.layers.0.linear1": True}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.stem(tokens))


def calls_linear(model: nn.Module) -> bool:
    called = []
    linear = model.blocks.layers[0].linear1
    forward = linear.forward
    linear.forward = lambda tokens: (called.append(1), forward(tokens))[1]
    with torch.no_grad():
        model(torch.randn(1, 3, 8))
    del linear.forward
    return bool(called)


@pytest.mark.parametrize(("name", "inside"), INSIDE.items(), ids=INSIDE)
def test_it_is_left_for_modules_inside_and_nothing_stays_behind(name: str, inside: bool) -> None:
    model = Net().eval()
    before = traces(model)
    with modules_are_called(model, ["stem", name]):
        assert calls_linear(model) is inside
    assert traces(model) == before
    assert not calls_linear(model)
