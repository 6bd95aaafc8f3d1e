"""The tensors of a pass, and what moves in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.tracing.moving import Before, PassTensors, Values, held_still


class OwnNorm(nn.Module):
    """Normalises by a kernel that changes buffers without a word; a codebook of its own follows; counts passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.book = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.passes, self.seen = 0, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.mean, self.var, training=self.training)
        self.book.data.lerp_(x.detach().mean((0, 2, 3)) + 1, 0.5)
        self.seen += 1
        self.passes += 1
        return x + self.book.view(1, -1, 1, 1)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 1), OwnNorm(), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)
    )


IMAGES = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 3


def test_what_moves_is_found_by_what_moves() -> None:
    net = model()
    values = Values(net)
    net(IMAGES)
    assert values.moved() == {"1.mean", "1.var", "1.book"}
    assert values.moved(trainable=True) == set()
    net[0].weight.data.add_(1)
    assert values.moved(trainable=True) == {"0.weight"}


@pytest.mark.parametrize("known", [(), ("1.book",)])
def test_what_runs_within_leaves_no_trace(known: tuple[str, ...]) -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with held_still(net, known):
        net(IMAGES * torch.inf)  # one infinite activation
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == (set() if known else {"1.book"})
    assert (net[1].passes, net[1].seen.tolist()) == (0, [0.0] * 3)
    if not known:
        return
    net(IMAGES)
    assert int(net[2].num_batches_tracked) == 1
    assert net[3].running_mean.abs().sum() > 0


def test_a_model_runs_again_from_where_it_was() -> None:
    net = model()
    before = Before(net, ["1.book"])
    first, after = net(IMAGES), {name: value.clone() for name, value in net.state_dict().items()}
    net(IMAGES + 1)
    with before.again():
        assert torch.equal(net(IMAGES), first)
    assert net[1].passes == 2
    assert not torch.equal(net[1].mean, after["1.mean"])


def test_changes_of_weights_are_named() -> None:
    net = model()
    tensors = PassTensors(net, ["1.mean", "1.var", "1.book"])
    net(IMAGES)
    assert tensors.changed() == []
    assert tensors.moved() == set()
    net[0].weight.data.mul_(2)
    assert tensors.changed() == ["0.weight"]
    tensors.note()
    assert tensors.changed() == []
    assert tensors.recast() is None
    net.double()
    assert "is of dtype torch.float64 now, and was of torch.float32 then" in str(tensors.recast())


def test_modes_are_compared() -> None:
    net = model()
    tensors = PassTensors(net, ())
    assert tensors.switched() is None
    net[2].eval()
    assert tensors.switched() == "'2' was switched to eval mode"


def test_statistics_count_where_they_are_read() -> None:
    net = model().eval()
    tensors = PassTensors(net, ())
    net[2].running_mean.add_(1)
    assert tensors.changed() == ["2.running_mean"]
    net.train()
    tensors = PassTensors(net, ())
    net[2].running_mean.add_(1)
    assert tensors.changed() == []


def test_the_tensors_of_the_pass_are_lent() -> None:
    net = model()
    own, weight, head = net[1].book, net[0].weight, net[2]
    tensors = PassTensors(net, ["1.book"])
    net(IMAGES)
    other = nn.Parameter(torch.zeros_like(weight))
    net[0].weight, net[2] = other, nn.Identity()
    moved = own.clone()
    with tensors.lent(fixed=True, starts=True):
        assert net[0].weight is weight
        assert net[2] is head
        assert net[1].book.tolist() == [0.0] * 3
        assert not net[1].book.requires_grad
        net[1].book.data.add_(7)
    assert net[0].weight is other
    assert isinstance(net[2], nn.Identity)
    assert net[1].book is own
    assert torch.equal(own, moved)
    with tensors.lent(fixed=False, starts=False):
        assert net[0].weight is other
        assert net[1].book is own


def test_norms_in_a_plain_list_are_held_still() -> None:
    model = nn.Sequential(nn.Identity())
    model.norms = [nn.BatchNorm1d(2)]  # type: ignore[assignment]
    with held_still(model):
        model.norms[0](torch.randn(3, 2))
    assert not model.norms[0].running_mean.any()
    assert not model.norms[0].num_batches_tracked
