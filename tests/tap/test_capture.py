"""One captured pass and its replays, against the oracle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap
from tests.models.case import Case
from tests.models.hostile.inconsistent import Shrinks
from tests.models.hostile.statistics import Normalised
from tests.models.hostile.table import CASES
from tests.models.parts import conv
from tests.models.unet import UNet, hooked, unet
from tests.support.compare import close, gradients, same
from tests.support.counting import CountOperations
from tests.support.oracle import change_code, halved, number_of_the_call, oracle, unchanged
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces
from tests.support.trees import leaves

# Models that punish every shortcut ------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def detached_oracle(case: Case) -> tuple[Any, list[Tensor | None]]:
    """Like the oracle in train mode, with weights that are constants until the code, and gradients from there on."""
    model = case.model(True)
    weights = weights_of(model)
    leaf = []

    def change(code: Tensor) -> Tensor:
        for weight in weights:
            weight.requires_grad_(True)
        leaf.append(halved(code.detach()).requires_grad_())
        with torch.enable_grad():
            return leaf[0] * 1

    change_code(model, case.layer, case.path, number_of_the_call(case, True), change)
    for weight in weights:
        weight.requires_grad_(False)
    seed_all(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        output = model(case.images())
    return output, gradients(model, output, leaf)


ROWS = [
    pytest.param(case, train, id=f"{name}-{'train' if train else 'eval'}")
    for name, case in CASES.items()
    for train in case.modes
]


@pytest.mark.parametrize(("case", "train"), ROWS)
def test_the_captured_pass_is_a_plain_pass(case: Case, train: bool) -> None:
    plain = case.model(train)
    seed_all(0)
    expected = plain(case.images())
    stream, expected_gradients = random_state(), gradients(plain, expected)
    model = case.model(train)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        output = model(case.images())
        assert random_state() == stream
        assert same(output, expected)
        assert close(gradients(model, output), expected_gradients)
        _, _, code = oracle(case, train, unchanged)
        assert torch.equal(tap.code, code)
    assert same(dict(model.named_buffers()) or [torch.zeros(1)], dict(plain.named_buffers()) or [torch.zeros(1)])


@pytest.mark.parametrize(("case", "train"), ROWS)
def test_replays_equal_the_oracle(case: Case, train: bool) -> None:
    reference, expected, _ = oracle(case, train, halved)
    expected_gradients = gradients(reference, expected)
    model = case.model(train)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        output = model(case.images())
        for full in (False, True, False):
            before, stream = traces(model), random_state()
            assert same(tap.replay(None, full=full), output)
            replayed = tap.replay(halved(tap.code), full=full)
            assert same(replayed, expected)
            assert close(gradients(model, replayed), expected_gradients)
            assert random_state() == stream
            assert traces(model) == before
            type(model).forward(model, case.images(1))  # behind the tap's back; nothing of it may be remembered


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fast_replay_skips_what_it_may_and_nothing_else(case: Case) -> None:
    model = case.model(False)
    with LatentTap(model, case.spot, call=case.call) as tap:
        model(case.images())
        counts = []
        for full in (False, True):
            with torch.no_grad(), CountOperations() as operations:
                tap.replay(halved(tap.code), full=full)
            counts.append(operations.count)
    assert (counts[0] < counts[1]) is case.fast


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_detached_replay_gives_gradients_to_what_follows_only(case: Case) -> None:
    expected, expected_gradients = detached_oracle(case)
    model = case.model(True)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        model(case.images())
        new = halved(tap.code.detach()).requires_grad_()
        before = traces(model)
        for full in (False, True):
            output = tap.replay(new, full=full, detach=True)
            # Not bitwise: which kernel nn.Linear takes depends on whether its weight requires a gradient.
            assert close(list(leaves(output)), list(leaves(expected)))
            found = gradients(model, output, [new])
            assert close(found, expected_gradients)
            assert float(found[-1].norm()) > 0
        assert traces(model) == before


# Codes and gradients --------------------------------------------------------------------------------------------------


def test_saliency_is_that_of_a_plain_pass(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        saliency = latent_saliency(model(images).square().mean(), tap.code)
    plain, kept = unet(), []
    plain.encoder.register_forward_hook(lambda module, args, output: kept.append(output[1]))
    (expected,) = torch.autograd.grad(plain(images).square().mean(), kept)
    assert torch.equal(saliency, expected)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_frozen_encoder_still_has_a_saliency(model: UNet, images: Tensor) -> None:
    model.encoder.requires_grad_(False)
    with LatentTap(model, "encoder[1]") as tap:
        assert latent_saliency(model(images).square().mean(), tap.code).abs().sum() > 0


def test_an_encoder_under_no_grad_still_has_a_saliency() -> None:
    case = CASES["EncoderWithoutGraph"]
    model = case.model(False)
    with LatentTap(model, case.spot) as tap:
        assert latent_saliency(model(case.images()).square().mean(), tap.code).abs().sum() > 0
        new = tap.code.detach().requires_grad_()
        assert latent_saliency(tap.replay(new).square().mean(), new).abs().sum() > 0


def test_a_code_that_requires_grad_gets_its_gradient(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        for full in (False, True):
            new = tap.code.detach().mul(0.5).requires_grad_()
            tap.replay(new, full=full).square().sum().backward(inputs=[new])
            leaf = tap.code.detach().mul(0.5).requires_grad_()
            _, expected = hooked(images, lambda code, leaf=leaf: leaf)
            expected.square().sum().backward(inputs=[leaf])
            assert close([new.grad], [leaf.grad])


def test_what_follows_the_tap_does_not_change_the_code() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1))
    with LatentTap(model, "0") as tap:
        model(torch.randn(1, 1, 8, 8))
        assert bool((tap.code < 0).any())
        new = torch.full_like(tap.code, -1.0)
        tap.replay(new)
        assert bool((new == -1).all())


def test_the_two_stage_way(images: Tensor) -> None:
    """Backward first, then a detached replay and its backward: gradients of later weights add up."""
    model = unet(train=True)
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        model(images).square().mean().backward()
        first = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        tap.replay(tap.code.detach() * 0.5, detach=True).square().mean().backward()
    reference, expected = hooked(images, lambda code: code * 0.5, train=True)
    later = {name: w for name, w in reference.named_parameters() if not name.startswith("encoder")}
    expected_gradients = dict(
        zip(later, torch.autograd.grad(expected.square().mean(), list(later.values())), strict=True)
    )
    for name, weight in model.named_parameters():
        assert close([weight.grad - first[name]], [expected_gradients.get(name)])


def test_the_graph_that_was_freed_is_not_entered_by_a_detached_replay_of_a_callable(images: Tensor) -> None:
    model = unet()
    with LatentTap(model, "encoder[1]") as tap:
        model(images).square().mean().backward()
        tap.replay(lambda code: code * 0.5, detach=True).sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            tap.replay(lambda code: code * 0.5).sum().backward()


def test_a_replay_without_gradients_builds_no_graph(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        logits = model(images)
        with torch.no_grad():
            replayed = tap.replay(tap.code)
        assert torch.equal(replayed, logits)
        assert not replayed.requires_grad
        with torch.inference_mode():
            assert torch.equal(tap.replay(tap.code.clone()), logits)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_pass_captured_without_gradients(images: Tensor, context: Any) -> None:
    model = unet(train=True)
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        with context():
            logits = model(images)
            assert torch.equal(tap.replay(tap.code), logits)
        assert not tap.replay(None).requires_grad  # as the captured pass was
        reference, _ = hooked(images, lambda code: code, train=True)
        new = (tap.code.clone() * 0.5).requires_grad_()
        for full in (False, True):
            replayed = tap.replay(new, full=full)
            leaf = new.detach().clone().requires_grad_()
            reference, expected = hooked(images, lambda code, leaf=leaf: leaf, train=True)
            assert torch.equal(replayed, expected)
            wanted = [weight for name, weight in model.named_parameters() if not name.startswith("encoder")]
            found = torch.autograd.grad(replayed.square().sum(), [new, *wanted])
            wanted = [weight for name, weight in reference.named_parameters() if not name.startswith("encoder")]
            assert close(list(found), list(torch.autograd.grad(expected.square().sum(), [leaf, *wanted])))
            encoder = list(model.encoder.parameters())
            assert torch.autograd.grad(replayed.sum(), encoder, allow_unused=True) == (None,) * len(encoder)


def test_buffers_that_a_pass_computes_with_may_be_tapped_in_inference_mode(images: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)
            self.register_buffer("scale", torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x) * self.scale)

    model = Scaled().to(images.dtype)
    with torch.inference_mode(), LatentTap(model, "encoder") as tap:
        assert torch.equal(model(images), tap.replay(None))


def test_inputs_that_require_grad_get_theirs(model: UNet, images: Tensor) -> None:
    images.requires_grad_()
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        found = []
        for full in (False, True):
            replayed = tap.replay(tap.code * 0.5, full=full)
            found += torch.autograd.grad(replayed.sum(), images, retain_graph=True)
    _, expected = hooked(images, lambda code: code * 0.5)
    (gradient,) = torch.autograd.grad(expected.sum(), images)
    assert close(found, [gradient, gradient])


def test_bfloat16_autocast_is_entered_again(images: Tensor) -> None:
    model = unet(train=True).float()
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.float())
        assert tap.code.dtype == torch.bfloat16
        for full in (False, True):
            assert torch.equal(tap.replay(tap.code, full=full), logits)  # outside of the user's autocast
    plain = unet(train=True).float()
    plain.encoder.register_forward_hook(lambda module, args, output: [output[0], output[1] * 0.5])
    model = unet(train=True).float()
    seed_all(0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(images.float())
        seed_all(0)
        with LatentTap(model, "encoder[1]") as tap:
            model(images.float())
            replayed = [tap.replay(tap.code * 0.5, full=full) for full in (False, True)]
    assert torch.equal(replayed[0], expected)
    assert torch.equal(replayed[1], expected)
    assert close(gradients(model, replayed[0]), gradients(plain, expected))


def test_a_replay_without_graph_spoils_no_cast_weight(images: Tensor) -> None:
    """Autocast caches weights that were cast: those of a pass without graph have none."""
    model = unet().float()
    with torch.autocast("cpu", torch.bfloat16), LatentTap(model, "encoder[1]") as tap:
        with torch.no_grad():
            model(images.float())
            tap.replay(None)
        model(images.float()).float().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_channels_last_memory_is_kept(images: Tensor) -> None:
    model = unet().to(memory_format=torch.channels_last)
    with LatentTap(model, "encoder[1]") as tap:
        logits = model(images.to(memory_format=torch.channels_last))
        assert tap.code.is_contiguous(memory_format=torch.channels_last)
        replayed = tap.replay(tap.code * 1)
        assert torch.equal(replayed, logits)
        assert replayed.stride() == logits.stride()


# Refusals -------------------------------------------------------------------------------------------------------------


def test_codes_of_another_shape_device_or_number_are_refused(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        with pytest.raises(
            ValueError, match=r"needs a code of shape \(2, 6, 8, 12\) on cpu; got \(2, 6, 4, 4\) on cpu"
        ):
            tap.replay(tap.code[..., :4, :4])
        with pytest.raises(ValueError, match=r"got \(2, 6, 8, 12\) on meta"):
            tap.replay(torch.empty_like(tap.code, device="meta"))
        with pytest.raises(ValueError, match=r"needs a code of shape .* got \(2, 6\)"):
            tap.replay(lambda code: code.mean((2, 3)))
        with pytest.raises(ValueError, match="needs 1 codes, one for each layer; got 2"):
            tap.replay([tap.code, tap.code])
        with pytest.raises(TypeError, match="needs a tensor, or a callable that returns one; got float"):
            tap.replay(lambda code: 0.5)
        with pytest.raises(TypeError, match="needs a tensor, or a callable that returns one; got str"):
            tap.replay("code")


def test_inputs_changed_meanwhile_are_noticed(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        images.mul_(2)
        with pytest.raises(RuntimeError, match="inputs as they were in the forward pass"):
            tap.replay(tap.code)


def test_weights_changed_meanwhile_are_noticed(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        with pytest.raises(
            RuntimeError, match=r"an optimizer has changed them since. Replay before optimizer.step\(\)"
        ):
            tap.replay(tap.code)
        with torch.no_grad(), pytest.raises(RuntimeError, match="needs the weights as they were"):
            tap.replay(tap.code)
        tap.replay(tap.code.detach(), detach=True).sum().backward()


def test_a_cell_that_is_called_more_or_less_often_is_followed(images: Tensor) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.cell, self.head = 3, conv(3, 3), conv(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.steps):
                x = x + self.cell(x).tanh()
            return self.head(x)

    model = Steps().double()
    for steps in (3, 5, 2):
        model.steps = steps
        with LatentTap(model, "cell") as tap:
            logits = model(images)
            assert torch.equal(tap.replay(tap.code), logits)
            x = images
            for step in range(steps):
                x = x + model.cell(x).tanh() if step < steps - 1 else x + (tap.code * 0.5).tanh()
            assert torch.equal(tap.replay(tap.code * 0.5), model.head(x))
    with LatentTap(model, "cell", call=2) as tap:
        model.steps = 3
        model(images)
        model.steps = 2
        with pytest.raises(ValueError, match=r"needs `call` within the 2 calls of 'cell'; got 2"):
            model(images)


def test_a_replay_that_does_not_come_to_the_code_says_so(images: Tensor) -> None:
    depth = [3]

    class Elsewhere(Shrinks):
        """Where to stop is kept outside of the model."""

        def forward(self, x: Tensor) -> Tensor:
            self.depth = depth[0]
            return super().forward(x)

    model = Elsewhere().double()
    with LatentTap(model, "blocks.1") as tap:
        model(images)
        depth[0] = 1
        with pytest.raises(RuntimeError, match=r"did not come to 'blocks.1' again: Elsewhere calls other modules"):
            tap.replay(tap.code)


def test_a_flag_that_is_set_meanwhile_changes_nothing(images: Tensor) -> None:
    model = Shrinks().double()
    with LatentTap(model, "blocks.1") as tap:
        logits = model(images)
        model.depth = 1
        assert torch.equal(tap.replay(tap.code), logits)
        assert model.depth == 1


def test_a_layer_left_out_of_a_pass_is_named(images: Tensor) -> None:
    model = Shrinks().double()
    with LatentTap(model, "blocks.1") as tap:
        model(images)
        model.depth = 1
        with pytest.raises(RuntimeError, match=r"'blocks.1' was not called in this pass"):
            model(images)
        model.depth = 3
        logits = model(images)
        assert torch.equal(tap.replay(tap.code), logits)
    assert "forward" not in model.__dict__


# Statistics -----------------------------------------------------------------------------------------------------------


TRACKING = ["BatchNorm", "BatchNormWithoutMomentum", "InstanceNormThatTracks", "OldSpectralNorm", "AverageInPlace"]


@pytest.mark.parametrize("name", [*TRACKING, "NewSpectralNorm", "AverageReassigned"])
def test_replays_leave_buffers_alone_unless_told_otherwise(name: str) -> None:
    case = CASES[name]
    model = case.model(True)
    seed_all(0)
    with LatentTap(model, case.spot) as tap:
        model(case.images())
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        tap.replay(tap.code * 0.5)
        tap.replay(tap.code * 0.5, full=True)
        assert same(dict(model.named_buffers()), before)
        tap.replay(None, full=True, update_stats=True)
    plain = case.model(True)
    seed_all(0)
    plain(case.images())
    seed_all(0)
    plain(case.images())
    assert same(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert not same(dict(model.named_buffers()), before)


def test_a_fast_replay_that_updates_moves_what_it_runs() -> None:
    model = Normalised(nn.BatchNorm2d).double()
    with LatentTap(model, "norms.1") as tap:
        model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
        tap.replay(tap.code, update_stats=True)
    assert [int(norm.num_batches_tracked) for norm in model.norms] == [1, 1, 2]


# Several layers -------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Three stages, skips from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a.relu())
        c = self.c(F.dropout(b.relu(), 0.3, self.training))
        return self.head(c * a + b)


def deep() -> Deep:
    torch.manual_seed(5)
    return Deep().double()


def deep_oracle(images: Tensor, changes: dict[str, Callable[[Tensor], Tensor]]) -> tuple[Deep, Tensor]:
    model = deep()
    for name, change in changes.items():
        model.get_submodule(name).register_forward_hook(lambda module, args, output, change=change: change(output))
    seed_all(0)
    return model, model(images)


@pytest.mark.parametrize("full", [False, True])
def test_several_layers_take_tensors_callables_or_nothing(images: Tensor, full: bool) -> None:
    model = deep()
    seed_all(0)
    with LatentTap(model, ["b", "a", "c"]) as tap:  # in any order
        model(images)
        b, a, c = tap.codes
        assert tap.code is b
        halved, fixed = (lambda code: code * 0.5), torch.ones_like(b)
        for new, changes in (
            ([None, halved, None], {"a": halved}),  # b and c follow from the new a
            ([halved, halved, halved], {"a": halved, "b": halved, "c": halved}),
            ([fixed, halved, None], {"a": halved, "b": lambda code: fixed}),
            ([b * 2, a * 2, c * 2], None),  # each returns exactly what is given
        ):
            reference, expected = deep_oracle(
                images,
                changes
                or {
                    "a": lambda code: a.detach() * 2,
                    "b": lambda code: b.detach() * 2,
                    "c": lambda code: c.detach() * 2,
                },
            )
            output = tap.replay(new, full=full)
            assert torch.equal(output, expected)
            if changes:
                assert close(gradients(model, output), gradients(reference, expected))


def test_two_codes_of_one_module(model: UNet, images: Tensor) -> None:
    with LatentTap(model, ["encoder[0]", "encoder[1]"]) as tap:
        model(images)
        output = tap.replay([None, lambda code: code * 0.5])
        assert torch.equal(output, hooked(images, lambda code: code * 0.5)[1])
        both = [tap.replay([tap.codes[0] * 0.5, torch.zeros_like], full=full) for full in (False, True)]
        model.encoder.register_forward_hook(lambda module, args, output: [output[0] * 0.5, output[1] * 0])
    assert torch.equal(both[0], model(images))
    assert torch.equal(both[1], model(images))


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -2:] = True
        output: Tensor = self.head(self.encoder(x, src_key_padding_mask=padding))
        return output


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_a_nested_code_is_refused_with_the_reason() -> None:
    model = Padded().eval()
    with LatentTap(model, "encoder.layers.0") as tap:
        with pytest.raises(TypeError, match=r"'encoder.layers.0' returned a nested tensor.*enable_nested_tensor=False"):
            model(torch.rand(2, 6, 8))
        del tap
