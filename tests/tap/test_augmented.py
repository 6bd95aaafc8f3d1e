"""Codes changed in the user's own pass: as a plain hook would, in eval mode not at all, and no trace left."""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
import logging
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from latentaug import (
    GIN,
    Compose,
    DropBlock,
    LatentTap,
    LatentTransform,
    ManifoldMixup,
    MixStyle,
    OneOf,
    RandomApply,
    RandomChannelMask,
    TargetedChannelMask,
    augmented,
    suggest_layers,
)
from latentaug.layout import TOKENS, Layout
from latentaug.tracing.location import Location
from tests.models.handwritten.unets import FunctionalUNet
from tests.models.hostile.table import CASES
from tests.models.parts import conv
from tests.support.compare import close, gradients, same
from tests.support.graphs import Graphs
from tests.support.mixing import FixedMixup
from tests.support.processes import found_by_ranks
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces
from tests.support.trees import at, swapped

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*attribute of a Tensor that is not a leaf.*",
    "ignore:.*deprecated.*",
    "ignore:None of the inputs have requires_grad",
)

TRANSFORMS: dict[str, LatentTransform] = {
    "MixStyle": MixStyle(p=1),
    "MixStyle of some": MixStyle(p=0.5, per_sample=True),
    "DropBlock": DropBlock(0.3, 3),
    "GIN": GIN(),
    "RandomChannelMask": RandomChannelMask(),
    "Compose": Compose([MixStyle(p=1), RandomChannelMask()]),
    "OneOf": OneOf([MixStyle(p=1), GIN()]),
    "RandomApply": RandomApply(GIN(), p=0.5),
}
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


class Scaled(LatentTransform):
    """Multiply and add, always alike."""

    def __init__(self, by: float = 0.5) -> None:
        super().__init__()
        self.by = by

    def make_params(self, code: Tensor, context: Any) -> dict[str, Any]:
        return {}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code * self.by + 1


class MixedLabels(Scaled):
    """Mix each label with the one `places` on."""

    def __init__(self, by: float, places: int, own: float) -> None:
        super().__init__(by)
        self.places, self.own = places, own

    def loss(self, criterion: Any, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        other = criterion(logits, labels.roll(-self.places, 0))
        loss: Tensor = self.own * criterion(logits, labels) + (1 - self.own) * other
        return loss


def unet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FunctionalUNet().double()


def images_of(batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 16, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(batch: int = 4) -> Tensor:
    return torch.randint(2, (batch, 16, 24), generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hook(model: nn.Module, layer: str, path: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> None:
    """Change what a layer returns at every call, by the plainest means."""
    module = model.get_submodule(layer)
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        return swapped(output, at(output, path), change(at(output, path)))

    module.__dict__["forward"] = forward


# As a plain hook would --------------------------------------------------------------------------------------------

PREFIXES = {"TokensWithPrefix": 1}  # tokens that are left alone
NO_LAYOUT = {"ComplexCode": "needs a floating-point code"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if True in case.modes])
def test_any_model_and_container_is_changed_as_by_a_hook(name: str) -> None:
    case, prefix = CASES[name], PREFIXES.get(name, 0)
    reference, model = case.model(True), case.model(True)

    def change(code: Tensor) -> Tensor:
        return torch.cat([code[:, :prefix], code[:, prefix:] * 0.5 + 1], 1) if prefix else code * 0.5 + 1

    hook(reference, case.layer, case.path, change)
    seed_all(0)
    expected, stream = reference(case.images()), random_state()
    expected_gradients = gradients(reference, expected)
    before = traces(model)
    seed_all(0)
    with augmented(model, {case.spot: Scaled()}):
        if name in NO_LAYOUT:
            with pytest.raises(TypeError, match=NO_LAYOUT[name]):
                model(case.images())
            return
        output, left = model(case.images()), random_state()
        # What checkpointing computes again is to be changed again.
        found = gradients(model, output) if name == "CheckpointedBlockIsTapped" else None
    assert left == stream
    assert same(output, expected)
    assert close(gradients(model, output) if found is None else found, expected_gradients)
    assert forwards(model) == {name: one[:2] for name, one in before.items()}


def forwards(model: nn.Module) -> dict[str, Any]:
    """What stands in for each module's forward."""
    return {name: one[:2] for name, one in traces(model).items()}


@EVERY_TRANSFORM
def test_a_change_of_chance_is_the_same_in_a_hook(transform: LatentTransform) -> None:
    model, reference, images = unet(), unet(), images_of()
    for _ in range(3):
        with augmented(model, {"enc1": transform}, generator=seeded(3)) as run:
            output = model(images)
            change = run.changes["enc1"]
        again = copy.deepcopy(reference)
        hook(again, "enc1", (), change.apply)
        expected = again(images)
        assert torch.equal(output, expected)
        assert close(gradients(model, output), gradients(again, expected))


def test_several_layers_each_with_a_transform_of_its_own() -> None:
    model, reference, images = unet(), unet(), images_of()
    with augmented(
        model, {"enc1": MixStyle(p=1), "bottom": GIN(), "dec2": DropBlock(0.3, 3)}, generator=seeded()
    ) as run:
        output = model(images)
        assert list(run.changes) == ["enc1", "bottom", "dec2"]
        for layer, change in run.changes.items():
            hook(reference, layer, (), change.apply)
    expected = reference(images)
    assert torch.equal(output, expected)
    assert not torch.equal(output, unet()(images))
    assert close(gradients(model, output), gradients(reference, expected))


def test_one_transform_for_several_layers_samples_for_each() -> None:
    model, mask = unet(), RandomChannelMask()
    with augmented(model, {"enc1": mask, "enc2": mask}) as run:
        model(images_of())
        first, second = run.changes.values()
    assert (first.factor.shape[1], second.factor.shape[1]) == (8, 16)


def test_layers_in_a_tuple_share_one_change() -> None:
    model = FunctionalUNet()
    images = torch.randn(4, 3, 16, 24)
    with augmented(model, {("enc1", "bottom"): MixStyle(p=1), "enc2": MixStyle(p=1)}) as run:
        model(images)
        changes = run.changes
        assert set(changes) == {"enc1", "bottom", "enc2"}
        assert all(
            torch.equal(changes["enc1"].params[name], changes["bottom"].params[name]) for name in ("order", "own")
        )
        assert not torch.equal(changes["enc1"].params["own"], changes["enc2"].params["own"])
        model(images)
        assert not torch.equal(run.changes["enc1"].params["own"], changes["enc1"].params["own"])
        assert torch.equal(run.changes["enc1"].params["own"], run.changes["bottom"].params["own"])
    with augmented(model, {("enc1", "bottom"): DropBlock(0.3, 3)}):  # noqa: SIM117
        with pytest.raises(ValueError, match=r"'bottom' shares a change of DropBlock with other layers, which does"):
            model(images)
    with pytest.raises(ValueError, match=r"ManifoldMixup changes a whole pass, from one layer on; got \('enc1', "):
        augmented(model, {("enc1", "bottom"): ManifoldMixup()})


@pytest.mark.parametrize("layer", ["enc1", "enc2", "bottom", "dec1"])
def test_replays_of_a_shared_change_are_exact_whatever_they_skip(layer: str) -> None:
    torch.manual_seed(0)
    model = FunctionalUNet().double()
    images = torch.randn(4, 3, 16, 24, dtype=torch.float64)
    with augmented(model, {("enc1", "bottom"): MixStyle(p=1), "dec1": MixStyle(p=1)}), LatentTap(model, layer) as tap:
        for _ in range(2):
            output = model(images)
            assert torch.equal(tap.replay(None), output)
            assert torch.equal(tap.replay(tap.code), output)
            assert torch.equal(tap.replay(tap.code, full=True), output)


def test_an_index_changes_what_its_reader_gets_and_a_module_all_that_follows() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(3, 4), conv(4, 4)

        def forward(self, x: Tensor) -> list[Tensor]:
            first = self.first(x)
            return [first, self.second(first)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Encoder(), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            skip, z = self.encoder(x)
            return self.head(skip * z)

    torch.manual_seed(0)
    net, images = Net().double(), images_of()
    first = net.encoder.first(images)
    change = Scaled()(first)
    with augmented(net, {"encoder[0]": Scaled()}):
        torch.testing.assert_close(net(images), net.head(change(first) * net.encoder.second(first)))
    with augmented(net, {net.encoder.first: Scaled()}):
        torch.testing.assert_close(net(images), net.head(change(first) * net.encoder.second(change(first))))
    with augmented(net, {"encoder[0]": Scaled(), "encoder[1]": Scaled(3)}):
        torch.testing.assert_close(net(images), net.head(change(first) * Scaled(3)(first)(net.encoder.second(first))))


def test_a_layer_that_is_called_twice_is_changed_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = conv(3, 3), conv(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(x)))

    torch.manual_seed(0)
    net, images = Net().double(), images_of()
    logits, labels = torch.randn(4, 2, 3), torch.randint(2, (4, 3))
    with augmented(net, {"block": MixedLabels(0.5, 1, 0.9)}) as run:
        output = net(images)
        loss = run.loss(F.cross_entropy, logits, labels)
    expected = net.head(net.block(net.block(images) * 0.5 + 1) * 0.5 + 1)
    torch.testing.assert_close(output, expected)
    soft = F.one_hot(labels, 2).movedim(-1, 1).float()
    for _ in range(2):
        soft = 0.9 * soft + 0.1 * soft.roll(-1, 0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft))


@pytest.mark.parametrize("whole", [False, True])
def test_under_autocast(whole: bool) -> None:
    model, images = unet().float(), images_of().float()
    transform = FixedMixup() if whole else MixStyle(p=1)
    with torch.autocast("cpu", torch.bfloat16), augmented(model, {"bottom": transform}, generator=seeded()) as run:
        output = model(images)
        change = run.changes["bottom"]
    assert output.dtype == torch.bfloat16
    if whole:
        return  # held against its oracle elsewhere
    reference = unet().float()
    hook(reference, "bottom", (), change.apply)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output, reference(images))


# Where no layer is named --------------------------------------------------------------------------------------------


class Early(Scaled):
    """Goes to the first two stages."""

    place = "early"


@pytest.mark.parametrize("attached", [False, True])
def test_a_transform_by_itself_goes_where_it_is_suggested(attached: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model, reference, images = unet(), unet(), images_of()
    before = forwards(model)
    suggestion = suggest_layers(model, images, Early())
    assert list(map(str, suggestion.layers)) == ["enc1", "enc2"]
    for layer in ("enc1", "enc2"):
        hook(reference, layer, (), lambda code: code * 0.5 + 1)
    seed_all(0)
    expected, stream = reference(images), random_state()
    run = augmented(model, Early())
    run = run.attach() if attached else run.__enter__()
    for _ in range(2):
        seed_all(0)
        torch.testing.assert_close(model(images), expected)
        assert random_state() == stream
        assert list(run.changes) == ["enc1", "enc2"]
    run.remove()
    assert forwards(model) == before
    with augmented(model, Early()):
        torch.testing.assert_close(model(images), expected)
    said = [record.message for record in caplog.records if "augmented puts" in record.message]
    assert said == [f"augmented puts Early of FunctionalUNet at {suggestion}."]


def test_it_samples_for_each_layer_anew() -> None:
    model, images = unet(), images_of()
    with augmented(model, MixStyle(p=1)) as run:
        model(images)
        model(images)
        first, second = (change.params["own"] for change in run.changes.values())
    assert not torch.equal(first.flatten()[: len(images)], second.flatten()[: len(images)])


def test_a_change_of_the_whole_pass_is_made_at_the_last_of_its_layers() -> None:
    images, labels = images_of(), labels_of()
    losses = []
    for transforms in (ManifoldMixup(), {"enc2": ManifoldMixup()}):
        seed_all(0)
        model = unet()
        with augmented(model, transforms, generator=seeded()) as run:
            losses.append(run.loss(F.cross_entropy, model(images), labels))
            assert list(run.changes) == ["enc2"]
    assert torch.equal(*losses)


def test_the_pass_that_finds_the_layers_may_be_of_evaluation() -> None:
    model, images = unet().eval(), images_of()
    expected = model(images)
    with augmented(model, Early()) as run:
        with torch.no_grad():
            assert torch.equal(model(images), expected)
        model.train()
        assert not torch.allclose(model(images), expected)
        assert list(run.changes) == ["enc1", "enc2"]


def test_a_copy_before_the_first_pass_is_plain() -> None:
    model, images = unet().eval(), images_of()
    attached = augmented(model, Early()).attach()
    twin = copy.deepcopy(model).train()
    attached.remove()
    plain = unet().train()
    assert torch.equal(twin(images), plain(images))


def test_a_model_without_such_layers_is_refused_at_its_first_pass() -> None:
    model, images = nn.Sequential(conv(3, 4), conv(4, 2)), images_of().float()
    before = forwards(model)
    with augmented(model, MixStyle()), pytest.raises(ValueError, match="suggest_layers cannot place MixStyle"):
        model(images)
    assert forwards(model) == before


def test_layers_are_found_inside_a_tap_s_context_and_not_around_it() -> None:
    model, images = unet(), images_of()
    with LatentTap(model, "bottom") as tap, augmented(model, Early()):
        output = model(images)
        for full in (False, True):
            assert torch.equal(tap.replay(None, full=full), output)
    message = (
        r"augmented finds layers for Early on its first pass, .* suggest_layers\(FunctionalUNet, images, Early\(\)"
    )
    for known in (model, unet()):  # the first knows the layers already
        with augmented(known, Early()), LatentTap(known, "bottom"), pytest.raises(RuntimeError, match=message):
            known(images)


@pytest.mark.parametrize("how", ["torch.compile", "compile"])
def test_layers_are_found_in_a_model_that_is_compiled_as_a_whole(how: str) -> None:
    model, reference, images = unet(), unet(), images_of()
    compiled: Any = model
    if how == "compile":
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    for layer in ("enc1", "enc2"):
        hook(reference, layer, (), lambda code: code * 0.5 + 1)
    with augmented(compiled, Early()):
        torch.testing.assert_close(compiled(images), reference(images))


# Losses -----------------------------------------------------------------------------------------------------------


def test_a_loss_is_the_criterion_s_where_no_labels_mix() -> None:
    model, labels = unet(), labels_of()
    with augmented(model, {"enc1": MixStyle(p=1), "bottom": RandomChannelMask()}) as run:
        logits = model(images_of())
        assert torch.equal(run.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, labels))


def test_labels_mix_in_the_order_of_the_layers() -> None:
    """Not in that of the dict; and of outputs of any kind."""
    model, labels = unet(), labels_of()
    transforms = {"bottom": MixedLabels(1, 2, 0.6), "enc1": MixedLabels(1, 1, 0.9), "enc2": MixStyle(p=1)}
    with augmented(model, transforms) as run:
        logits = model(images_of())
        assert list(run.changes) == ["enc1", "enc2", "bottom"]
        loss = run.loss(lambda output, labels: F.cross_entropy(output["logits"], labels), {"logits": logits}, labels)
    soft = F.one_hot(labels, 2).movedim(-1, 1).double()
    soft = 0.9 * soft + 0.1 * soft.roll(-1, 0)
    soft = 0.6 * soft + 0.4 * soft.roll(-2, 0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft))


def test_mixup_at_one_layer_and_style_at_others() -> None:
    model, images, labels = unet(), images_of(), labels_of()
    mixup = FixedMixup()
    transforms = {"enc1": MixStyle(p=1), "bottom": mixup, "dec2": RandomChannelMask()}
    with augmented(model, transforms, generator=seeded()) as run:
        logits = model(images)
        style, mixed, mask = run.changes.values()
        loss = run.loss(F.cross_entropy, logits, labels)
    reference = unet()
    a = style.apply(reference.enc1(images))
    b = reference.enc2(F.max_pool2d(a, 2))
    z = reference.bottom(F.max_pool2d(b, 2))
    z, a, b = mixup.mixed(z), mixup.mixed(a), mixup.mixed(b)
    y = mask.apply(reference.dec2(torch.cat([F.interpolate(z, scale_factor=2, mode="bilinear"), b], 1)))
    y = reference.dec1(torch.cat([F.interpolate(y, scale_factor=2, mode="bilinear"), a], 1))
    expected = reference.out(y)
    torch.testing.assert_close(logits, expected)
    assert close(gradients(model, logits), gradients(reference, expected), 1e-10)
    own = mixup.own32
    partners = labels.roll(-1, 0)
    wanted = own * F.cross_entropy(expected, labels) + (1 - own) * F.cross_entropy(expected, partners)
    torch.testing.assert_close(loss, wanted)
    assert mixed.whole_pass


def test_the_loss_is_that_of_the_last_pass() -> None:
    model, labels = unet(), labels_of()
    with augmented(model, {"enc1": MixedLabels(1, 1, 0.5)}) as run:
        logits = model(images_of())
        mixed = run.loss(F.cross_entropy, logits, labels)
        model.eval()
        model(images_of())
        assert run.changes == {}
        assert torch.equal(run.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, labels))
        assert not torch.equal(mixed, F.cross_entropy(logits, labels))


# Modes, batches, layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [*TRANSFORMS.values(), ManifoldMixup()], ids=[*TRANSFORMS, "ManifoldMixup"])
def test_eval_mode_of_the_tapped_module_is_the_identity(transform: LatentTransform) -> None:
    model, images = unet(), images_of()
    with augmented(model, {"bottom": transform}, generator=(generator := seeded())) as run:
        model.eval()
        assert torch.equal(model(images), unet().eval()(images))
        assert run.changes == {}
        model.train()
        model.bottom.eval()  # frozen, as an encoder in fine-tuning
        reference = unet()
        reference.bottom.eval()
        # The pass before moved the statistics of nothing, as it was in eval mode.
        assert torch.equal(model(images), reference(images))
        assert torch.equal(generator.get_state(), seeded().get_state())


@EVERY_TRANSFORM
def test_the_mode_is_that_of_the_module_and_not_of_the_transform_or_the_model(transform: LatentTransform) -> None:
    model, images = unet(), images_of()
    plain = copy.deepcopy(model)
    model.eval()
    model.enc1.train()
    plain.eval()
    plain.enc1.train()
    seeds = [seed for seed in range(20) if not torch.equal(changed(transform, seed), torch.ones(4, 8, 4, 4))]
    with augmented(model, {"enc1": copy.deepcopy(transform).eval()}, generator=seeded(seeds[0])):
        assert not torch.equal(model(images), plain(images))


def changed(transform: LatentTransform, seed: int) -> Tensor:
    code = torch.randn(4, 8, 4, 4, generator=seeded())
    different = transform(code, generator=seeded(seed)).apply(code)
    return torch.ones(4, 8, 4, 4) if torch.equal(different, code) else different


def test_a_batch_of_one_warns_once_and_is_left_alone() -> None:
    model, images = unet(), images_of(1)
    with augmented(model, {"enc1": MixStyle(p=1)}):
        with pytest.warns(UserWarning, match="MixStyle combines the samples of a batch, and leaves a batch of one"):
            assert torch.equal(model(images), unet()(images))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(images)
    with augmented(model, {"bottom": ManifoldMixup()}) as run:
        with pytest.warns(UserWarning, match="ManifoldMixup combines"):
            model(images)
        assert not run.changes["bottom"].whole_pass


def test_a_generator_decides_all_and_the_global_stream_is_left_alone() -> None:
    model, images = unet(), images_of()
    transforms = {"enc1": MixStyle(), "bottom": RandomApply(GIN()), "dec2": RandomChannelMask((0.2, 0.8))}
    seed_all(0)
    before = random_state()
    outputs = []
    for _ in range(2):
        with augmented(copy.deepcopy(model), transforms, generator=seeded(5)) as run:
            outputs.append(run._model(images))
    assert torch.equal(*outputs)
    assert random_state() == before
    with augmented(copy.deepcopy(model), transforms) as run:
        seed_all(5)
        assert torch.equal(run._model(images), outputs[0])


class Tokens(nn.Module):
    """Tokens of a class and of patches."""

    def __init__(self, prefix: int = 1) -> None:
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6), nn.ConvTranspose2d(6, 2, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 6))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patches(x)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), grid.flatten(2).mT], 1)
        tokens = self.block(tokens)[:, self.prefix.shape[1] :]
        return self.head(tokens.mT.view_as(grid))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_tokens_are_recognised_and_prefix_tokens_left_alone(prefix: int) -> None:
    torch.manual_seed(0)
    net, images = Tokens(prefix).double(), images_of()
    with augmented(net, {"block": MixStyle(p=1)}, generator=seeded()) as run:
        net(images)
        change = run.changes["block"]
        assert change.layout == Layout(-1, prefix)
    assert change.apply(torch.randn(4, prefix + 24, 6)).shape == (4, prefix + 24, 6)


def test_a_choice_with_mixup_still_needs_the_layout() -> None:
    """ManifoldMixup does without; MixStyle beside it does not."""
    torch.manual_seed(0)
    net, images = Tokens(0).double(), images_of()
    choice = OneOf({MixStyle(p=1): 1, ManifoldMixup(): 0})
    with augmented(net, {"block": choice}, generator=seeded()) as run:
        net(images)
        assert run.changes["block"].layout == TOKENS
    with LatentTap(net, "block") as tap:
        net(images)
        assert tap.draw(choice).layout == TOKENS


def test_a_location_says_the_layout_where_shapes_do_not_tell() -> None:
    class Rolled(nn.Module):
        """A code [B, 8, 8, 8], channels last."""

        def __init__(self) -> None:
            super().__init__()
            self.code, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.code(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    torch.manual_seed(0)
    net, images = Rolled(), torch.randn(2, 3, 8, 8)
    with augmented(net, {Location("code", (), Layout(-1), (2, 8, 8, 8), (1, 1)): MixStyle(p=1)}) as run:
        net(images)
        assert [change.layout for change in run.changes.values()] == [Layout(-1)]
        net.code(torch.randn(2, 8, 8, 3))  # by itself, too


def test_a_layer_by_itself_is_changed_only_where_its_layout_is_known() -> None:
    model, images = unet(), images_of()
    with augmented(model, {"enc1": Scaled()}):
        with pytest.raises(RuntimeError, match=r"cannot tell channels from spatial positions in a code \(4, 8"):
            model.enc1(images)
        model(images)
        torch.testing.assert_close(model.enc1(images), unet().enc1(images) * 0.5 + 1)
    with augmented(model, {"bottom": ManifoldMixup()}):
        with pytest.raises(RuntimeError, match="ManifoldMixup changes a whole pass, but 'bottom' was called by itself"):
            model.bottom(torch.randn(4, 16, 4, 6).double())
        model(images)


# In and out -------------------------------------------------------------------------------------------------------


def test_attached_is_as_in_a_context_until_it_is_removed() -> None:
    model, images = unet(), images_of()
    before = forwards(model)
    attached = augmented(model, {"enc1": Scaled()}).attach()
    changed = model(images)
    attached.remove()
    attached.remove()
    assert forwards(model) == before
    again = unet()
    with augmented(again, {"enc1": Scaled()}):
        assert torch.equal(again(images), changed)
    assert torch.equal(unet()(images), unet()(images))
    attached.attach()
    with pytest.raises(RuntimeError, match="This `augmented` is at work already"):
        attached.attach()
    attached.remove()


def test_nothing_is_left_after_an_exception() -> None:
    class Failing(Scaled):
        def transform(self, code: Tensor, **params: Any) -> Tensor:
            raise KeyError("failed")

    for transform, images in ((Failing(), images_of()), (ManifoldMixup(), images_of()[:, :2])):
        model = unet()
        before = forwards(model)
        with augmented(model, {"bottom": transform}), pytest.raises((KeyError, RuntimeError), match=r"failed|channels"):
            model(images)
        assert forwards(model) == before
        assert torch.overrides._get_current_function_mode() is None


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("leaving", ORDERS, ids=str)
@pytest.mark.parametrize("entering", ORDERS, ids=str)
def test_they_leave_in_any_order_also_with_a_tap_among_them(entering: Any, leaving: Any) -> None:
    """Two on the same layer and a tap, all on the same model: whatever is still there works, and alone."""
    model, images = unet().eval(), images_of()
    model.enc1.train()
    before = forwards(model)
    tap = LatentTap(model, "bottom")
    tools: list[Any] = [augmented(model, {"enc1": Scaled(0.5)}), augmented(model, {"enc1": Scaled(2.0)}), tap]
    there: list[int] = []
    with torch.no_grad():
        for one in entering:
            tools[one].__enter__()
            there.append(one)
            check(model, images, there, tap)
        for one in leaving:
            tools[one].__exit__(None, None, None)
            there.remove(one)
            check(model, images, there, tap)
    assert forwards(model) == before


def check(model: nn.Module, images: Tensor, there: list[int], tap: LatentTap) -> None:
    """See that those who are there change the code in the order in which they came."""
    reference: Any = unet().eval()
    reference.load_state_dict(model.state_dict())
    reference.enc1.train()
    output = model(images)
    a = reference.enc1(images)
    for one in there:
        a = a * {0: 0.5, 1: 2.0}[one] + 1 if one in (0, 1) else a
    assert torch.allclose(output, decoded(reference, a))
    if 2 in there:
        assert torch.equal(tap.replay(None), output)
        half = tap.replay(tap.code * 0.5, full=True)
        assert torch.equal(tap.replay(tap.code * 0.5), half)
        assert torch.allclose(half, decoded(reference, a, 0.5))
        assert not torch.allclose(half, output)


def decoded(model: Any, a: Tensor, by: float = 1.0) -> Tensor:
    b = model.enc2(F.max_pool2d(a, 2))
    z = model.bottom(F.max_pool2d(b, 2)) * by
    y = model.dec2(torch.cat([F.interpolate(z, scale_factor=2, mode="bilinear"), b], 1))
    logits: Tensor = model.out(model.dec1(torch.cat([F.interpolate(y, scale_factor=2, mode="bilinear"), a], 1)))
    return logits


# Copies -----------------------------------------------------------------------------------------------------------


def copies(model: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


@pytest.mark.parametrize("transform", [Scaled(), ManifoldMixup()], ids=repr)
def test_copies_of_an_attached_model_are_plain(transform: LatentTransform) -> None:
    model, images = unet(), images_of()
    assert b"latentaug" not in pickle.dumps(unet())
    attached = augmented(model, {"enc1": transform, "dec2": Scaled()}).attach()
    second = augmented(model, {"enc1": Scaled()}).attach()
    assert b"latentaug" not in pickle.dumps(model)
    for twin in copies(model):
        assert torch.equal(twin(images), unet()(images))
        for name, module in twin.named_modules():
            forward = module.__dict__.get("forward")
            assert forward is None or (forward.__self__ is module and forward.__func__ is type(module).forward), name
        with augmented(twin, {"enc1": Scaled()}):
            twin(images)
        assert torch.equal(copy.deepcopy(twin).eval()(images), twin.eval()(images))
        twin.enc1 = nn.Conv2d(3, 8, 3, padding=1).double()
        twin(images)
    second.remove()
    attached.remove()
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_forward_of_the_model_s_own_is_copied_as_it_is() -> None:
    model, images = unet(), torch.randn(4, 8, 16, 24).double()
    model.enc1.__dict__["forward"] = torch.relu
    expected = model(images)
    with augmented(model, {"enc1": Scaled()}):
        for twin in copies(model):
            assert torch.equal(twin(images), expected)
    assert model.enc1.__dict__["forward"] is torch.relu


def test_averaged_models_are_plain() -> None:
    model, images = unet(), images_of()
    with augmented(model, {"enc1": Scaled()}):
        average = AveragedModel(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        average.update_parameters(model)
        average.update_parameters(model)
        assert torch.equal(average.eval()(images), average.module.eval()(images))
    reference = unet()
    plain = AveragedModel(reference)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1.5)
    plain.update_parameters(reference)
    plain.update_parameters(reference)
    assert torch.equal(plain.eval()(images), average(images))


def test_what_augmented_returns_is_not_copied() -> None:
    with pytest.raises(TypeError, match="cannot be copied: call `augmented` on the copied model"):
        copy.deepcopy(augmented(unet(), {"enc1": Scaled()}))


# Activation checkpointing -------------------------------------------------------------------------------------------


class Regions(nn.Module):
    """A U-Net whose encoder is checkpointed, or not."""

    def __init__(self, way: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer, self.code = conv(3, 4), nn.Sequential(conv(4, 4), nn.Tanh()), conv(4, 4)
        self.head, self.way, self.options = conv(4, 2), way, options

    def encode(self, x: Tensor) -> Tensor:
        return F.dropout(torch.sin(self.layer(self.stem(x))), 0.3)

    def forward(self, x: Tensor) -> Tensor:
        skip = checkpoint(self.encode, x, **self.options) if self.way == "checkpointed" else self.encode(x)
        return self.head(self.code(skip) * skip)


WAYS_TO_CHECKPOINT = {"non-reentrant": {"use_reentrant": False}, "reentrant": {"use_reentrant": True}}


@EVERY_TRANSFORM
@pytest.mark.parametrize("options", WAYS_TO_CHECKPOINT.values(), ids=WAYS_TO_CHECKPOINT)
def test_checkpointing_around_the_layer_gives_the_same_gradients(transform: LatentTransform, options: Any) -> None:
    found = []
    for way in ("plain", "checkpointed"):
        net, images = Regions(way, **options).double(), [images_of(seed=seed).requires_grad_() for seed in range(3)]
        with augmented(net, {"layer": transform, "code": RandomChannelMask()}):
            torch.manual_seed(1)
            outputs = [net(one) for one in images]  # several passes before one backward pass
            sum(output.square().sum() for output in outputs).backward()
        found.append([weight.grad for weight in net.parameters()] + [one.grad for one in images])
    assert close(*found)


@pytest.mark.parametrize("options", WAYS_TO_CHECKPOINT.values(), ids=WAYS_TO_CHECKPOINT)
def test_a_backward_pass_that_would_compute_a_layer_again_without_its_change_is_refused(options: Any) -> None:
    net, images = Regions("checkpointed", **options).double(), images_of().requires_grad_()
    with (
        pytest.raises(RuntimeError, match=r"of Regions that is augmented .* Call backward\(\) within the `with` block"),
        augmented(net, {"layer": RandomChannelMask()}),
    ):
        net(images)
    with augmented(net, {"layer": RandomChannelMask()}), torch.no_grad():
        net(images)
    with augmented(net, {"code": RandomChannelMask()}):  # outside of the part
        output = net(images)
    output.sum().backward()
    with augmented(net.eval(), {"layer": RandomChannelMask()}):
        output = net(images)
    output.sum().backward()


def test_an_error_within_the_block_is_told_and_none_of_the_backward_pass() -> None:
    net = Regions("checkpointed", use_reentrant=False).double()
    with pytest.raises(IndexError), augmented(net, {"layer": RandomChannelMask()}):
        net(images_of())[100]


def test_a_layer_at_which_checkpointing_stops_is_seen_to_come_again() -> None:
    class Last(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](checkpoint(self[0], x, use_reentrant=False))

    net = Last(nn.Sequential(conv(3, 4), nn.ReLU()), conv(4, 2)).double()
    with augmented(net, {"0": RandomChannelMask(0.0)}):
        net(images_of()).sum().backward()


def test_the_change_that_is_told_is_that_of_the_forward_pass() -> None:
    net, images = Regions("checkpointed", use_reentrant=False).double(), images_of()
    with augmented(net, {"layer": RandomChannelMask()}) as run:
        output = net(images)
        change = run.changes["layer"]
        output.sum().backward()
        assert run.changes["layer"] is change


@pytest.mark.parametrize("options", WAYS_TO_CHECKPOINT.values(), ids=WAYS_TO_CHECKPOINT)
def test_a_generator_within_checkpointing_is_refused(options: Any) -> None:
    net = Regions("checkpointed", **options).double()
    with augmented(net, {"layer": RandomChannelMask()}, generator=seeded()):
        with pytest.raises(RuntimeError, match=r"'layer' of Regions is in a part that is checkpointed: .* Leave `gen"):
            net(images_of().requires_grad_()).sum().backward()
        with torch.no_grad():
            net.eval()(images_of())
    with augmented(net.train(), {"code": RandomChannelMask()}, generator=seeded()):
        net(images_of().requires_grad_()).sum().backward()  # outside of the part


@pytest.mark.parametrize("options", WAYS_TO_CHECKPOINT.values(), ids=WAYS_TO_CHECKPOINT)
def test_checkpointing_that_restores_no_random_state_is_refused(options: Any) -> None:
    net = Regions("checkpointed", preserve_rng_state=False, **options).double()
    with augmented(net, {"layer": RandomChannelMask()}):
        output = net(images_of().requires_grad_())
        with pytest.raises(RuntimeError, match=r"checkpointed without the random state.*Pass preserve_rng_state=True"):
            output.sum().backward()


@pytest.mark.parametrize("options", WAYS_TO_CHECKPOINT.values(), ids=WAYS_TO_CHECKPOINT)
def test_a_model_that_is_checkpointed_as_a_whole(options: Any) -> None:
    found = []
    for way in ("plain", "checkpointed"):
        net, images = Regions("plain").double(), images_of().requires_grad_()
        with augmented(net, {"layer": RandomChannelMask(), "code": MixStyle(p=1)}):
            torch.manual_seed(1)
            output = checkpoint(net, images, **options) if way == "checkpointed" else net(images)
            output.square().sum().backward()
        found.append([weight.grad for weight in net.parameters()] + [images.grad])
    assert close(*found)
    with augmented(net, {"code": ManifoldMixup()}), pytest.raises(RuntimeError, match="checkpointed"):
        checkpoint(net, images_of().requires_grad_(), **options).sum().backward()


def test_mixing_at_a_layer_whose_call_is_checkpointed() -> None:
    class Net(nn.Module):
        def __init__(self, region: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.code, self.head, self.region = conv(3, 4), conv(4, 4), conv(4, 2), region

        def forward(self, x: Tensor) -> Tensor:
            skip = self.stem(x)
            z = checkpoint(self.code, skip, use_reentrant=False) if self.region else self.code(skip)
            return self.head(z * skip)

    found = []
    for region in (False, True):
        net, images = Net(region).double(), images_of()
        with augmented(net, {"code": FixedMixup()}):
            output = net(images)
            output.square().sum().backward()
        found.append([output.detach(), *(weight.grad for weight in net.parameters())])
    assert close(*found)


# Compiled -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["torch.compile", "compile"])
def test_a_submodule_that_is_compiled_keeps_its_graph(how: str, compiler: Graphs) -> None:
    model, reference, images = unet(), unet(), images_of()
    if how == "compile":
        model.bottom.compile(backend=compiler)
    else:
        model.bottom = torch.compile(model.bottom, backend=compiler)
    model(images)
    graphs, runs = compiler.count, compiler.runs
    if not graphs:
        pytest.skip("this release of PyTorch compiles nothing here")
    reference(images)
    with augmented(model, {"bottom": Scaled(), "enc1": Scaled()}):
        output = model(images)
        assert compiler.runs > runs
    assert compiler.count == graphs
    for layer in ("bottom", "enc1"):
        hook(reference, layer, (), lambda code: code * 0.5 + 1)
    torch.testing.assert_close(output, reference(images))
    model(images)
    assert compiler.count == graphs


@pytest.mark.parametrize("how", ["torch.compile", "compile"])
@pytest.mark.parametrize("layer", ["enc1", "enc1.0", "bottom"])
def test_a_model_that_is_compiled_as_a_whole_runs_uncompiled_meanwhile(how: str, layer: str, compiler: Graphs) -> None:
    model, images = unet(), images_of()
    plain = copy.deepcopy(model.state_dict())
    if how == "compile":
        model.compile(backend=compiler)
        compiled: Any = model
    else:
        compiled = torch.compile(model, backend=compiler)
    compiled.eval()
    expected = compiled(images)
    runs = compiler.runs
    compiled.train()
    with augmented(compiled, {layer: Scaled()}):
        changed = compiled(images)
        assert compiler.runs == runs
    reference = unet()
    reference.load_state_dict(plain)
    hook(reference, layer, (), lambda code: code * 0.5 + 1)
    torch.testing.assert_close(changed, reference(images))
    compiled.load_state_dict(plain) if how == "compile" else model.load_state_dict(plain)
    compiled.eval()
    torch.testing.assert_close(compiled(images), expected)
    assert compiler.runs > runs


def test_a_model_that_is_compiled_afterwards(compiler: Graphs) -> None:
    """Compiled code sees the change while it is there, and not when it is gone."""
    model, images = unet().eval(), images_of()
    expected = model(images)
    attached = augmented(model, {"enc1": Scaled()}).attach()
    compiled = torch.compile(model, backend=compiler)
    torch.testing.assert_close(compiled(images), expected)
    model.enc1.train()
    reference = unet().eval()
    reference.enc1.train()
    hook(reference, "enc1", (), lambda code: code * 0.5 + 1)
    torch.testing.assert_close(compiled(images), reference(images))
    model.enc1.eval()
    changed = unet().eval()
    changed.load_state_dict(model.state_dict())
    torch.testing.assert_close(compiled(images), changed(images))
    attached.remove()
    model.enc1.train()
    plain = unet().eval()
    plain.load_state_dict(model.state_dict())
    plain.enc1.train()
    torch.testing.assert_close(compiled(images), plain(images))


@pytest.mark.parametrize("transform", [*TRANSFORMS.values(), FixedMixup()], ids=[*TRANSFORMS, "ManifoldMixup"])
def test_any_transform_in_a_model_that_is_compiled_afterwards(transform: LatentTransform, compiler: Graphs) -> None:
    outputs = []
    for compile_it in (False, True):
        model, images = unet(), images_of()
        attached = augmented(model, {"enc1": RandomChannelMask(), "bottom": transform}).attach()
        run = torch.compile(model, backend=compiler) if compile_it else model
        for seed in range(3):
            torch.manual_seed(seed)
            outputs.append(run(images))
        outputs[-1].square().sum().backward()
        attached.remove()
        outputs.extend([*(weight.grad for weight in model.parameters()), run(images)])
        assert (compiler.count > 0) is compile_it  # once it was removed
    half = len(outputs) // 2
    for one, other in zip(outputs[:half], outputs[half:], strict=True):
        torch.testing.assert_close(one, other)


# With a tap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap_first", [False, True])
@pytest.mark.parametrize("layer", ["enc1", "enc2", "bottom"])
def test_replays_of_an_augmented_pass_are_exact(layer: str, tap_first: bool) -> None:
    """Before the tapped layer, at it, and after it; the replay makes the same changes as the pass."""
    model, images = unet(), images_of()
    transforms = {"enc1": RandomChannelMask(), "bottom": MixStyle(p=1), "dec2": DropBlock(0.3, 3)}
    contexts = [augmented(model, transforms), LatentTap(model, layer)]
    with ExitStack() as stack:
        for one in reversed(contexts) if tap_first else contexts:
            stack.enter_context(one)
        run, tap = contexts
        seed_all(2)
        output = model(images)
        changes = dict(run.changes)
        for full in (False, True):
            assert torch.equal(tap.replay(None, full=full), output)
            replayed = tap.replay(tap.code * 0.5, full=full)
            assert run.changes == changes  # a replay is none of the user's passes
            reference = unet()
            for name in dict.fromkeys(["enc1", layer, "bottom", "dec2"]):
                if name in changes:
                    hook(reference, name, (), changes[name].apply)
                if name == layer:
                    hook(reference, name, (), lambda code: code * 0.5)
            expected = reference(images)
            torch.testing.assert_close(replayed, expected)
            assert close(gradients(model, replayed), gradients(reference, expected))


def test_a_generator_beside_a_tap_is_refused() -> None:
    model, images = unet(), images_of()
    message = r"'enc1' of FunctionalUNet is augmented from a `generator` while a LatentTap is open"
    for tap_first in (False, True):
        contexts = [augmented(model, {"enc1": Scaled()}, generator=seeded()), LatentTap(model, "bottom")]
        with ExitStack() as stack:
            for one in reversed(contexts) if tap_first else contexts:
                stack.enter_context(one)
            with pytest.raises(RuntimeError, match=message):
                model(images)


def test_mixing_of_a_whole_pass_beside_a_tap_is_refused() -> None:
    model, images = unet(), images_of()
    message = (
        r"ManifoldMixup changes a whole pass, of which replays would see the tapped code alone\. Leave the LatentTap"
    )
    with augmented(model, {"bottom": ManifoldMixup()}):
        with LatentTap(model, "bottom"), pytest.raises(RuntimeError, match=message):
            model(images)
        model(images)


# Distributed --------------------------------------------------------------------------------------------------------

WORKER = Path(__file__).with_name("augmented_worker.py")
RANKS = 2


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend")
def test_two_processes_hold_the_mean_of_what_each_would_have_got_alone(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("augmented_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    first, second = found_by_ranks(WORKER, RANKS, tmp_path, timeout=300)
    assert first.keys() == second.keys()
    for case, number in first:
        alone = [worker.gradients(worker.unet(), case, rank, number) for rank in range(RANKS)]
        assert not torch.allclose(*(gradients["out.weight"] for gradients in alone))
        for name, gradient in first[case, number].items():
            assert torch.equal(gradient, second[case, number][name]), name
            mean = sum(gradients[name] for gradients in alone) / RANKS
            torch.testing.assert_close(gradient, mean, rtol=1e-10, atol=1e-14)


# Refused ------------------------------------------------------------------------------------------------------------


def test_what_one_pass_cannot_give_is_refused_by_name() -> None:
    for transform in (TargetedChannelMask(), OneOf([MixStyle(), TargetedChannelMask()])):
        name = type(transform).__name__
        with pytest.raises(
            TypeError, match=rf"{name} asks for the saliency, for which one pass is not enough\. Replay it"
        ):
            augmented(unet(), {"enc1": transform})


@pytest.mark.parametrize(
    ("transforms", "error", "message"),
    [
        ({}, ValueError, r"augmented needs `transforms`, a dict from layer to transform, or a transform; got \{\}"),
        (
            [MixStyle()],
            ValueError,
            r"augmented needs `transforms`, a dict from layer to transform, or a transform; got \[MixStyle\(\)\]",
        ),
        (GIN(), ValueError, r"GIN belongs on the images, before the model: call model\(GIN\(\).augment\(images\)\)"),
        (TargetedChannelMask(), TypeError, "TargetedChannelMask asks for the saliency, for which one pass is not"),
        (MixStyle, ValueError, r"a dict from layer to transform, or a transform; got <class"),
        ({"enc1": torch.relu}, TypeError, r"augmented needs a transform for 'enc1'; got .*relu.*Pass an instance"),
        ({"enc1": MixStyle}, TypeError, r"augmented needs a transform for 'enc1'; got <class"),
        ({"enc9": MixStyle()}, ValueError, r"found no submodule 'enc9' in FunctionalUNet; closest: 'enc"),
        (
            {"enc1": ManifoldMixup(), "enc2": ManifoldMixup()},
            ValueError,
            "at most one transform that changes a whole pass",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_once(transforms: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        augmented(unet(), transforms)


def test_one_layer_under_two_names_is_refused() -> None:
    model = unet()
    with pytest.raises(ValueError, match=r"needs different layers; got one twice\. Use Compose"):
        augmented(model, {"enc1": MixStyle(), model.enc1: GIN()})
    twice = CASES["SameTensorTwice"].model(True)
    both = augmented(twice, {"encoder['last']": Scaled(), "encoder['all'][2]": Scaled()})
    with both, pytest.raises(ValueError, match="needs different codes"):
        twice(CASES["SameTensorTwice"].images())


def test_a_layer_of_several_outputs_needs_an_index() -> None:
    case = CASES["Returns_tuple"]
    model = case.model(True)
    with augmented(model, {"encoder": Scaled()}), pytest.raises(ValueError, match="'encoder' is several"):
        model(case.images())


def test_hooks_that_would_see_the_model_s_inputs_unmixed_are_refused() -> None:
    model = unet()
    handle = model.register_forward_hook(lambda module, args, output: output + args[0][:, :2])
    with (
        augmented(model, {"bottom": ManifoldMixup()}),
        pytest.raises(RuntimeError, match="forward hooks of FunctionalUNet"),
    ):
        model(images_of())
    with LatentTap(model, "bottom") as tap:  # where they run within the replay
        model(images_of())
        mixup = FixedMixup()
        replayed = tap.replay(mixup)
    handle.remove()
    with LatentTap(model, "bottom") as tap:
        model(images_of())
        torch.testing.assert_close(replayed, tap.replay(mixup) + mixup.mixed(images_of())[:, :2])


def test_ctrl_c_at_any_line_leaves_nothing() -> None:
    model, image = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)), torch.rand(2, 1, 8, 8)
    here = str(Path(sys.modules[augmented.__module__].__file__ or "").parents[1])
    left = []

    def until(limit: int) -> Callable[..., Any]:
        lines = 0

        def inside(frame: Any, event: str, argument: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            if lines == limit:
                sys.settrace(None)
                raise KeyboardInterrupt
            return inside

        return lambda frame, event, argument: inside if frame.f_code.co_filename.startswith(here) else None

    for limit in range(1, 400, 3):
        before = sys.gettrace()
        sys.settrace(until(limit))
        try:
            with augmented(model, {"0": MixStyle()}):
                model(image)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        left += [limit for module in model if "forward" in vars(module)]
    assert left == []
