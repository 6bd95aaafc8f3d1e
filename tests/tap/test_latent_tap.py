"""LatentTap as users meet it: layers, codes, replays, refusals, and the wrappers that models come in."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout
from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import Location
from tests.models.hostile import (
    CASES,
    Base,
    CountOperations,
    Normalised,
    Siamese,
    close,
    conv,
    gradients,
    same,
    seed_all,
    traces,
)


class UNet(nn.Module):
    """Encoder with batch statistics and dropout that returns a list, decoder that takes it, head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = UNetEncoder()
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.encoder(x)
        return self.head(F.relu(self.norm(self.up(z))) + a)


class UNetEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop, self.down = conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(0.3), conv(4, 6, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.drop(F.relu(self.norm(self.stem(x))))
        return [a, F.relu(self.down(a))]


def build(train: bool = False) -> UNet:
    torch.manual_seed(3)
    return UNet().double().train(train)


@pytest.fixture
def model() -> UNet:
    return build()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def oracle(images: Tensor, change: Callable[[Tensor], Tensor], *, train: bool = False) -> tuple[nn.Module, Tensor]:
    """Run a fresh model, with a plain hook that returns the changed code."""
    model = build(train)
    model.encoder.register_forward_hook(lambda module, args, output: [output[0], change(output[1])])
    seed_all(0)
    return model, model(images)


# Which layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    ["encoder[1]", "encoder[-1]", "encoder[ 1 ]", Location("encoder", (1,), CHANNELS_FIRST, (), ()), "encoder.down"],
    ids=str,
)
def test_a_layer_may_be_a_name_with_an_index_or_a_location(model: UNet, images: Tensor, layer: Any) -> None:
    with LatentTap(model, layer) as tap:
        model(images)
        assert tap.code.shape == (2, 6, 8, 12)
        assert tap.layout == CHANNELS_FIRST
        assert tap.layers[0].shape == (2, 6, 8, 12)
    _, z = model.encoder(images)
    expected = model.encoder.down(model.encoder(images)[0]) if layer == "encoder.down" else z
    with LatentTap(model, layer) as tap:
        model(images)
        assert torch.equal(tap.code, expected)


def test_a_layer_may_be_a_module(model: UNet, images: Tensor) -> None:
    with LatentTap(model, model.encoder.down) as tap:
        model(images)
        assert str(tap.layers[0]) == "encoder.down"
        assert tap.layers[0].stride == (2, 2)


def test_the_model_itself_may_be_the_layer(model: UNet, images: Tensor) -> None:
    with LatentTap(model, model) as tap:
        logits = model(images)
        assert torch.equal(tap.code, logits)
        assert torch.equal(tap.replay(tap.code * 2), logits * 2)
        assert torch.equal(tap.replay(lambda code: code * 2, full=True), logits * 2)


def test_no_layer_takes_the_bottleneck_and_says_so_once(
    model: UNet, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    for _ in range(2):
        with LatentTap(model) as tap:
            model(images)
            assert str(tap.layers[0]) == "encoder[1]"
    said = [record.message for record in caplog.records]
    assert said == ["LatentTap takes encoder[1] of UNet, a code (2, 6, 8, 12): the coarsest that its modules return."]


def test_an_example_tells_the_layers_before_the_first_pass(model: UNet, images: Tensor) -> None:
    assert [str(layer) for layer in LatentTap(model, example=images).layers] == ["encoder[1]"]
    assert LatentTap(model, ["encoder[1]", "encoder[0]"], example=(images,)).layers[1].shape == (2, 4, 16, 24)
    assert LatentTap(model, example={"x": images}).layout == CHANNELS_FIRST
    with pytest.raises(TypeError, match="`example` needs a tensor, or a tuple or dict of the model's inputs; got int"):
        LatentTap(model, example=3)


@pytest.mark.parametrize("layer", [None, "encoder[1]"])
def test_an_example_is_looked_at_by_two_samples(model: UNet, images: Tensor, layer: str | None) -> None:
    batch, seen = images.repeat(3, 1, 1, 1), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    assert LatentTap(model, layer, example=batch).layers[0].shape == (6, 6, 8, 12)
    assert max(seen) == images.numel()


def test_an_example_that_must_not_be_cut_is_looked_at_whole() -> None:
    class Insists(Base):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 3:
                raise ValueError("three at a time")
            return self.head(self.up(self.code(self.stem(x))))

    for layer in (None, "code"):
        assert LatentTap(Insists(), layer, example=torch.randn(3, 3, 8, 8)).layers[0].shape == (3, 6, 4, 4)


def test_layers_are_unknown_before_the_first_pass(model: UNet) -> None:
    with pytest.raises(RuntimeError, match=r"LatentTap.layers is known once the model was called"):
        _ = LatentTap(model).layers


def test_layers_stay_known_after_the_context(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
    assert tap.layers[0].shape == (2, 6, 8, 12)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        ("encoder.dwn", ValueError, r"found no submodule 'encoder.dwn' in UNet; closest: 'encoder.down'"),
        ("xyzxyz", ValueError, r"found no submodule 'xyzxyz' in UNet. Pass one of its names"),
        (nn.Identity(), ValueError, r"needs a submodule of UNet; got another Identity"),
        (["encoder[1]", 3], TypeError, r"needs a dotted name, a module, a Location or None; got int"),
        ([], ValueError, r"needs at least one layer; got an empty list"),
    ],
    ids=["typo", "nonsense", "stranger", "number", "none"],
)
def test_unknown_layers_are_refused_at_once(model: UNet, layer: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LatentTap(model, layer)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        ("encoder", r"'encoder' is several: 'encoder' returns 'encoder\[0\]' \(2, 4, 16, 24\), 'encoder\[1\]'"),
        ("encoder[2]", r"'encoder\[2\]' is not one: 'encoder' returns 'encoder\[0\]'"),
        ("encoder['out']", r"\"encoder\['out'\]\" is not one"),
        (["encoder[1]", "encoder[-1]"], r"needs different layers; got 'encoder' twice"),
    ],
)
def test_layers_without_a_single_tensor_are_refused_on_the_first_pass(
    model: UNet, images: Tensor, layer: Any, match: str
) -> None:
    before = traces(model)
    with LatentTap(model, layer), pytest.raises(ValueError, match=match):
        model(images)
    assert traces(model) == before


def test_a_module_that_is_never_called_is_refused(images: Tensor) -> None:
    model = Base()
    model.forward = lambda x: model.head(model.stem(x))  # type: ignore[method-assign]
    with LatentTap(model, "up"), pytest.raises(RuntimeError, match=r"'up' is not called in a forward pass of Base"):
        model(images.float())


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`model` needs to be a torch.nn.Module; got str"):
        LatentTap("unet")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [2, -3])
def test_a_call_that_is_not_made_is_refused(images: Tensor, call: int) -> None:
    model = Siamese().double()
    with (
        LatentTap(model, "encoder[2]", call=call),
        pytest.raises(ValueError, match=rf"needs `call` within the 2 calls of 'encoder'; got {call}"),
    ):
        model(images)


def test_a_code_of_unknown_layout_needs_a_location() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4))
    images = torch.randn(2, 1, 8, 8)
    with LatentTap(model, "1") as tap:
        model(images)
        assert tap.code.shape == (2, 72)
        with pytest.raises(ValueError, match=r"cannot tell channels from sites in a code \(2, 72\) of an image"):
            _ = tap.layout
    with LatentTap(model, Location("1", (), CHANNELS_FIRST, (2, 72), ())) as tap:
        model(images)
        assert tap.layout == CHANNELS_FIRST


def test_layouts_follow_the_code(images: Tensor) -> None:
    for name, layout in (("ChannelsLast", CHANNELS_LAST), ("TokensWithPrefix", Layout(-1, 1))):
        case = CASES[name]
        model = case.model(False)
        with LatentTap(model, case.spot) as tap:
            model(case.images())
            assert tap.layout == layout


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long])
def test_integer_inputs_are_tapped_as_well(dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(3, 4, 2), nn.Upsample(scale_factor=2), conv(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.float() / 255)

    model, images = Net(), torch.randint(0, 255, (2, 3, 8, 8), dtype=dtype)
    with LatentTap(model) as tap:
        logits = model(images)
        assert str(tap.layers[0]) == "net.0"
        assert torch.equal(tap.replay(tap.code), logits)


def test_models_without_any_image_are_tapped_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with LatentTap(model, "1") as tap:
        output = model(torch.tensor([[1, 2, 3]]))
        assert torch.equal(tap.replay(tap.code), output)
        with pytest.raises(ValueError, match="cannot tell channels from sites"):
            _ = tap.layers
    with LatentTap(model), pytest.raises(ValueError, match=r"needs an image \[B, C, \*S\] among the model's inputs"):
        model(torch.tensor([[1, 2, 3]]))


# State ------------------------------------------------------------------------------------------------------------


def test_before_a_pass_there_is_nothing_to_read(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        for read in (lambda: tap.code, lambda: tap.codes, lambda: tap.replay(None)):
            with pytest.raises(RuntimeError, match=r"needs a forward pass of UNet in this context first"):
                read()
        model.encoder(images)  # by hand: the model itself was not called
        with pytest.raises(RuntimeError, match=r"call the model itself, not its parts"):
            _ = tap.code


def test_after_the_context_everything_is_gone(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
    for read in (lambda: tap.code, lambda: tap.replay(None)):
        with pytest.raises(RuntimeError, match="is gone once the context is left"):
            read()
    with pytest.raises(RuntimeError, match="This LatentTap is not open"):
        tap.__exit__(None, None, None)


def test_the_last_call_of_the_model_counts(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        second = model(images * 2)
        assert torch.equal(tap.replay(tap.code), second)


def test_a_failed_pass_leaves_no_code_of_an_earlier_one(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        with pytest.raises(RuntimeError):
            model(images[:, :1])
        with pytest.raises(RuntimeError, match="needs a forward pass"):
            _ = tap.code


def test_a_tap_may_be_opened_again_but_not_twice(model: UNet, images: Tensor) -> None:
    tap = LatentTap(model, "encoder[1]")
    for _ in range(2):
        with tap:
            model(images)
            with pytest.raises(RuntimeError, match="open already"):
                tap.__enter__()
    assert "forward" not in model.__dict__


def test_forward_may_be_called_directly(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        logits = model.forward(images)
        assert torch.equal(tap.replay(tap.code), logits)


def test_arguments_may_be_named(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        logits = model(x=images)
        assert torch.equal(tap.replay(tap.code), logits)


def test_batches_of_other_sizes_use_the_same_plan(model: UNet, images: Tensor) -> None:
    for batch in (images, images[:1], torch.cat([images, images]).repeat(1, 1, 2, 1)):
        with LatentTap(model, "encoder[1]") as tap:
            logits = model(batch)
            assert torch.equal(tap.replay(tap.code), logits)
            assert tap.layers[0].shape == tuple(tap.code.shape)


def test_the_plan_is_made_once(model: UNet, images: Tensor) -> None:
    passes = []
    model.head.register_forward_pre_hook(lambda *_: passes.append(1))
    with LatentTap(model, "encoder[1]"):
        model(images)
    assert len(passes) > 1
    passes.clear()
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        tap.replay(None)
    assert len(passes) == 2
    passes.clear()
    model.encoder.norm.eval()  # another mode, another plan
    model.encoder.norm.train()
    with LatentTap(model, "encoder[1]"):
        model(images)
    assert len(passes) > 1


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


# Codes and gradients ----------------------------------------------------------------------------------------------


def test_saliency_is_that_of_a_plain_pass(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        saliency = latent_saliency(model(images).square().mean(), tap.code)
    plain, kept = build(), []
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
            _, expected = oracle(images, lambda code, leaf=leaf: leaf)
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
    model = build(train=True)
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        model(images).square().mean().backward()
        first = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        tap.replay(tap.code.detach() * 0.5, detach=True).square().mean().backward()
    reference, expected = oracle(images, lambda code: code * 0.5, train=True)
    later = {name: w for name, w in reference.named_parameters() if not name.startswith("encoder")}
    expected_gradients = dict(
        zip(later, torch.autograd.grad(expected.square().mean(), list(later.values())), strict=True)
    )
    for name, weight in model.named_parameters():
        assert close([weight.grad - first[name]], [expected_gradients.get(name)])


def test_the_graph_that_was_freed_is_not_entered_by_a_detached_replay_of_a_callable(images: Tensor) -> None:
    model = build()
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
    model = build(train=True)
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        with context():
            logits = model(images)
            assert torch.equal(tap.replay(tap.code), logits)
        assert not tap.replay(None).requires_grad  # as the captured pass was
        reference, _ = oracle(images, lambda code: code, train=True)
        new = (tap.code.clone() * 0.5).requires_grad_()
        for full in (False, True):
            replayed = tap.replay(new, full=full)
            leaf = new.detach().clone().requires_grad_()
            reference, expected = oracle(images, lambda code, leaf=leaf: leaf, train=True)
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
    _, expected = oracle(images, lambda code: code * 0.5)
    (gradient,) = torch.autograd.grad(expected.sum(), images)
    assert close(found, [gradient, gradient])


def test_bfloat16_autocast_is_entered_again(images: Tensor) -> None:
    model = build(train=True).float()
    seed_all(0)
    with LatentTap(model, "encoder[1]") as tap:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.float())
        assert tap.code.dtype == torch.bfloat16
        for full in (False, True):
            assert torch.equal(tap.replay(tap.code, full=full), logits)  # outside of the user's autocast
    plain = build(train=True).float()
    plain.encoder.register_forward_hook(lambda module, args, output: [output[0], output[1] * 0.5])
    model = build(train=True).float()
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
    model = build().float()
    with torch.autocast("cpu", torch.bfloat16), LatentTap(model, "encoder[1]") as tap:
        with torch.no_grad():
            model(images.float())
            tap.replay(None)
        model(images.float()).float().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_channels_last_memory_is_kept(images: Tensor) -> None:
    model = build().to(memory_format=torch.channels_last)
    with LatentTap(model, "encoder[1]") as tap:
        logits = model(images.to(memory_format=torch.channels_last))
        assert tap.code.is_contiguous(memory_format=torch.channels_last)
        replayed = tap.replay(tap.code * 1)
        assert torch.equal(replayed, logits)
        assert replayed.stride() == logits.stride()


# Refusals of replay -----------------------------------------------------------------------------------------------


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
        tap.replay(tap.code.detach(), detach=True).sum().backward()
        with torch.no_grad():
            tap.replay(tap.code)


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


# Statistics -------------------------------------------------------------------------------------------------------

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


# Several layers ---------------------------------------------------------------------------------------------------


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
        assert torch.equal(output, oracle(images, lambda code: code * 0.5)[1])
        both = [tap.replay([tap.codes[0] * 0.5, torch.zeros_like], full=full) for full in (False, True)]
        model.encoder.register_forward_hook(lambda module, args, output: [output[0] * 0.5, output[1] * 0])
    assert torch.equal(both[0], model(images))
    assert torch.equal(both[1], model(images))


# Not alone --------------------------------------------------------------------------------------------------------


def test_nested_taps_see_the_same_pass(model: UNet, images: Tensor) -> None:
    before = traces(model)
    with LatentTap(model, "encoder[1]") as outer:
        with LatentTap(model, "up") as inner:
            logits = model(images)
            assert torch.equal(inner.replay(inner.code), logits)
            assert torch.equal(outer.replay(outer.code), logits)
            _, expected = oracle(images, lambda code: code * 0.5)
            assert torch.equal(outer.replay(outer.code * 0.5), expected)
            assert torch.equal(outer.replay(outer.code * 0.5, full=True), expected)
            assert torch.equal(inner.replay(model.up(outer.code * 0.5)), expected)
        assert torch.equal(outer.replay(outer.code * 0.5), expected)
    assert traces(model) == before


def test_nested_taps_both_skip(model: UNet, images: Tensor) -> None:
    stems = []
    with LatentTap(model, "up") as outer, LatentTap(model, "encoder[1]") as inner:
        model(images)
        model.encoder.stem.register_forward_hook(lambda *_: stems.append(1))
        outer.replay(None)
        inner.replay(None)
    assert not stems


def test_taps_left_in_another_order_are_refused(model: UNet, images: Tensor) -> None:
    before = traces(model)
    outer, inner = LatentTap(model, "encoder[1]"), LatentTap(model, "up")
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="left in the reverse order"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    assert traces(model) == before


def test_a_tap_on_a_part_works_within_a_tap_on_the_whole(images: Tensor) -> None:
    model = CASES["DropoutInEncoder"].model(False)
    with LatentTap(model, "encoder") as outer, LatentTap(model.encoder, "0") as inner:
        for _ in range(2):
            logits = model(images[..., :16])
            assert torch.equal(outer.replay(outer.code), logits)
            assert torch.equal(inner.replay(inner.code), outer.code)


def test_threads_take_turns_on_one_model(model: UNet, images: Tensor) -> None:
    before, errors, results = traces(model), [], {}

    def work(number: int) -> None:
        try:
            for _ in range(5):
                with LatentTap(model, "encoder[1]") as tap:
                    logits = model(images * number)
                    results[number] = torch.equal(tap.replay(tap.code), logits)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert results == dict.fromkeys(range(1, 5), True)
    assert traces(model) == before


def test_a_tapped_model_is_not_copied_or_pickled(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        with pytest.raises(RuntimeError, match="cannot be copied while a LatentTap is open on it"):
            copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="cannot be pickled while a LatentTap is open on it"):
            pickle.dumps(model)
        tap.replay(tap.code)
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, again):
        assert traces(other).keys() == traces(model).keys()
        assert "forward" not in other.__dict__
        with LatentTap(other, "encoder[1]") as tap:
            logits = other(images)
            assert torch.equal(tap.replay(tap.code), logits)
    assert "forward" not in model.__dict__


def test_a_forward_of_the_users_own_is_put_back(model: UNet, images: Tensor) -> None:
    calls = []
    original = model.encoder.forward

    def mine(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return original(x)

    model.encoder.forward = mine  # type: ignore[method-assign]
    with LatentTap(model, "up") as tap:
        logits = model(images)
        calls.clear()
        assert torch.equal(tap.replay(tap.code), logits)
        assert not calls
        assert torch.equal(tap.replay(tap.code, full=True), logits)
        assert len(calls) == 1
    assert model.encoder.__dict__["forward"] is mine


def test_memory_is_flat_and_taps_are_collectable(model: UNet, images: Tensor) -> None:
    def step() -> tuple[Any, ...]:
        with LatentTap(model, "encoder[1]") as tap:
            logits = model(images)
            replayed = tap.replay(tap.code * 0.5)
            (logits.sum() + replayed.sum()).backward()
            return weakref.ref(tap), weakref.ref(tap.code), weakref.ref(tap._captured("code"))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    step()
    before = tensors()
    for _ in range(5):
        references = step()
    assert tensors() == before
    assert [reference() for reference in references] == [None, None, None]


def test_leaving_the_context_lets_the_code_go_at_once(model: UNet, images: Tensor) -> None:
    gc.collect()
    gc.disable()
    try:
        with LatentTap(model, "encoder[1]") as tap:
            model(images)
            code = weakref.ref(tap.code)
            assert code() is not None
        assert code() is None
    finally:
        gc.enable()


def test_models_are_collectable(images: Tensor) -> None:
    model = build()
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
    reference = weakref.ref(model)
    del model, tap
    gc.collect()
    assert reference() is None


# Passes that differ -----------------------------------------------------------------------------------------------


class Wanders(nn.Module):
    """Skips blocks at random, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(3, 3) for _ in range(6))
        self.code, self.head = conv(3, 4, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if random.random() < 0.5:
                x = x + block(x)
        return self.head(self.code(x))


def test_a_model_that_calls_other_modules_each_time_is_replayed_in_full_and_says_so_once(
    images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    torch.manual_seed(0)
    model = Wanders().double()
    for seed in range(12):
        with LatentTap(model, "code") as tap:
            seed_all(seed)
            logits = model(images)
            after = random.random()
            assert torch.equal(tap.replay(tap.code), logits)
            assert torch.equal(tap.replay(tap.code, full=True), logits)
        seed_all(seed)
        assert torch.equal(model(images), logits)
        assert random.random() == after
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("Wanders is replayed in full, because it does not call the same modules in every pass")


class Shrinks(nn.Module):
    """Takes fewer blocks from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 3
        self.blocks = nn.ModuleList(conv(3, 3) for _ in range(3))
        self.code, self.head = conv(3, 4, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: self.depth]:
            x = block(x)
        return self.head(self.code(x))


def test_a_model_that_changes_once_is_planned_anew(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model = Shrinks().double()
    for depth, passes in ((3, 2), (1, 2)):
        model.depth = depth
        for _ in range(passes):
            with LatentTap(model, "code") as tap:
                logits = model(images)
                with torch.no_grad(), CountOperations() as convolutions:
                    assert torch.equal(tap.replay(tap.code), logits)
        assert convolutions.count == 1  # the head's; everything before is skipped again
    assert not caplog.records


def test_a_model_that_changes_again_is_replayed_in_full(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model = Shrinks().double()
    for depth in (3, 2, 2, 1, 1, 3):
        model.depth = depth
        with LatentTap(model, "code") as tap:
            logits = model(images)
            with torch.no_grad(), CountOperations() as operations:
                assert torch.equal(tap.replay(tap.code), logits)
    assert operations.count == 5  # three blocks, the code, the head
    assert len(caplog.records) == 1


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
    model = Shrinks().double()
    with LatentTap(model, "blocks.1") as tap:
        model(images)
        model.depth = 1
        with pytest.raises(RuntimeError, match=r"did not come to 'blocks.1' again: Shrinks calls other modules"):
            tap.replay(tap.code)


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


# Compiled, scripted, parallel -------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "already called"])
def test_a_compiled_model_is_tapped_inside(images: Tensor, how: str) -> None:
    model = build()
    before = traces(model)
    compiled: nn.Module = model
    if how == "module.compile":
        model.compile(backend="eager")
        before = traces(model)
    else:
        compiled = torch.compile(model, backend="eager")
    if how == "already called":
        compiled(images)
    with LatentTap(compiled, "encoder[1]") as tap:
        logits = compiled(images)
        assert torch.equal(tap.replay(tap.code), logits)
        _, expected = oracle(images, lambda code: code * 0.5)
        assert torch.equal(tap.replay(tap.code * 0.5), expected)
    assert traces(model) == before
    assert torch.equal(compiled(images), logits)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("where", ["before the code", "the code", "around the code"])
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_compiled_submodules_keep_their_graphs(images: Tensor, where: str, how: str) -> None:
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(1)
        return graph.forward

    model = CASES["DropoutInEncoder"].model(False)
    images = images[..., :16].contiguous()
    expected = model(images)
    if how == "torch.compile":
        model.encoder = torch.compile(model.encoder, backend=backend)
    else:
        model.encoder.compile(backend=backend)
    model(images)
    layer = {"before the code": "decoder.0", "the code": "encoder", "around the code": "encoder.0"}[where]
    compilations.clear()
    with LatentTap(model, layer) as tap:
        for _ in range(2):
            logits = model(images)
            assert torch.equal(logits, expected)
            assert torch.equal(tap.replay(tap.code), logits)
            assert torch.equal(tap.replay(tap.code, full=True), logits)
            assert not torch.equal(tap.replay(tap.code * 0.5), logits)
    assert not compilations
    assert torch.equal(model(images), expected)
    assert not compilations


def test_traced_and_scripted_models_are_refused(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases call tracing deprecated
        traced = torch.jit.trace(build(), images)
    with pytest.raises(TypeError, match=r"compiled by torch.jit .* whose submodules are never called from Python"):
        LatentTap(traced, "encoder")


def test_data_parallel_over_several_devices_is_refused(images: Tensor) -> None:
    parallel = nn.DataParallel(build())
    parallel.device_ids = [0, 1]
    with pytest.raises(TypeError, match="DataParallel over 2 devices, whose replicas cannot be tapped"):
        LatentTap(parallel, "encoder[1]")
    parallel.device_ids = [0]
    assert LatentTap(parallel, "encoder[1]")._root is parallel.module


def test_names_of_wrapped_models_need_no_prefix(images: Tensor) -> None:
    parallel = nn.DataParallel(build())  # without devices it calls the module itself
    for layer in ("encoder[1]", "module.encoder[1]"):
        with LatentTap(parallel, layer) as tap:
            logits = parallel(images)
            assert torch.equal(tap.replay(tap.code), logits)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_is_tapped_inside(images: Tensor) -> None:
    model = build(train=True)
    parallel = nn.parallel.DistributedDataParallel(model)
    seed_all(0)
    with LatentTap(parallel, "encoder[1]") as tap:
        logits = parallel(images)
        replayed = tap.replay(tap.code * 0.5)
        (logits.square().sum() + replayed.square().sum()).backward()
    reference = build(train=True)
    seed_all(0)
    reference(images).square().sum().backward()
    other, expected = oracle(images, lambda code: code * 0.5, train=True)
    expected.square().sum().backward()
    sums = [a.grad + b.grad for a, b in zip(reference.parameters(), other.parameters(), strict=True)]
    assert close([weight.grad for weight in model.parameters()], sums)


# Checkpointing ----------------------------------------------------------------------------------------------------


class Checkpointed(Base):
    """Checkpoints the part that is asked for."""

    def __init__(self, part: str, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = part, reentrant

    def run(self, part: str, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if part != self.part:
            return function(*args)
        return checkpoint(function, *args, use_reentrant=self.reentrant)

    def forward(self, x: Tensor) -> Tensor:
        def whole(x: Tensor) -> Tensor:
            a = self.run("before", lambda x: self.stem(x).sin(), x)
            return self.run("after", lambda z, a: self.up(z.exp()) + a, self.run("code", self.code, a), a)

        return self.head(self.run("around", whole, x))


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
