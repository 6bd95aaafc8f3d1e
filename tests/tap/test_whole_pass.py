"""Mixing of a whole pass: exactly as if all that is alive at the code were mixed there, or refused; never half.

The oracle stops a plain pass at the code and mixes, in place, whatever the garbage collector finds alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from latentaug import LatentTap, augmented
from latentaug.tap.whole_pass import CannotFollow, ChangedReads, Unmixed
from latentaug.tracing.location import batch_of
from tests.models import mixing
from tests.models.case import Case
from tests.models.hostile import table as hostile
from tests.models.mixing import MixCase, Skip
from tests.models.parts import conv
from tests.support.compare import close, gradients, same
from tests.support.mixing import FixedMixup, mix_alive, mixed_by_hand, only_new_objects
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces
from tests.support.trees import leaves

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated.*",
    "ignore:.*attribute of a Tensor that is not a leaf.*",  # as a function is compiled
    "ignore:None of the inputs have requires_grad",  # of checkpointing
)

MIXUP = FixedMixup()
WAYS = ("fast", "full", "augmented")
HOSTILE = [
    pytest.param(case, train, id=f"{name}-{'train' if train else 'eval'}")
    for name, case in hostile.CASES.items()
    for train in case.modes
]
MIXING = [
    pytest.param(case, train, id=f"{name}-{'train' if train else 'eval'}")
    for name, case in mixing.CASES.items()
    for train in case.modes
]
REFUSED = {
    "AliasingViews": "in place and reads other views",
    "CheckpointedDecoder": "in a part that is checkpointed",
    "ComplexCode": "needs a floating-point code; got torch.complex128",
}
REFUSED_BY_AUGMENTED = {
    "HooksThatChange": "forward hooks of SkipConnection itself would see its inputs as they were",
    "HooksThatDraw": "forward hooks of SkipConnection itself would see its inputs as they were",
    "Recurrent": "comes to its layer a second time",
    "SiameseLast": "comes to its layer a second time",
}
# Their memory cannot be written to like that, or it is written to where checkpointing would see it.
BEYOND_THE_ORACLE = ("CodeIsAView", "CodeIsExpanded", "BackwardHooks", "CheckpointedBlockIsTapped")


NO_ORACLE = [
    mixing.CASES[name] for name in ("ChunksTakenBefore", "VectorisedBefore")
]  # for like reasons; they are below


def images_of(case: Case) -> Tensor:
    shape = (getattr(case, "samples", 3), *case.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixed(case: Case, train: bool, way: str, images: Tensor) -> tuple[nn.Module, Any]:
    """Run a fresh model, seeded alike, mixed by the library."""
    model = case.model(train)
    seed_all(0)
    if way == "augmented":
        with augmented(model, {case.spot: MIXUP}):
            return model, model(images)
    with LatentTap(model, case.spot, call=case.call) as tap:
        model(images)
        before, stream = traces(model), random_state()
        output = tap.replay(MIXUP, full=way == "full")
        assert traces(model) == before
        assert random_state() == stream
    return model, output


def ways_of(case: Case, train: bool) -> Iterator[str]:
    """Name the ways that a case can be mixed: in eval mode, nothing is augmented."""
    yield from WAYS if train and case.call == -1 else WAYS[:2]


@pytest.mark.parametrize(("case", "train"), HOSTILE)
def test_hostile_models_are_mixed_as_by_hand_or_refused(case: Case, train: bool) -> None:
    name = next(name for name, one in hostile.CASES.items() if one is case)
    images = images_of(case)
    if not (beyond := name in REFUSED or name in BEYOND_THE_ORACLE):
        _, expected, expected_gradients = mixed_by_hand(case, train, MIXUP, images)
    for way in ways_of(case, train):
        refused = REFUSED.get(name) or (way == "augmented" and REFUSED_BY_AUGMENTED.get(name))
        if refused:
            with pytest.raises((RuntimeError, TypeError), match=refused):
                mixed(case, train, way, images)
        elif beyond:
            mixed(case, train, way, images)
        else:
            model, output = mixed(case, train, way, images)
            assert close([t.detach() for t in leaves(output)], expected)
            assert close(gradients(model, output), expected_gradients, 1e-10)


@pytest.mark.parametrize(("case", "train"), MIXING)
def test_whatever_is_read_is_mixed_as_by_hand_or_refused(case: MixCase, train: bool) -> None:
    images = images_of(case)
    if not (beyond := case.refused or case in NO_ORACLE):
        _, expected, expected_gradients = mixed_by_hand(case, train, MIXUP, images)
    for way in ways_of(case, train):
        if case.refused or (way == "augmented" and case.calls > 1):
            with pytest.raises(CannotFollow, match=case.refused or "comes to its layer a second time"):
                mixed(case, train, way, images)
            continue
        if beyond:
            continue
        model, output = mixed(case, train, way, images)
        assert close([t.detach() for t in leaves(output)], expected)
        assert close(gradients(model, output), expected_gradients, 1e-10)


BY_HAND: dict[str, Callable[[Any, Tensor, Callable[[Tensor], Tensor]], Tensor]] = {}


def by_hand(function: Callable[[Any, Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Any:
    BY_HAND[function.__name__] = function
    return function


@by_hand
def Sum(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.stem(x)
    z, skip = mix(model.code(skip)), mix(skip)
    return model.head(F.relu(z) + skip)


@by_hand
def ImageToo(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.stem(x)
    z, skip, x = mix(model.code(skip)), mix(skip), mix(x)
    return model.head(torch.cat([F.relu(z)[:, :1], skip[:, :2], x[:, :1]], 1))


@by_hand
def ChunksTakenBefore(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.stem(x)
    z, skip = mix(model.code(skip)), mix(skip)
    return model.head(skip * z + skip)


@by_hand
def VectorisedBefore(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.stem(x).square()
    return model.head(mix(model.code(skip)) + mix(skip))


@by_hand
def InPlaceAfter(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.stem(x)
    z, other = mix(model.code(skip)), mix(skip)
    other = other + z
    other = torch.cat([torch.zeros_like(other[:, :1]), other[:, 1:]], 1)
    return model.head(F.relu(other * 0.5) * z)


@by_hand
def BatchNorms(model: Any, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    skip = model.both(model.before(model.stem(x)))
    z, skip = mix(model.code(skip)), mix(skip)
    return model.head(model.both(model.after(z + skip)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BY_HAND)
def test_models_written_out_by_hand(name: str, way: str) -> None:
    """The oracle's oracle."""
    case = mixing.CASES["TrainedNorms" if name == "BatchNorms" else name]
    images, model = images_of(case), case.model(True)
    expected = BY_HAND[name](model, images, MIXUP.mixed)
    other, output = mixed(case, True, way, images)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert close(gradients(other, output), gradients(model, expected), 1e-10)
    if case not in NO_ORACLE:
        _, again, found = mixed_by_hand(case, True, MIXUP, images)
        assert close(again, [expected.detach()])
        assert close(found, gradients(model, expected), 1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_hooks_on_gradients_see_those_of_the_mixture(way: str) -> None:
    case = hostile.CASES["BackwardHooks"]
    images, model = images_of(case), case.model(True)
    skip = model.middle(model.stem(images))
    z, skip = MIXUP.mixed(model.code(skip)), MIXUP.mixed(skip)
    expected = model.head(model.up(F.relu(z)) + skip)
    other, output = mixed(case, True, way, images)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    doubled = [2 * grad for grad in gradients(model, expected) if grad is not None]  # by the hook on the model itself
    assert close(gradients(other, output), doubled, 1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_whose_call_is_checkpointed_is_mixed_outside_of_it(way: str) -> None:
    case = hostile.CASES["CheckpointedBlockIsTapped"]
    images, model = images_of(case), case.model(True)
    a = MIXUP.mixed(model.stem(images))
    expected = model.head(model.up(model.code(a)) + a)
    other, output = mixed(case, True, way, images)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert close(gradients(other, output), gradients(model, expected), 1e-10)


# Other ways to run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Sum", "Checkpointed", "CheckpointedReentrantly", "OwnFunction", "TrainedNorms"])
@pytest.mark.parametrize("train", [False, True])
def test_without_gradients_nothing_hides_in_a_backward_pass(name: str, train: bool) -> None:
    case = mixing.CASES[name]
    images = images_of(case)
    reference = MixCase(case.build, case.layer)
    with torch.no_grad():
        _, expected, _ = mixed_by_hand(reference, train, MIXUP, images)
        for way in ways_of(case, train):
            _, output = mixed(case, train, way, images)
            assert not output.requires_grad
            assert close([output], expected)


@pytest.mark.parametrize("full", [False, True])
def test_a_detached_replay_gives_gradients_to_what_follows_only(full: bool) -> None:
    case = mixing.CASES["Sum"]
    images, model, plain = images_of(case), case.model(True), case.model(True)
    with torch.no_grad():
        skip = plain.stem(images)
        z, skip = MIXUP.mixed(plain.code(skip)), MIXUP.mixed(skip)
    expected = plain.head(F.relu(z) + skip)
    with LatentTap(model, "code") as tap:
        model(images).sum().backward()
        model.zero_grad()
        output = tap.replay(MIXUP, full=full, detach=True)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters()}
    assert [name for name, grad in found.items() if grad is not None] == ["head.weight", "head.bias"]
    for name, weight in plain.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad)


def test_running_statistics_stay_unless_they_are_to_move() -> None:
    case = mixing.CASES["TrainedNorms"]
    model, images = case.model(True), images_of(case)
    reference, _, _ = mixed_by_hand(case, True, MIXUP, images)
    with LatentTap(model, "code") as tap:
        model(images)
        state = {name: value.clone() for name, value in model.named_buffers()}
        tap.replay(MIXUP)
        assert same(dict(model.named_buffers()), state)
        tap.replay(MIXUP, update_stats=True, full=True)
    moved = dict(model.named_buffers())
    assert not torch.equal(moved["after.running_mean"], state["after.running_mean"])
    augmenting = case.model(True)
    with augmented(augmenting, {"code": MIXUP}):
        augmenting(images)
    # One pass, and no more, has moved them.
    assert close([one.double() for one in augmenting.buffers()], [one.double() for one in reference.buffers()])


@pytest.mark.parametrize("way", WAYS)
def test_under_autocast(way: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"stem": conv(3, 4), "code": conv(4, 4), "head": conv(4, 2)}).float()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            skip = self.parts["stem"](x)
            return self.parts["head"](self.parts["code"](skip) + skip + x[:, :1])

    net, images = Net(), torch.randn(4, 3, 8, 8)
    change = MIXUP(torch.zeros(4, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        skip = model["stem"](images)
        z = model["code"](skip)
        expected = model["head"](change(z) + change(skip) + change(images)[:, :1])
        if way == "augmented":
            with augmented(net, {"parts.code": MIXUP}):
                output = net(images)
        else:
            with LatentTap(net, "parts.code") as tap:
                net(images)
                output = tap.replay(MIXUP, full=way == "full")
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def test_several_codes_of_one_module_and_of_several() -> None:
    """The change is made at the earliest, and once."""
    torch.manual_seed(0)
    stages = nn.ModuleList([conv(3, 4), conv(4, 4, 2), conv(4, 4, 2)])

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = stages

        def forward(self, x: Tensor) -> list[Tensor]:
            features = []
            for stage in self.stages:
                features.append(x := stage(x))
            return features

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Pyramid(), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.encoder(x)
            b = b + F.interpolate(c, scale_factor=2)
            return self.head(a + F.interpolate(b, scale_factor=2))

    net, images = Net().double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        a, b, c = map(MIXUP.mixed, net.encoder(images))
        expected = net.head(a + F.interpolate(b + F.interpolate(c, scale_factor=2), scale_factor=2))
        for layers in ("encoder[2]", ["encoder[1]", "encoder[2]"], ["encoder[2]", "encoder[0]"]):
            with LatentTap(net, layers) as tap:
                net(images)
                torch.testing.assert_close(tap.replay(MIXUP), expected)
                torch.testing.assert_close(tap.replay(tap.draw(MIXUP), full=True), expected)
        first = MIXUP.mixed(net.encoder.stages[0](images))
        second = net.encoder.stages[1](first)
        third = net.encoder.stages[2](second)
        expected = net.head(first + F.interpolate(second + F.interpolate(third, scale_factor=2), scale_factor=2))
        with LatentTap(net, ["encoder.stages.0", "encoder[2]"]) as tap:
            net(images)
            torch.testing.assert_close(tap.replay(MIXUP), expected)


def test_images_that_a_model_changes_late_are_changed_once() -> None:
    class Centring(Skip):
        def forward(self, x: Tensor) -> Tensor:
            z = self.code(self.stem(x))
            x.sub_(x.mean((1, 2, 3), keepdim=True))
            return self.head(z + x[:, :1])

    torch.manual_seed(0)
    model, images = Centring().double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        z, x = MIXUP.mixed(model.code(model.stem(images))), MIXUP.mixed(images)
        expected = model.head(z + (x - x.mean((1, 2, 3), keepdim=True))[:, :1])
        given = images.clone()
        with LatentTap(model, "code") as tap:
            model(given)
            for full in (False, True):
                torch.testing.assert_close(tap.replay(MIXUP, full=full), expected)
        given = images.clone()
        with augmented(model, {"code": MIXUP}):
            torch.testing.assert_close(model(given), expected)
        assert torch.equal(given, images)  # what is changed in place is the mixture


def test_a_compiled_function_runs_as_it_is_written() -> None:
    class Compiled(Skip):
        def __init__(self) -> None:
            super().__init__()
            self.function = torch.compile(lambda z, skip: (z * skip).sin() + skip, backend="aot_eager")

        def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
            merged: Tensor = self.function(z, skip)
            return merged

    case = MixCase(Compiled, "code")
    images = images_of(case)
    _, expected, expected_gradients = mixed_by_hand(MixCase(WrittenOut, "code"), True, MIXUP, images)
    for way in WAYS:
        model, output = mixed(case, True, way, images)
        assert close([output.detach()], expected)
        assert close(gradients(model, output), expected_gradients, 1e-10)


class WrittenOut(Skip):
    def merge(self, z: Tensor, skip: Tensor, x: Tensor) -> Tensor:
        return (z * skip).sin() + skip


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_was_compiled_as_a_whole(way: str) -> None:
    case = mixing.CASES["Sum"]
    images, plain = images_of(case), case.model(True)
    compiled = torch.compile(plain, backend="eager")
    expected = BY_HAND["Sum"](plain, images, MIXUP.mixed)
    if way == "augmented":
        with augmented(compiled, {"code": MIXUP}):
            output = compiled(images)
    else:
        with LatentTap(compiled, "code") as tap:
            compiled(images)
            output = tap.replay(MIXUP, full=way == "full")
    torch.testing.assert_close(output, expected)


# What the machinery promises ----------------------------------------------------------------------------------------


def test_a_refusal_leaves_nothing_behind() -> None:
    case = mixing.CASES["BatchStatistics"]
    model, images = case.model(True), images_of(case)
    before = traces(model)
    with pytest.raises(CannotFollow), augmented(model, {"code": MIXUP}):
        model(images)
    with LatentTap(model, "code") as tap:
        model(images)
        with pytest.raises(CannotFollow):
            tap.replay(MIXUP)
        assert torch.equal(tap.replay(None), tap._captured("test").output)
    assert traces(model) == before
    assert torch.overrides._get_current_function_mode() is None
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_memory_that_was_freed_is_not_taken_for_what_takes_its_place() -> None:
    """Without gradients, what the encoder computed on the way is freed, and its memory's identity given to others."""

    class Long(Skip):
        def forward(self, x: Tensor) -> Tensor:
            skip = self.stem(x)
            for _ in range(30):
                skip = skip + 0.1 * skip.sin()
            z = self.code(skip)
            for _ in range(30):
                z = z + 0.1 * z.cos()
            return self.head(z + skip)

    case = MixCase(Long, "code")
    images = images_of(case)
    with torch.no_grad():
        _, expected, _ = mixed_by_hand(case, True, MIXUP, images)
        for _ in range(5):
            for way in WAYS:
                assert close([mixed(case, True, way, images)[1]], expected)


def test_what_is_followed_is_not_kept_alive() -> None:
    reads = ChangedReads(nn.Identity(), grad=False)
    images = torch.randn(2, 3)
    with reads.watching():
        reads.add(images)
        middle = images * 2
        memory = StorageWeakRef(middle.untyped_storage())
        late = (middle + 1) * 2
        assert not memory.expired()
        del middle
    assert memory.expired()
    assert late.shape == (2, 3)


def test_it_is_proved_once_that_rows_are_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    case = mixing.CASES["Sum"]
    model, images, calls = case.model(True), images_of(case), []
    original = model.stem.forward
    model.stem.forward = lambda x: calls.append(len(x)) or original(x)
    with augmented(model, {"code": MIXUP}):
        for _ in range(3):
            model(images)
        assert calls == [2, 3, 3, 3]
        model(images[:2])
        model(images[:2])
        assert calls[4:] == [4, 2, 2]
        model.code.eval()
        model.code.train()
        model.head.eval()
        model(images)
        assert calls[7:] == [2, 3]


def test_the_proof_leaves_no_trace() -> None:
    case = mixing.CASES["TrainedNorms"]
    reference, model, images = case.model(True), case.model(True), images_of(case)
    with torch.no_grad(), augmented(model, {"code": MIXUP}):
        seed_all(3)
        model(images)
        stream = random_state()
    seed_all(3)
    assert stream == random_state()
    with torch.no_grad():
        reference(images)
    assert all(int(one) == 1 for name, one in model.named_buffers() if name == "before.num_batches_tracked")
    assert torch.equal(model.before.running_mean, reference.before.running_mean)


def test_the_number_of_samples_is_that_of_the_image() -> None:
    image, vector = torch.zeros(3, 1, 8, 8), torch.zeros(5, 2)
    assert batch_of(((vector, image), {})) == 3
    assert batch_of(((), {"image": image, "ids": torch.zeros(7, dtype=torch.int64)})) == 3
    assert batch_of(((vector,), {})) == 5
    assert batch_of(((torch.zeros(4, dtype=torch.int64),), {})) is None


def test_a_model_of_vectors_is_mixed_too() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.code(x).unsqueeze(2).squeeze(2) + x)

    model, x = Net(), torch.randn(3, 4)
    reads = ChangedReads(model, grad=True)
    with reads.watching():
        reads.add(x)
        code = model.code(x)
        reads.begin(MIXUP(torch.zeros(3, 1, 1)), code)
        output = reads.finished(model.head(code + x))
    torch.testing.assert_close(output, model.head(MIXUP.mixed(model.code(x)) + MIXUP.mixed(x)))


def test_unmixed_is_a_change_that_changes_nothing() -> None:
    tensor = torch.randn(3)
    assert torch.equal(Unmixed().apply(tensor), tensor)
    assert Unmixed().apply(tensor) is not tensor


# Negative controls --------------------------------------------------------------------------------------------------


def test_the_oracle_mixes_and_finds_what_is_alive() -> None:
    case = mixing.CASES["Sum"]
    images, model = images_of(case), case.model(True)
    _, expected, expected_gradients = mixed_by_hand(case, True, MIXUP, images)
    plain = model(images)
    assert not close([plain.detach()], expected)
    skip = model.stem(images)
    half = model.head(F.relu(MIXUP.mixed(model.code(skip))) + skip)  # what a plain hook on the layer would do
    assert not close([half.detach()], expected)
    assert not close(gradients(model, half), expected_gradients)
    before = torch.randn(7, 2)
    with only_new_objects():
        alive = before.clone()
        kept, view, other = alive.clone(), alive[:, :1], torch.ones(8, 2)
        mix_alive(7, MIXUP.mixed, but=[kept])
    assert torch.equal(before, kept)
    assert torch.equal(alive, MIXUP.mixed(kept))
    assert torch.equal(view, alive[:, :1])
    assert torch.equal(other, torch.ones(8, 2))


def test_the_library_would_be_wrong_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the refusals above are known to refuse what would be wrong."""
    case = MixCase(mixing.CASES["ScriptedDecoder"].build, "code")
    images = images_of(case)
    _, expected, expected_gradients = mixed_by_hand(case, True, MIXUP, images)
    monkeypatch.setattr(
        ChangedReads, "ran", lambda self, operation, given, made: None if self.begun else self.add(made)
    )
    model, output = mixed(case, True, "augmented", images)
    assert close([output.detach()], expected)  # by chance: operations pass through Python on their way to the guard
    assert not close(gradients(model, output), expected_gradients)


def test_the_library_would_be_wrong_without_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens are as many as samples, their first axis passes for the batch."""
    case = mixing.CASES["AsManyTokensAsSamples"]
    images, model = images_of(case), case.model(False)
    grid = model.down(model.stem(images))
    tokens = grid.flatten(2).permute(2, 0, 1)
    memory = model.layer(tokens)
    assert len(memory) == len(images)
    z = model.code(memory.transpose(0, 1))
    right = MIXUP.mixed(z).transpose(0, 1) + MIXUP.mixed(memory.transpose(0, 1)).transpose(0, 1)
    wrong = MIXUP.mixed(z).transpose(0, 1) + MIXUP.mixed(memory)
    expected = [model.head(model.up(one.permute(1, 2, 0).view_as(grid))) for one in (right, wrong)]
    monkeypatch.setattr("latentaug.tap.latent_tap.see_that_rows_are_samples", lambda *_: None)
    _, output = mixed(case, False, "full", images)
    assert torch.allclose(output, expected[1])
    assert not torch.allclose(output, expected[0])


def test_the_messages_say_what_would_do() -> None:
    with pytest.raises(CannotFollow) as caught:
        mixed(mixing.CASES["Unpooling"], True, "fast", images_of(mixing.CASES["Unpooling"]))
    assert str(caught.value) == (
        "Unpooling reads, after the code, a tensor of int64 of shape (2, 4, 8, 8) from before it. A transform that "
        "changes a whole pass, as mixing samples does, cannot follow there. Tap another layer, or use a transform of "
        "the code alone."
    )
    assert isinstance(caught.value, RuntimeError)
