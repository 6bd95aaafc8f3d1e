"""What replays may skip: all that the code has no part in, and nothing else."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentaug.saliency import latent_saliency
from latentaug.tap import plan
from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.plan_cache import cache_of
from tests.models.case import Case
from tests.models.hostile import sizes
from tests.models.hostile.branches import DEPENDENT, SKIPPED, Branched, LateBranch
from tests.models.hostile.checkpointing import Checkpointed
from tests.models.hostile.table import CASES
from tests.models.parts import Base, conv
from tests.models.unet import unet
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


class Remembers(Base):
    """Adds the mean of all images that it has seen; kept by itself, or elsewhere."""

    def __init__(self, keeper: Any = None) -> None:
        super().__init__()
        self.keeper = lambda: self if keeper is None else keeper

    def forward(self, x: Tensor) -> Tensor:
        keeper = self.keeper()
        keeper.seen = getattr(keeper, "seen", 0) + x.mean().detach()
        return self.head(self.up(self.code(self.stem(x)))) + keeper.seen


def test_a_model_that_remembers_is_replayed_from_what_it_knew(images: Tensor) -> None:
    model = Remembers().double()
    with LatentTap(model, "code") as tap:
        for _ in range(3):
            logits, seen = model(images), model.seen
            for full in (False, True):
                assert torch.equal(tap.replay(None, full=full), logits)
                assert model.seen is seen
    assert torch.allclose(model.seen, 3 * images.mean())


def test_a_model_that_remembers_elsewhere_is_refused(images: Tensor) -> None:
    class Elsewhere:
        pass

    with (
        LatentTap(Remembers(Elsewhere()).double(), "code") as tap,
        pytest.raises(RuntimeError, match=r"cannot replay Remembers.*between calls, outside of its modules"),
    ):
        tap._model(images)


class DrawsOnce(Base):
    """Adds noise that it draws in its first pass, and drops some of what follows at random."""

    noise: dict[Any, Any]

    def __init__(self) -> None:
        super().__init__()
        self.noise = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] not in self.noise:
            self.noise[x.shape[1:]] = torch.randn(x.shape[1:], dtype=x.dtype)
        x = self.stem(x + self.noise[x.shape[1:]])
        return self.head(self.up(self.code(F.dropout(x))))


@pytest.mark.parametrize("size", [16, 64], ids=["small", "large"])
def test_what_is_drawn_once_is_drawn_once_in_replays_too(size: int) -> None:
    model, images = DrawsOnce().double(), torch.rand(4, 3, size, size, dtype=torch.float64)
    with LatentTap(model, "code") as tap:
        for _ in range(2):
            logits, noise = model(images), {**model.noise}
            for full in (False, True):
                assert torch.equal(tap.replay(None, full=full), logits)
            assert model.noise.keys() == noise.keys()
            assert all(model.noise[key] is one for key, one in noise.items())
        model.noise.clear()
        logits = model(images)
        for full in (False, True):
            assert torch.equal(tap.replay(None, full=full), logits)


class MovesNowAndThen(Base):
    """Follows the mean of its images in some passes only, by `.data`, of which no version counter tells."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.follows = False

    def forward(self, x: Tensor) -> Tensor:
        if self.follows:
            self.mean.data.copy_(0.9 * self.mean + 0.1 * x.mean())
        return self.head(self.up(self.code(self.stem(x)))) + self.mean.clone()


def test_what_moves_now_and_then_is_refused_with_the_reason_and_known_later(images: Tensor) -> None:
    model = MovesNowAndThen().double()
    with LatentTap(model, "code") as tap:
        model(images)
        for _ in range(2):
            model.follows = True
            model(images)
            with pytest.raises(RuntimeError, match="this pass has moved 'mean'"):
                tap.replay(None)
            model.follows = False
            logits = model(images)
            assert torch.equal(tap.replay(None), logits)
        model.follows = True
        for _ in range(2):
            logits = model(images)
            assert torch.equal(tap.replay(None), logits)


class MeanTeacher(Base):
    """Moves a teacher, whose weights somebody forgot to freeze, and adds what that makes of the images."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        teacher = copy.deepcopy(self.stem)
        self.teacher = [teacher] if hidden else nn.ModuleList([teacher])

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for mean, weight in zip(self.teacher[0].parameters(), self.stem.parameters(), strict=True):
                mean.lerp_(weight + 1, 0.1)
        return self.head(self.up(self.code(self.stem(x) + 0.1 * self.teacher[0](x).detach())))


@pytest.mark.parametrize("hidden", [False, True], ids=["submodule", "in a list"])
def test_weights_that_a_pass_moves_are_moved_by_it_alone(hidden: bool, images: Tensor) -> None:
    model = MeanTeacher(hidden).double()
    model.teacher[0].double()
    twin = copy.deepcopy(model)
    with LatentTap(model, "code") as tap:
        for _ in range(3):
            logits, expected = model(images), twin(images)
            for full in (False, True):
                for detach in (False, True):
                    assert torch.equal(tap.replay(None, full=full, detach=detach), logits)
            assert torch.equal(logits, expected)
            assert close(gradients(model, tap.replay(None)), gradients(twin, expected))
            assert same([*model.teacher[0].parameters()], [*twin.teacher[0].parameters()])


# Proofs on smaller images ---------------------------------------------------------------------------------------------


class Sizes:
    """Notes of which size the images are that a model is called with."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[int, ...]] = []
        model.register_forward_pre_hook(lambda module, args: self.seen.append(tuple(args[0].shape)))


LITTLE = [
    pytest.param(case, train, id=f"{name}-{'train' if train else 'eval'}")
    for name, case in {**CASES, **{one.__name__: Case(one, "code") for one in (*SKIPPED, *DEPENDENT)}}.items()
    for train in case.modes
]


def check_replays(case: Case, train: bool) -> list[tuple[int, ...]]:
    """Hold replays against the oracle, with passes of other images behind the tap's back; return the sizes seen."""
    reference, expected, _ = oracle(case, train, halved)
    expected_gradients = gradients(reference, expected)
    model = case.model(train)
    sizes = Sizes(model)
    with LatentTap(model, case.spot, call=case.call) as tap:
        seed_all(0)
        model(case.images())
        first = [*sizes.seen]
        for _ in range(2):
            replayed = tap.replay(halved)
            assert same(replayed, expected)
            assert close(gradients(model, replayed), expected_gradients)
            type(model).forward(model, case.images(1))
    return first


@pytest.mark.parametrize(("case", "train"), LITTLE)
def test_what_is_proved_on_smaller_images_is_as_exact(case: Case, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_smaller_sizes", lambda sample: [(8, 8)])
    sizes = check_replays(case, train)
    assert (2, 3, 8, 8) in sizes


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", sizes.CASES.values(), ids=sizes.CASES)
def test_what_large_images_alone_show_is_proved_on_these(case: Case, train: bool) -> None:
    seen = check_replays(case, train)
    assert (2, 3, 32, 32) in seen
    # Two passes find the code and the plan, and the last is the user's.
    assert seen.count(case.shape) > 3


def test_a_code_checkpointed_in_large_images_alone_is_found_to_be() -> None:
    case = Case(sizes.CheckpointedAroundTheCodeIfLarge, "code", shape=sizes.LARGE)
    model = case.model(True)
    with LatentTap(model, "code") as tap:
        model(case.images())
        with pytest.raises(RuntimeError, match="inside an activation-checkpointed part"):
            tap.replay(halved)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("batch", "small"), [(2, True), (8, True), (16, False)])
def test_a_first_pass_takes_little_of_a_batch(batch: int, small: bool, train: bool) -> None:
    """Where two images are little of a batch, they are not made smaller."""
    torch.manual_seed(0)
    model, images = unet(train=train).float(), torch.randn(batch, 3, 64, 96)
    seen = Sizes(model)
    for layer, most in (("encoder[1]", 5), (None, 5)):
        with FlopCounterMode(display=False) as plain:
            model(images)
        seen.seen.clear()
        with LatentTap(model, layer), FlopCounterMode(display=False) as first:
            model(images)
        cache_of(model).plans.clear()
        assert ((2, 3, 32, 32) in seen.seen) is small
        assert first.get_total_flops() <= most * plain.get_total_flops()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (sizes.CASES["RefusesSmallImages"], r"it refuses smaller ones \(32 x 32; ValueError: too small\)"),
        (sizes.CASES["SinglePositionIfSmall"], r"it has a code of a single position on smaller ones \(32 x 32\)"),
        (sizes.CASES["SkipsOnSelfIfLarge"], r"it does not run alike on smaller ones \(32 x 32\)"),
        (sizes.CASES["BranchOfTheCodeIfLarge"], r"it does not run alike on smaller ones \(32 x 32\)"),
        (Case(LateBranch, "code", shape=sizes.LARGE), r"smaller images take it nearly as long"),
    ],
    ids=str,
)
def test_a_long_proof_is_told_once_with_the_reason(
    case: Case, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    monkeypatch.setattr(plan, "_MANY", 0)
    monkeypatch.setattr(plan, "_LONG", 0)
    model = case.model(False)
    for train in (False, True):
        with LatentTap(model.train(train), "code"):
            model(case.images())
    said = [record.message for record in caplog.records if "to prove" in record.message]
    assert len(said) == 1
    assert re.search(f"to prove replays of {type(model).__name__}, because {reason}. Later", said[0])


def test_a_short_proof_is_not_told(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model = sizes.RefusesSmallImages().double()
    with LatentTap(model, "code"):
        model(sizes.CASES["RefusesSmallImages"].images())
    assert not caplog.records


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((256, 256), [(64, 64), (128, 128)]),
        ((192, 160), [(64, 64), (96, 96)]),
        ((80, 80), [(32, 32), (48, 48)]),
        ((64, 64), [(32, 32)]),
        ((8, 128, 96), [(8, 32, 32), (8, 64, 64)]),
        ((97, 97), [(32, 32), (49, 49)]),
        ((32, 40), []),
        ((16, 16), []),
    ],
)
def test_smaller_sizes_are_as_often_divisible_by_two(size: tuple[int, ...], smaller: list[tuple[int, ...]]) -> None:
    assert plan._smaller_sizes(((torch.zeros(1, 1, *size),), {})) == smaller


def test_only_images_and_what_has_no_positions_are_made_smaller() -> None:
    image, mask = torch.zeros(2, 1, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert plan._smaller_sizes(((image, mask), {"ages": torch.zeros(2), "name": "x"})) == [(32, 32)]
    assert plan._smaller_sizes(((image, torch.zeros(2, 5, 2)), {})) == []  # points in an image
    assert plan._smaller_sizes(((image, torch.zeros(2, 4)), {})) == []  # a box
    assert plan._smaller_sizes(((torch.zeros(2, 1, 64, 64, dtype=torch.complex64),), {})) == []
    assert plan._smaller_sizes(((torch.zeros(2, 128),), {})) == []


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
