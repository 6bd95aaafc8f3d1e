"""Replays are their pass again, or are refused: whatever happened to weights, modes, state and data flow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from latentaug.tap.latent_tap import LatentTap
from tests.models.parts import Base
from tests.support.compare import close, gradients
from tests.support.oracle import halved


class Skip(Base):
    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


def built(kind: type[nn.Module] = Skip, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind().double()


def by_hook(model: Any, run: Callable[[], Tensor]) -> Tensor:
    handle = model.code.register_forward_hook(lambda module, args, output: halved(output))
    try:
        return run()
    finally:
        handle.remove()


# Weights --------------------------------------------------------------------------------------------------------------


def swap_parameter(model: Any) -> None:
    model.head.weight = nn.Parameter(torch.zeros_like(model.head.weight))


def swap_module(model: Any) -> None:
    model.up = nn.ConvTranspose2d(6, 4, 2, 2).double()


def delete_bias(model: Any) -> None:
    model.head.bias = None


CHANGED: dict[str, Callable[[Any], object]] = {
    "by data": lambda model: [weight.data.add_(0.1) for weight in model.parameters()],
    "one by data": lambda model: model.head.bias.data.add_(0.1),
    "frozen ones": lambda model: model.requires_grad_(False).head.weight.data.mul_(2),
    "by vector": lambda model: vector_to_parameters(parameters_to_vector(model.parameters()) * 1.1, model.parameters()),
    "loaded": lambda model: model.load_state_dict(built(seed=1).state_dict()),
    "by a moving average": lambda model: torch._foreach_lerp_(
        [weight.data for weight in model.parameters()], [weight.data for weight in built(seed=1).parameters()], 0.5
    ),
    "by numpy": lambda model: model.stem.weight.detach().numpy().__imul__(2),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", CHANGED)
def test_changed_weights_are_refused(change: str, grad: bool, full: bool, images: Tensor) -> None:
    model = built()
    with LatentTap(model, "code") as tap, torch.set_grad_enabled(grad):
        model(images)
        CHANGED[change](model)
        with pytest.raises(RuntimeError, match="needs the weights as they were in the forward pass, but '"):
            tap.replay(halved, full=full)
        model(images)
        assert torch.equal(tap.replay(halved, full=full), by_hook(model, lambda: model(images)))


def test_a_detached_replay_is_wholly_of_the_changed_weights(images: Tensor) -> None:
    model = built()
    with LatentTap(model, "code") as tap:
        model(images)
        CHANGED["by data"](model)
        assert torch.equal(tap.replay(halved, detach=True), by_hook(model, lambda: model(images)))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("swap", [swap_parameter, swap_module, delete_bias])
def test_what_was_put_in_the_place_of_weights_is_not_used(
    swap: Callable[[Any], None], full: bool, images: Tensor
) -> None:
    model = built()
    expected = by_hook(model, lambda: model(images))
    with LatentTap(model, "code") as tap:
        model(images)
        swap(model)
        there = dict(model.named_parameters(), **dict(model.named_modules()))
        assert torch.equal(tap.replay(halved, full=full), expected)
        assert {**dict(model.named_parameters()), **dict(model.named_modules())} == there


@pytest.mark.parametrize("full", [False, True])
def test_a_functional_call_is_replayed_with_its_weights(full: bool, images: Tensor) -> None:
    model = built()
    inner = {name: (1.5 * value + 0.1).detach().requires_grad_() for name, value in model.named_parameters()}

    def run() -> Tensor:
        return torch.func.functional_call(model, inner, (images,))  # type: ignore[no-any-return]

    expected = by_hook(model, run)
    right = torch.autograd.grad(expected.square().sum(), [*inner.values()])
    with LatentTap(model, "code") as tap:
        run()
        replayed = tap.replay(halved, full=full)
        assert torch.equal(replayed, expected)
        assert close(list(torch.autograd.grad(replayed.square().sum(), [*inner.values()])), list(right))


# Modes and state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("part", ["", "up"])
def test_modes_switched_in_between_are_refused(part: str, full: bool, images: Tensor) -> None:
    model = built()
    with LatentTap(model, "code") as tap:
        logits = model(images)
        model.get_submodule(part).eval()
        with pytest.raises(RuntimeError, match=f"{part or 'the model'!r} was switched to eval mode since"):
            tap.replay(None, full=full)
        model.train()
        assert torch.equal(tap.replay(None, full=full), logits)


class Own(nn.Module):
    """Batch normalisation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class Book(nn.Module):
    """Quantises by a frozen codebook that follows what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(5, 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.movedim(1, -1)
        nearest = torch.cdist(flat.reshape(-1, 4), self.rows).argmin(1)
        quantised = self.rows[nearest].view_as(flat).movedim(-1, 1)
        self.rows.data[0].lerp_(x.detach().mean((0, 2, 3)), 0.3)
        return x + (quantised - x).detach()


class Keeps(nn.Module):
    """Subtracts what it keeps of the passes before: as a tensor, in a list, and in a number."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.last, self.passes = torch.zeros(4).double(), [torch.zeros(()).double()], 0

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.average.view(1, -1, 1, 1) - self.last[-1] * 0.5 + 0.01 * self.passes
        self.average.lerp_(x.detach().mean((0, 2, 3)), 0.2)
        self.last.append(x.detach().mean())
        self.passes += 1
        return y


class Tracking(nn.InstanceNorm2d):
    def __init__(self) -> None:
        super().__init__(4, track_running_stats=True)


def with_parts(kind: type[nn.Module]) -> type[nn.Module]:
    class Holds(Base):
        """Has a part that moves before the code and after it, the same one twice."""

        def __init__(self) -> None:
            super().__init__()
            self.part = kind()

        def forward(self, x: Tensor) -> Tensor:
            a = self.part(self.stem(x))
            return self.head(self.part(self.up(self.code(a))) + a)

    return Holds


def held(model: Any) -> Any:
    part = vars(model.part)
    plain = {key: copy.deepcopy(part[key]) for key in ("average", "last", "passes") if key in part}
    return {name: value.clone() for name, value in model.state_dict().items()}, plain


@pytest.mark.parametrize("options", [{}, {"full": True}, {"detach": True}, {"detach": True, "full": True}], ids=str)
@pytest.mark.parametrize("kind", [Own, Book, Keeps, Tracking])
def test_what_moves_starts_from_the_pass_and_stays(kind: type[nn.Module], options: Any, images: Tensor) -> None:
    model = built(with_parts(kind))
    with LatentTap(model, "code") as tap:
        for seed in range(2):
            batch = images + seed
            plain = built(with_parts(kind))
            for before in range(seed + 1):
                expected = plain(images + before)
            logits = model(batch)
            assert torch.equal(logits, expected)
            now = held(model)
            assert torch.equal(tap.replay(None, **options), logits)
            tap.replay(lambda code: code * 100, **options)
            for old, new in zip(now, held(model), strict=True):
                assert old.keys() == new.keys()
                assert all(str(old[key]) == str(new[key]) for key in old)
            assert all(torch.equal(value, held(plain)[0][name]) for name, value in held(model)[0].items())


def test_a_counter_counts_passes_and_not_replays(images: Tensor) -> None:
    model = built(with_parts(Keeps))
    with LatentTap(model, "code") as tap:
        model(images)
        for _ in range(3):
            tap.replay(halved)
    assert model.part.passes == 2  # as it is called twice in a pass
    assert len(model.part.last) == 3


# Plans that go stale --------------------------------------------------------------------------------------------------


class Warms(Base):
    """A gate reads the skip connection, and from some moment on the code, in the graph or out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.source = nn.Linear(4, 4), "skip"

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        given = {"skip": a, "code": up, "detached": up.detach()}[self.source]
        return self.head(up + a * self.gate(given.mean((2, 3))).sigmoid()[..., None, None])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("later", ["code", "detached", "skip"])
@pytest.mark.parametrize("first", ["skip", "code"])
def test_a_call_that_comes_to_read_the_code_is_made(first: str, later: str, grad: bool, images: Tensor) -> None:
    model = built(Warms)
    with LatentTap(model, "code") as tap, torch.set_grad_enabled(grad):
        for model.source in (first, later, first):
            model(images)
            assert torch.equal(tap.replay(halved), by_hook(model, lambda: model(images)))


class Stashes(Base):
    """From some moment on, what precedes the code leaves the skip connection on a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stash = False
        self.stem.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self.stash:
            self.head.skip = output

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up + (self.head.skip if self.stash else a))


def test_state_that_comes_to_be_kept_is_noticed(images: Tensor) -> None:
    model = built(Stashes)
    with LatentTap(model, "code") as tap:
        for step in range(4):
            model.stash = step > 0
            model(images + step)
            expected = by_hook(model, lambda step=step: model(images + step))  # type: ignore[misc]
            model(images + step)
            model.head.skip = None  # nothing of the pass may be left to find
            assert torch.equal(tap.replay(halved), expected)


class Saves(Base):
    """Checkpoints a part, from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.part = ""

    def run(self, part: str, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        return checkpoint(function, *args, use_reentrant=False) if part == self.part else function(*args)

    def forward(self, x: Tensor) -> Tensor:
        a = self.run("before", lambda x: self.stem(x).sin(), x)
        z = self.run("around", lambda a: self.code(a).sin(), a)
        return self.run("after", lambda z, a: self.head(self.up(z.exp()) + a), z, a)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("part", ["before", "around", "after"])
def test_checkpointing_switched_on_later_is_right_or_refused(part: str, full: bool, images: Tensor) -> None:
    model = built(Saves)
    expected = by_hook(model, lambda: model(images))
    right = gradients(model, expected)
    for model.part in ("", part, part, ""):
        with LatentTap(model, "code") as tap:
            model(images)
            if model.part == "around":
                with pytest.raises(RuntimeError, match=r"LatentTap cannot replay from 'code': .*checkpointed part"):
                    tap.replay(halved, full=full)
                with torch.no_grad():
                    assert torch.equal(tap.replay(halved, full=full), expected)
                continue
            replayed = tap.replay(halved, full=full)
            assert torch.equal(replayed, expected)
            assert close(gradients(model, replayed), right)


class NormsCheckpointed(Base):
    """Batch normalisation is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(self.norms[0], self.stem(x), use_reentrant=False)
        b = checkpoint(self.norms[1], self.up(self.code(a)), use_reentrant=False)
        return self.head(a + b)


@pytest.mark.parametrize("full", [False, True])
def test_norms_in_checkpointed_parts_are_derived_as_in_a_whole_pass(full: bool, images: Tensor) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return NormsCheckpointed().double()

    plain, model = fresh(), fresh()
    plain.code.register_forward_hook(lambda module, args, code: halved(code))
    expected = gradients(plain, plain(images))
    with LatentTap(model, "code") as tap:
        model(images)
        statistics = model.norms[1].running_mean.clone()
        output = tap.replay(halved, full=full)
        assert torch.equal(model.norms[1].running_mean, statistics)
        assert close(gradients(model, output), expected)


class Transformer(nn.Module):
    """A transformer encoder in eval mode, of which a part drops out all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.code, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.eval()
        self.first.dropout1.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(self.first(x)))


@pytest.mark.parametrize("full", [False, True])
def test_a_detached_replay_takes_no_fast_path_that_the_pass_has_not_taken(full: bool) -> None:
    torch.manual_seed(0)
    model = Transformer().double()
    with LatentTap(model, "code") as tap:
        output = model(torch.randn(2, 3, 4, dtype=torch.float64))
        replayed = tap.replay(None, full=full, detach=True)
    assert close([replayed], [output])
    assert torch.backends.mha.get_fastpath_enabled()
