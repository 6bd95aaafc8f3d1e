"""LatentTap as users meet it: layers, what is known when, and the company and the wrappers that models come in."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import GIN, ManifoldMixup, MaxStyle, MixStyle, TargetedChannelMask, find_bottleneck, suggest_layers
from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import Location
from tests.models.handwritten.unets import FunctionalUNet
from tests.models.hostile.repeated_calls import Siamese
from tests.models.hostile.table import CASES
from tests.models.parts import Base, conv
from tests.models.unet import UNet, hooked, unet
from tests.support.compare import close
from tests.support.random_streams import seed_all
from tests.support.traces import traces

COMPILED = pytest.mark.filterwarnings("ignore:.*attribute of a Tensor that is not a leaf.*", "ignore:.*deprecated.*")

# Which layer ----------------------------------------------------------------------------------------------------------


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


def test_an_empty_batch_is_refused_for_what_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 1))
    with LatentTap(model, "0") as tap:
        model(torch.randn(0, 1, 8, 8))
        with pytest.raises(ValueError, match=r"a code \(0, 2, 8, 8\) .*, taken at '0': one of them is empty"):
            tap.replay(MixStyle())


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


# What is known when ---------------------------------------------------------------------------------------------------


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
        with pytest.raises(RuntimeError, match="to have 3 channels, but got 1"):
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


# Not alone ------------------------------------------------------------------------------------------------------------


def test_nested_taps_see_the_same_pass(model: UNet, images: Tensor) -> None:
    before = traces(model)
    with LatentTap(model, "encoder[1]") as outer:
        with LatentTap(model, "up") as inner:
            logits = model(images)
            assert torch.equal(inner.replay(inner.code), logits)
            assert torch.equal(outer.replay(outer.code), logits)
            _, expected = hooked(images, lambda code: code * 0.5)
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


def test_taps_may_be_left_in_any_order(model: UNet, images: Tensor) -> None:
    before = traces(model)
    outer, inner = LatentTap(model, "encoder[1]"), LatentTap(model, "up")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    logits = model(images)
    assert torch.equal(inner.replay(inner.code), logits)
    inner.__exit__(None, None, None)
    assert traces(model) == before
    copy.deepcopy(model)


@pytest.mark.parametrize("from_another_thread", [False, True])
def test_generators_that_hold_taps_may_be_closed_in_any_order(
    model: UNet, images: Tensor, from_another_thread: bool
) -> None:
    def codes(layer: str) -> Iterator[Tensor]:
        with LatentTap(model, layer) as tap:
            while True:
                model(images)
                yield tap.code

    before = traces(model)
    first, second = codes("encoder[1]"), codes("up")
    next(first), next(second)
    for one in (first, second):
        if from_another_thread:
            run(one.close)
        else:
            one.close()
    assert traces(model) == before

    def use() -> bool:
        with LatentTap(model, "up") as tap:
            output = model(images)
            return torch.equal(tap.replay(None), output)

    assert run(use)


def run(call: Any) -> Any:
    """Call something in another thread, and return what it returns."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    assert results, "the other thread waits for ever"
    return results[0]


def test_a_call_of_another_thread_passes_through(model: UNet, images: Tensor) -> None:
    other = torch.randn_like(images)
    alone = model(other)
    with LatentTap(model, "encoder[1]") as tap:
        logits = model(images)
        result = run(lambda: model(other))
        assert torch.equal(result, alone)
        assert result.requires_grad
        assert torch.equal(tap.replay(tap.code), logits)


def test_two_threads_with_taps_take_turns(model: UNet, images: Tensor) -> None:
    seen: list[str] = []

    def use() -> bool:
        with LatentTap(model, "up") as tap:
            seen.append("inner")
            output = model(images)
            return torch.equal(tap.replay(None), output)

    with LatentTap(model, "up") as tap:
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        output = model(images)
        assert torch.equal(tap.replay(None), output)
        seen.append("outer")
    thread.join(60)
    assert seen == ["outer", "inner"]


def test_discovery_works_within_an_open_tap(model: UNet, images: Tensor) -> None:
    outside = str(find_bottleneck(model, images))
    with LatentTap(model, "up") as tap:
        output = model(images)
        assert str(find_bottleneck(model, images[:1])) == outside
        assert torch.equal(tap.replay(None), output)
        assert tap.code.shape[0] == len(images)
        suggest_layers(model, images, TargetedChannelMask())
        assert torch.equal(tap.replay(None), output)


def test_a_tapped_model_is_not_copied_as_it_is(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "up"):
        with pytest.raises(RuntimeError, match="cannot be copied while a LatentTap is open on it"):
            copy.copy(model)
        with LatentTap(model, "encoder[1]"):
            pass
        with pytest.raises(RuntimeError, match="cannot be copied while a LatentTap is open on it"):
            copy.copy(model)
    assert torch.equal(copy.copy(model)(images), model(images))


def test_layers_within_a_transformer_encoder_are_called_in_eval_mode() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up = nn.Conv2d(1, 16, 4, 4), nn.ConvTranspose2d(16, 2, 4, 4)
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2)

        def forward(self, images: Tensor) -> Tensor:
            code = self.stem(images)
            return self.up(self.blocks(code.flatten(2).mT).mT.reshape(code.shape))

    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(2, 1, 16, 16)
    layer = model.blocks.layers[0].linear2
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _, __, output: output * 0.5)
        expected = model(images)
        handle.remove()
        with LatentTap(model, "blocks.layers.0.linear2") as tap:
            model(images)
            assert torch.equal(tap.replay(tap.code * 0.5), expected)


@COMPILED
def test_a_forward_that_was_compiled_by_itself_is_tapped(model: UNet, images: Tensor) -> None:
    expected = hooked(images, lambda code: code * 0.5)[1]
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    before = model.__dict__["forward"]
    model(images)
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        assert torch.equal(tap.replay(tap.code * 0.5), expected)
    assert model.__dict__["forward"] is before


@COMPILED
def test_a_compiled_method_may_call_a_tapped_layer(model: UNet, images: Tensor) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.part = torch.compile(self.part, backend="eager")  # type: ignore[method-assign]

        def part(self, images: Tensor) -> Tensor:
            return 2 * self.inner(images)

        def forward(self, images: Tensor) -> Tensor:
            return self.part(images) + 1

    outer = Net()
    expected = 2 * hooked(images, lambda code: code * 0.5)[1] + 1
    with LatentTap(outer, "inner.encoder[1]") as tap:
        outer(images)
        torch.testing.assert_close(tap.replay(tap.code * 0.5), expected)


def test_a_tap_on_a_part_works_within_a_tap_on_the_whole(images: Tensor) -> None:
    model = CASES["DropoutInEncoder"].model(False)
    with LatentTap(model, "encoder") as outer, LatentTap(model.encoder, "0") as inner:
        for _ in range(2):
            logits = model(images[..., :16])
            assert torch.equal(outer.replay(outer.code), logits)
            assert torch.equal(inner.replay(inner.code), outer.code)


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


# Compiled, scripted, parallel -----------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "already called"])
def test_a_compiled_model_is_tapped_inside(images: Tensor, how: str) -> None:
    model = unet()
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
        _, expected = hooked(images, lambda code: code * 0.5)
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
        traced = torch.jit.trace(unet(), images)
    with pytest.raises(TypeError, match=r"compiled by torch.jit .* whose submodules are never called from Python"):
        LatentTap(traced, "encoder")


def test_data_parallel_over_several_devices_is_refused(images: Tensor) -> None:
    parallel = nn.DataParallel(unet())
    parallel.device_ids = [0, 1]
    with pytest.raises(TypeError, match="DataParallel over 2 devices, whose replicas cannot be tapped"):
        LatentTap(parallel, "encoder[1]")
    parallel.device_ids = [0]
    assert LatentTap(parallel, "encoder[1]")._root is parallel.module


def test_names_of_wrapped_models_need_no_prefix(images: Tensor) -> None:
    parallel = nn.DataParallel(unet())  # without devices it calls the module itself
    for layer in ("encoder[1]", "module.encoder[1]"):
        with LatentTap(parallel, layer) as tap:
            logits = parallel(images)
            assert torch.equal(tap.replay(tap.code), logits)


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_is_tapped_inside(images: Tensor) -> None:
    model = unet(train=True)
    parallel = nn.parallel.DistributedDataParallel(model)
    seed_all(0)
    with LatentTap(parallel, "encoder[1]") as tap:
        logits = parallel(images)
        replayed = tap.replay(tap.code * 0.5)
        (logits.square().sum() + replayed.square().sum()).backward()
    reference = unet(train=True)
    seed_all(0)
    reference(images).square().sum().backward()
    other, expected = hooked(images, lambda code: code * 0.5, train=True)
    expected.square().sum().backward()
    sums = [a.grad + b.grad for a, b in zip(reference.parameters(), other.parameters(), strict=True)]
    assert close([weight.grad for weight in model.parameters()], sums)


# Without a layer --------------------------------------------------------------------------------------------------


def test_a_transform_says_which_layers_are_tapped(caplog: pytest.LogCaptureFixture) -> None:
    model, images = FunctionalUNet(), torch.randn(4, 3, 16, 24)
    for transform in (MaxStyle(p=1), MixStyle(p=1), TargetedChannelMask()):
        expected = suggest_layers(model, images, transform).layers
        with caplog.at_level("INFO", "latentaug"), LatentTap(model, transform=transform) as tap:
            output = model(images)
            assert [str(layer) for layer in tap.layers] == [str(layer) for layer in expected]
            assert [layer.layout for layer in tap.layers] == [layer.layout for layer in expected]
            assert tap.replay(transform, objective=lambda out: out.square().mean()).shape == output.shape
    assert "late" in caplog.text or "last" in caplog.text
    with LatentTap(model) as tap:  # which a tap for something else does not change
        model(images)
        assert str(tap.layers[0]) == str(find_bottleneck(model, images))
    with LatentTap(model, example=images, transform=ManifoldMixup()) as tap:
        assert len(tap.layers) == 1


def test_a_transform_of_images_has_no_layer_and_a_layer_needs_no_transform() -> None:
    model, images = FunctionalUNet(), torch.randn(4, 3, 16, 24)
    with pytest.raises(ValueError, match=r"LatentTap finds no layer for GIN: .*augment\(images\)"):
        LatentTap(model, example=images, transform=GIN())
    with pytest.raises(ValueError, match=r"needs a layer, or a transform to find layers for; got both"):
        LatentTap(model, "bottom", transform=MixStyle())


def test_another_task_s_pass_is_none_of_a_tap_s(model: UNet, images: Tensor) -> None:
    given, before = [images, images.flip(0) + 1], traces(model)

    async def replayed(number: int) -> Tensor:
        with LatentTap(model, "encoder.down") as tap:
            model(given[number])
            await asyncio.sleep(0.01 * (2 - number))
            return tap.replay(lambda code: code * 0.5)

    async def both() -> list[Tensor]:
        return await asyncio.gather(replayed(0), replayed(1))

    with torch.no_grad():
        for image, got in zip(given, asyncio.run(both()), strict=True):
            with LatentTap(model, "encoder.down") as tap:
                model(image)
                assert torch.equal(got, tap.replay(lambda code: code * 0.5))
    assert traces(model) == before


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning", "ignore:.*deprecated.*:DeprecationWarning")
def test_a_layer_inside_a_scripted_module_is_refused_with_the_reason() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())), nn.Conv2d(4, 2, 1))
    with LatentTap(model, "0.0"), pytest.raises(RuntimeError, match=r"'0' around it was made by torch.jit.script"):
        model(torch.rand(2, 1, 8, 8))


def test_a_pass_within_vmap_is_refused_with_the_reason(model: UNet, images: Tensor) -> None:
    with LatentTap(model.eval(), "encoder.down"), pytest.raises(RuntimeError, match=r"torch\.func\.vmap"):
        torch.func.vmap(model)(images[None])
