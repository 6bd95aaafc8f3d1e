"""What replays may skip: all that the code has no part in, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap
from tests.models.case import Case
from tests.models.hostile.branches import DEPENDENT, SKIPPED, Branched, LateBranch
from tests.models.hostile.checkpointing import Checkpointed
from tests.models.parts import Base, conv
from tests.support.compare import close, gradients, same
from tests.support.counting import CountOperations
from tests.support.oracle import halved, oracle
from tests.support.random_streams import seed_all
from tests.support.traces import traces


def mirrored(code: Tensor) -> Tensor:
    return code.flip(-1)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("change", [halved, mirrored])
@pytest.mark.parametrize("build", SKIPPED + DEPENDENT)
def test_replays_equal_the_oracle(build: type[Branched], change: Callable[[Tensor], Tensor], train: bool) -> None:
    case = Case(build, "code")
    reference, expected, _ = oracle(case, train, change)
    model = case.model(train)
    with LatentTap(model, "code") as tap:
        model(case.images(1))
        seed_all(0)
        model(case.images())
        for _ in range(2):
            replayed = tap.replay(change)
            assert same(replayed, expected)
        assert close(gradients(model, replayed), gradients(reference, expected))


@pytest.mark.parametrize(("build", "computed"), [(LateBranch, 2), *((build, 3) for build in DEPENDENT)])
def test_only_what_depends_on_the_code_is_computed(build: type[Branched], computed: int) -> None:
    model, images = build(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, "code") as tap:
        model(images)
        with CountOperations() as operations:
            tap.replay(tap.code)
    assert operations.count == computed


def test_a_detached_replay_gives_gradients_to_all_that_follows_the_code() -> None:
    model, images = LateBranch(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, "code") as tap:
        model(images)
        tap.replay(tap.code.detach(), detach=True).square().mean().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {f"{name}.{kind}" for name in ("up", "branch", "head") for kind in ("weight", "bias")}


def test_with_two_codes_what_depends_on_either_is_computed() -> None:
    class TwoStreams(Branched):
        def __init__(self) -> None:
            super().__init__()
            self.second = conv(4, 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.stem(x)
            up = self.up(self.code(a))
            return self.head(up + self.branch(a) + F.interpolate(self.second(a), scale_factor=2)[:, :4])

    torch.manual_seed(0)
    model, images = TwoStreams(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, ["code", "second"]) as tap:
        model(images)
        new = [code * 0.5 for code in tap.codes]
        with CountOperations() as operations:
            replayed = tap.replay(new)
        a = model.stem(images)
        expected = model.head(model.up(new[0]) + model.branch(a) + F.interpolate(new[1], scale_factor=2)[:, :4])
    assert torch.equal(replayed, expected)
    assert operations.count == 2


def test_a_batch_that_must_not_be_cut_is_planned_whole() -> None:
    class Insists(Base):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 3:
                raise ValueError("three at a time")
            return self.head(self.up(self.code(self.stem(x))))

    model, images = Insists(), torch.randn(3, 3, 8, 8)
    with LatentTap(model, "code") as tap:
        logits = model(images)
        assert torch.equal(tap.replay(tap.code), logits)


def test_weights_changed_by_the_pass_itself_are_no_optimizers_doing(images: Tensor) -> None:
    class Clamps(Base):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.stem.weight.clamp_(-0.1, 0.1)
            return self.head(self.up(self.code(self.stem(x))))

    model = Clamps().double()
    with LatentTap(model, "code") as tap:
        logits = model(images)
        for _ in range(2):
            assert torch.equal(tap.replay(tap.code), logits)


def test_a_model_that_remembers_is_refused(images: Tensor) -> None:
    class Remembers(Base):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = getattr(self, "seen", 0) + x.mean().detach()
            return self.head(self.up(self.code(self.stem(x)))) + self.seen

    with (
        LatentTap(Remembers().double(), "code") as tap,
        pytest.raises(RuntimeError, match=r"cannot replay Remembers.*keeps state of its own between calls"),
    ):
        tap._model(images)


# Checkpointing --------------------------------------------------------------------------------------------------------


WITHIN = "'code': it runs inside an activation-checkpointed part of Checkpointed"


def test_a_code_within_a_part_checkpointed_reentrantly_is_refused(images: Tensor) -> None:
    model = Checkpointed("around", True).double()
    before = traces(model)
    with LatentTap(model, "code"), pytest.raises(RuntimeError, match=f"{WITHIN}.* Tap the module"):
        model(images.requires_grad_())
    assert traces(model) == before


@pytest.mark.parametrize("full", [False, True])
def test_a_code_within_a_checkpointed_part_has_exact_replays_without_gradients(images: Tensor, full: bool) -> None:
    """The backward pass of a replay would run the part again, with the old code."""
    torch.manual_seed(1)
    model = Checkpointed("around", False).double()
    torch.manual_seed(1)
    plain = Checkpointed("none", False).double()
    before = traces(model)
    with LatentTap(model, "code") as tap, LatentTap(plain, "code") as other:
        loss, expected = model(images).square().sum(), plain(images).square().sum()
        assert torch.equal(latent_saliency(loss, tap.code), latent_saliency(expected, other.code))
        with torch.no_grad():
            assert torch.equal(tap.replay(tap.code * 0.5, full=full), other.replay(other.code * 0.5))
        with pytest.raises(RuntimeError, match=rf"{WITHIN}.* Replay under torch.no_grad\(\), or tap the module"):
            tap.replay(tap.code * 0.5, full=full)
        loss.backward()
        expected.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert traces(model) == before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["before", "after", "code"])
def test_other_checkpointed_parts_are_replayed_exactly(images: Tensor, part: str, reentrant: bool) -> None:
    if part == "code" and reentrant:
        pytest.skip("refused, like every code of a part that runs without a graph")
    images.requires_grad_()  # reentrant checkpointing loses gradients otherwise

    def fresh(which: str) -> Checkpointed:
        torch.manual_seed(1)
        return Checkpointed(which, reentrant).double()

    model, plain = fresh(part), fresh("none")
    plain.code.register_forward_hook(lambda module, args, output: output * 0.5)
    plain(images).square().sum().backward()
    for full in (False, True):
        model.zero_grad()
        with LatentTap(model, "code") as tap:
            model(images)
            tap.replay(tap.code * 0.5, full=full).square().sum().backward()
        assert close([w.grad for w in model.parameters()], [w.grad for w in plain.parameters()])


def test_saliency_through_reentrant_checkpointing_says_what_to_do(images: Tensor) -> None:
    model = Checkpointed("after", True).double()
    with (
        LatentTap(model, "code") as tap,
        pytest.raises(RuntimeError, match="reentrant activation checkpointing: pass use_reentrant=False"),
    ):
        latent_saliency(model(images.requires_grad_()).sum(), tap.code)
