"""Every method trains, differs from every other, repeats itself and goes on where it was left, on tiny volumes."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cardiac.data.readers import Frame
from cardiac.run.presets import Preset
from latentaug import (
    FTN,
    CooperativeModel,
    CooperativeTrainer,
    HardExamples,
    OneOf,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    cooperative_backward,
    standard_backward,
)
from study.data.batches import TrainingBatches, validation_batches
from study.methods import GROUPS, METHODS, chosen
from study.methods.method import Method, Step, Transform
from study.methods.network import Network
from study.methods.steps import NOISE, mixup_backward, plain_backward
from study.run.training import build_trainer

STEPS, BATCHES = 4, 2  # in all, and of an epoch
UNET = "smp:Unet:resnet18"
LIBRARY = find_spec("segmentation_models_pytorch") is not None
TRAINED = [name for name in METHODS if LIBRARY or not METHODS[name].latent]
PRESET = Preset(image_size=24, depth=1, width=2, batch_size=4, iterations=STEPS, learning_rate=1e-2)


def frames() -> list[Frame]:
    labels = np.zeros((3, 24, 24), np.uint8)
    labels[:, 6:18, 4:16], labels[:, 8:14, 8:14], labels[:, 10:12, 10:14] = 3, 2, 1
    image = (labels / 4 + np.random.default_rng(0).uniform(0, 0.3, labels.shape)).astype(np.float32)
    return [Frame("1", "ED", image, labels, (10.0, 1.0, 1.0))]


def train(
    method: str,
    folder: Path,
    steps: int = STEPS,
    network: Network | None = None,
    augment: Transform | None = None,
) -> CooperativeTrainer:
    network = network or (Network(UNET) if METHODS[method].latent else Network())
    trainer = build_trainer(method, network, PRESET, STEPS, 0, folder, torch.device("cpu"))
    loader = TrainingBatches(
        frames(), side=24, batch_size=4, length=BATCHES, seed=0, epoch=lambda: trainer.epoch, augment=augment
    )
    trainer.fit(loader, max_steps=steps)
    return trainer


def weights(trainer: CooperativeTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@cache
def straight(method: str) -> Tensor:
    """Return the weights of a training that nothing interrupts; each is made where a test asks for it."""
    with TemporaryDirectory() as folder:
        return weights(train(method, Path(folder)))


def test_every_method_ends_with_weights_of_its_own() -> None:
    trained = {method: straight(method) for method in TRAINED}
    assert all(one.isfinite().all() for one in trained.values())
    for method, one in trained.items():
        alike = {"cooperative", "cooperative-decoded", "default", "hard-codes"}  # on the paper's network
        expected = alike if method in alike else {method}
        assert {other for other in trained if torch.equal(trained[other], one)} == expected


@pytest.mark.parametrize(
    "method", ["plain", "standard", "mixup", "noise", "cooperative", "cooperative-ramp", "mixstyle"]
)
def test_an_augmentation_comes_before_all_that_a_method_does(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each sort: other steps, images changed by the method itself, hard examples, a schedule, changed codes."""
    if method not in TRAINED:
        pytest.skip("the library of its network is missing")
    made: list[Tensor] = []
    stepped: list[Tensor] = []

    def darker(images: Tensor, generator: torch.Generator) -> Tensor:
        made.append(images / 2)
        return made[-1]

    def noting(self: Method, model: CooperativeModel, images: Tensor, *rest: Tensor, **options: object) -> object:
        stepped.append(images)
        return backward(self, model, images, *rest, **options)

    backward = Method.backward
    monkeypatch.setattr(Method, "backward", noting)
    train(method, tmp_path, steps=2, augment=darker)
    assert len(made) == 2
    assert all(torch.equal(one, other) for one, other in zip(made, stepped, strict=True))


# One of each sort: of steps, of what changes images or codes, of masks, of schedules, and of what is kept for later.
SORTS = {
    *("plain", "standard", "mixup", "noise", "randconv", "cooperative", "cooperative-ramp", "default"),
    *("cooperative-saliency-every-4", "cooperative-norm-frozen", "separate", "hard-styles", "mixstyle"),
}
RESUMED = [pytest.param(method, marks=[] if method in SORTS else [pytest.mark.slow]) for method in TRAINED]


@pytest.mark.parametrize("method", RESUMED)
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, method: str) -> None:
    train(method, tmp_path, steps=1)
    train(method, tmp_path, steps=3)
    assert torch.equal(weights(train(method, tmp_path)), straight(method))


@pytest.mark.parametrize(("method", "step"), [("standard", standard_backward), ("cooperative", cooperative_backward)])
def test_the_two_main_methods_are_the_librarys_own(method: str, step: Step) -> None:
    torch.manual_seed(0)
    network = FTN(num_classes=4, width=2, depth=1)
    model = CooperativeModel(network, num_classes=4, example=torch.zeros(2, 1, 24, 24))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    trainer = CooperativeTrainer(model, optimizer, step=step, seed=0, callbacks=[])
    loader = TrainingBatches(frames(), side=24, batch_size=4, length=BATCHES, seed=0, epoch=lambda: trainer.epoch)
    trainer.fit(loader, max_steps=STEPS)
    assert torch.equal(weights(trainer), straight(method))


def test_all_methods_start_from_the_same_weights() -> None:
    def start(method: Method) -> Tensor:
        torch.manual_seed(0)
        model = Network().build(PRESET, method.options)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first, *others = map(start, METHODS.values())
    assert all(torch.equal(other, first) for other in others)


def test_the_plain_network_takes_the_gradient_of_its_cross_entropy_on_noisy_images_and_no_head_gets_one() -> None:
    torch.manual_seed(0)
    model, by_hand = Network().build(PRESET, {}), Network().build(PRESET, {})
    by_hand.load_state_dict(model.state_dict())
    ((images, labels),) = validation_batches(frames(), 24)
    seen = []
    model.reconstruction.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    model.shape_prior.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    output = METHODS["plain"].backward(model.train(), images, labels, generator=torch.Generator().manual_seed(1))

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(by_hand.train().model((images + 0.05 * noise).clamp(0, 1)), labels)
    loss.backward()
    torch.testing.assert_close(output.loss, loss.detach())
    assert {*output.losses} == {"segmentation"}
    assert not seen
    for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert all(parameter.grad is None for parameter in model.shape_prior.parameters())
    assert all(parameter.grad is None for parameter in model.reconstruction.parameters())


def test_the_plain_network_sees_the_noise_that_every_other_method_has() -> None:
    model, inputs = cooperative_model(noise=NOISE), []
    model.model.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    ((images, labels),) = validation_batches(frames(), 24)
    for step in (plain_backward, standard_backward):
        step(model.train(), images, labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(inputs[0], inputs[-1])


def test_without_the_shape_prior_it_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = Network().build(PRESET, {}).shape_prior
    trained = train("standard-without-stn", tmp_path).model.shape_prior
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name)), name


def cooperative_model(noise: float = 0.0) -> CooperativeModel:
    torch.manual_seed(0)
    return Network().build(PRESET, {"hard": HardExamples(noise=noise)})


def test_mixup_mixes_images_and_both_segmentation_losses() -> None:
    model, before = cooperative_model(), cooperative_model()
    ((images, labels),) = validation_batches(frames(), 24)
    seen = []
    model.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    output = mixup_backward(model, images, labels, generator=torch.Generator().manual_seed(3))

    mixed = seen[-1]
    orders = [torch.tensor(order) for order in permutations(range(3)) if order != (0, 1, 2)]
    share, order = next((share, order) for order in orders if (share := _share(mixed, images, order)) is not None)
    assert 0 <= share <= 1
    with torch.no_grad():
        logits = before.model.train()(mixed)
        refined = before.refine(logits)
    for name, one in (("segmentation", logits), ("shape_from_logits", refined)):
        expected = share * F.cross_entropy(one, labels) + (1 - share) * F.cross_entropy(one, labels[order])
        torch.testing.assert_close(output.losses[name].detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    assert all(parameter.grad is not None for parameter in model.parameters())


def _share(mixed: Tensor, images: Tensor, order: Tensor) -> Tensor | None:
    """The share that makes `mixed` of images in this order, if there is one."""
    difference = images - images[order]
    share = ((mixed - images[order]) * difference).sum() / difference.square().sum()
    fits = torch.allclose(images[order] + share * difference, mixed, atol=1e-5)
    return share if fits else None


def test_a_transform_changes_images_before_the_step_and_no_labels() -> None:
    ((images, labels),) = validation_batches(frames(), 24)
    kept = labels.clone()
    for name in ("randconv", "bias-field", "noise"):
        model, before = cooperative_model(), cooperative_model()
        changed = METHODS[name].transform(images, torch.Generator().manual_seed(1))
        output = METHODS[name].backward(model, images, labels, generator=torch.Generator().manual_seed(1))
        expected = standard_backward(before, changed, labels, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(output.losses, expected.losses)
        assert torch.equal(labels, kept)


def test_random_masks_and_the_dropout_scheme_differ_in_their_rate() -> None:
    assert METHODS["random-masks"].options["augment"].p == (0, 0.5)
    assert METHODS["cooperative-dropout"].options["augment"].p == RandomChannelMask().p


def test_hard_masks_are_the_three_schemes_without_annealing() -> None:
    masker = METHODS["cooperative-hard-masks"].options["augment"]
    assert isinstance(masker, OneOf)
    assert [type(scheme) for scheme in masker.transforms] == [
        RandomChannelMask,
        TargetedChannelMask,
        TargetedSpatialMask,
    ]
    code, generator = torch.ones(20, 8, 6, 6), torch.Generator().manual_seed(0)
    for scheme in masker.transforms:
        factors = [scheme(code, torch.randn(code.shape, generator=generator), generator=generator) for _ in range(9)]
        values = {value for mask in factors for value in mask.factor.unique().tolist()}
        assert values == ({0, 2} if isinstance(scheme, RandomChannelMask) else {0, 1})


def test_groups_are_spelled_out_once_and_in_the_order_of_the_table() -> None:
    assert chosen(["all", "latent", "wrapped"]) == [*METHODS]
    assert [name for name in METHODS if METHODS[name].latent] == chosen(["latent"])
    assert chosen(["cooperative", "standard"]) == ["standard", "cooperative"]
    assert chosen(["main", "cooperative", "noise"]) == chosen(["main"])
    assert {*chosen(["main", "table2"])} < {*METHODS}
    assert GROUPS["main"][:2] == ("plain", "standard")
    assert GROUPS["main"][-1] == "cooperative"
    assert not {*METHODS} & {*GROUPS}
