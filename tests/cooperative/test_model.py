import copy
import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import latentaug.cooperative.eager_losses
from latentaug.augment.compose import OneOf, paper_masks
from latentaug.augment.masks import Masker, RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.cooperative.hard_examples import RESIDUAL, HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import WEIGHTS, segmentation_loss
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.stages import HardStage
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.layout import Layout
from latentaug.nets.ftn import FTN
from latentaug.nets.functional import one_hot
from latentaug.nets.heads import ReconstructionHead, ShapePrior
from tests.support.counting import bytes_kept
from tests.support.tiny_training import Wrapper

STANDARD = ["segmentation", "reconstruction", "shape_from_logits", "shape_from_labels"]
HARD = ["hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image", "shape_from_hard_segmentation"]


class UNet(nn.Module):
    """Two levels, with skip connections, batch normalisation and dropout."""

    def __init__(self, in_channels=1, num_classes=3, width=4, spatial_dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]

        def block(a, b, stride=1):
            return nn.Sequential(conv(a, b, 3, stride, 1), norm(b), nn.ReLU(inplace=True), conv(b, b, 3, 1, 1), norm(b))

        self.stem = block(in_channels, width)
        self.down = block(width, 2 * width, stride=2)
        self.bottleneck = block(2 * width, 4 * width, stride=2)
        self.dropout = nn.Dropout(0.1)
        self.up = block(6 * width, 2 * width)
        self.top = block(3 * width, width)
        self.final = conv(width, num_classes, 1)

    def forward(self, images):
        stem = self.stem(images)
        down = self.down(stem)
        deep = self.bottleneck(down)
        up = self.dropout(self.up(torch.cat([F.interpolate(deep, size=down.shape[2:]), down], 1)))
        return self.final(self.top(torch.cat([F.interpolate(up, size=stem.shape[2:]), stem], 1)))


class Tokens(nn.Module):
    """A transformer in miniature: a class token and one token per 4 x 4 patch, [B, N, C]."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 6, 4, 4)
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 2 * 16)

    def forward(self, images):
        patches = self.embed(images)
        tokens = patches.flatten(2).movedim(1, 2)
        tokens = self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        pixels = self.head(tokens[:, 1:] + tokens[:, :1]).movedim(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(pixels, 4)


class Spy(Masker):
    """A masker that remembers what it was given and what it made."""

    def __init__(self, masker):
        super().__init__()
        self.masker = masker
        self.calls = []

    def forward(self, code, saliency=None, *, layout, generator=None):
        mask = self.masker(code, saliency, layout=layout, generator=generator)
        self.calls.append(SimpleNamespace(code=code, layout=layout, factor=mask.factor))
        return mask


def batch(num_classes=3, size=(16, 20), dtype=torch.float32, samples=3):
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(samples, 1, *size, generator=generator).to(dtype)
    return images, torch.randint(max(num_classes, 2), (samples, *size), generator=generator)


def small_prior(num_classes=3, spatial_dims=2, dtype=torch.float32):
    return ShapePrior(num_classes, width=2, depth=2, spatial_dims=spatial_dims).to(dtype)


def cooperative(model=None, dtype=torch.float32, num_classes=3, size=(16, 20), **options):
    torch.manual_seed(0)
    model = (UNet(num_classes=num_classes, spatial_dims=len(size)) if model is None else model).to(dtype)
    images, _ = batch(num_classes, size, dtype)
    options.setdefault("shape_prior", small_prior(num_classes, len(size), dtype))
    return CooperativeModel(model, num_classes=num_classes, example=images, **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(coop):
    return {name: p.grad for name, p in coop.named_parameters()}


QUIET = HardExamples(noise=0)
SHORTCUTS = HardExamples(saliency_every=2, fraction=0.6, scale=0.5)
CASES = {
    "unet": {},
    "ftn": {"model": functools.partial(FTN, num_classes=3, width=2, depth=2)},
    "several layers": {"codes": ["down", "bottleneck"]},
    "two codes": {"codes": {"image": "down", "shape": "bottleneck"}},
    "3-D": {"size": (6, 8, 8)},
    "binary": {"num_classes": 1},
    "separate": {"hard": HardExamples(separate=True)},
    "weightless": {"weights": {"reconstruction": 0, "shape_from_logits": 0}},
    "unbounded": {"image_range": None},
    "tokens": {"model": Tokens, "num_classes": 2, "codes": "block", "size": (16, 16)},
    "shortcuts": {"hard": SHORTCUTS},
    "shortcuts, 3-D": {"hard": SHORTCUTS, "size": (8, 8, 16)},
}


def case(name, dtype=torch.float64):
    """Build one of the cases, with the batch it takes."""
    options = dict(CASES[name])
    torch.manual_seed(0)
    model = options.pop("model", None)
    coop = cooperative(None if model is None else model(), dtype, **options)
    return coop, *batch(options.get("num_classes", 3), options.get("size", (16, 20)), dtype)


class TestStep:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("wrap", [nn.Identity(), Wrapper], ids=["branch by branch", "stage by stage"])
    def test_backpropagating_in_parts_fills_the_same_gradients(self, name, wrap):
        coop, images, labels = case(name)
        other = copy.deepcopy(coop)
        torch.manual_seed(1)
        output = coop(images, labels, generator=seeded())
        output.loss.backward()
        torch.manual_seed(1)
        in_parts = cooperative_backward(wrap(other), images, labels, generator=seeded())

        assert set(output.losses) == set(STANDARD + HARD)
        torch.testing.assert_close(in_parts.losses, output.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(in_parts.loss, output.loss, rtol=1e-12, atol=0)
        for parameter, gradient in gradients(coop).items():
            assert gradient is not None, parameter
            torch.testing.assert_close(gradients(other)[parameter], gradient, rtol=1e-10, atol=1e-14)
        assert not any(t.requires_grad for t in (in_parts.loss, in_parts.logits, in_parts.refined))

    def test_equals_the_step_written_out(self):
        """By hand: plain hooks, two whole forward passes for the segmentation, no tap."""
        masker = TargetedChannelMask(0.5, annealing=0)
        coop = cooperative(dtype=torch.float64, augment=masker, hard=HardExamples(noise=0, residual=0))
        coop.model.dropout.p = 0
        images, labels = batch(dtype=torch.float64)
        output = coop(images, labels)

        model, head, prior = coop.model, coop.reconstruction, coop.shape_prior
        codes = []
        handle = model.bottleneck.register_forward_hook(lambda module, inputs, code: codes.append(code))
        logits, hot = model(images), F.one_hot(labels, 3).movedim(-1, 1).double()
        (code,) = codes
        segmentation = F.cross_entropy(logits, labels)
        reconstruction = F.mse_loss(head(code, images.shape[2:]), images)
        (image_saliency,) = torch.autograd.grad(reconstruction, code, retain_graph=True)
        (shape_saliency,) = torch.autograd.grad(segmentation, code, retain_graph=True)
        with torch.no_grad():
            hard_images = head(masker(code, image_saliency).apply(code), images.shape[2:])
            masked = masker(code, shape_saliency).apply(code)
            replacing = model.bottleneck.register_forward_hook(lambda module, inputs, code: masked)
            hard_segmentation = model(images)
            replacing.remove()
        codes.clear()
        hard_logits = model(hard_images)
        terms = {
            "segmentation": segmentation,
            "reconstruction": 0.5 * reconstruction,
            "shape_from_logits": F.cross_entropy(prior((logits / 2).softmax(1)), labels),
            "shape_from_labels": F.cross_entropy(prior(hot), labels),
            "hard_image_segmentation": F.cross_entropy(hard_logits, labels),
            "hard_image_reconstruction": 0.5 * F.mse_loss(head(codes[0], images.shape[2:]), images),
            "shape_from_hard_image": F.cross_entropy(prior((hard_logits / 2).softmax(1)), labels),
            "shape_from_hard_segmentation": F.cross_entropy(prior((hard_segmentation / 2).softmax(1)), labels),
        }
        handle.remove()
        assert {name: term.item() for name, term in output.losses.items()} == pytest.approx(
            {name: term.item() for name, term in terms.items()}, rel=1e-12
        )
        torch.testing.assert_close(output.hard_images, hard_images)
        torch.testing.assert_close(output.hard_segmentation, hard_segmentation)
        parameters = list(coop.parameters())
        for ours, expected in zip(
            torch.autograd.grad(output.loss, parameters),
            torch.autograd.grad(sum(terms.values()), parameters),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)

    def test_gradients_accumulate(self):
        coop, images, labels = case("unet")
        torch.manual_seed(1)
        coop.model.dropout.p = 0
        expected = {name: torch.zeros_like(p) for name, p in coop.named_parameters()}
        for seed in (0, 1):
            coop.zero_grad()
            cooperative_backward(coop, images, labels, generator=seeded(seed))
            for name, gradient in gradients(coop).items():
                expected[name] += gradient
        coop.zero_grad()
        for seed in (0, 1):
            cooperative_backward(coop, images, labels, generator=seeded(seed))
        for name, gradient in gradients(coop).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("name", ["unet", "ftn", "several layers", "3-D"])
    def test_running_statistics_are_those_of_one_standard_forward(self, name):
        coop, images, labels = case(name)
        coop.hard = HardExamples(noise=0)
        if name != "ftn":
            coop.model.dropout.p = 0
        plain = copy.deepcopy(coop)
        cooperative_backward(coop, images, labels, generator=seeded())

        codes = []
        tapped = plain.model.get_submodule(plain.image_code.name)
        tapped.register_forward_hook(lambda module, inputs, code: codes.append(code))
        logits = plain.model(images)
        plain.reconstruction(codes[0], images.shape[2:])
        plain.shape_prior(one_hot(labels, 3, dtype=images.dtype))
        plain.shape_prior.refine(logits)
        torch.testing.assert_close(dict(coop.named_buffers()), dict(plain.named_buffers()), rtol=1e-10, atol=1e-14)

    def test_weights_scale_the_losses_and_the_loss_is_their_sum(self):
        coop = cooperative(hard=QUIET, augment=TargetedChannelMask(0.5, 0))
        coop.model.dropout.p = 0
        images, labels = batch()
        plain = coop(images, labels, generator=seeded())
        assert plain.loss.item() == pytest.approx(sum(term.item() for term in plain.losses.values()))
        coop.weights = {**WEIGHTS, "segmentation": 3.0, "hard_image_reconstruction": 0.0}
        weighted = coop(images, labels, generator=seeded())
        for name, term in weighted.losses.items():
            factor = {"segmentation": 3.0, "hard_image_reconstruction": 0.0}.get(name, 1.0)
            torch.testing.assert_close(term, factor * plain.losses[name])

    def test_what_weighs_nothing_is_not_backpropagated(self):
        coop = cooperative(weights={name: 0.0 for name in WEIGHTS if "shape" in name})
        output = cooperative_backward(coop, *batch())
        assert all(parameter.grad is None for parameter in coop.shape_prior.parameters())
        assert all(parameter.grad is not None for parameter in coop.model.parameters())
        assert output.losses["shape_from_labels"] == 0

    def test_separate_stops_the_gradient_from_the_shape_prior(self):
        for separate in (False, True):
            coop = cooperative(hard=HardExamples(separate=separate))
            output = coop(*batch())
            loss = output.losses["shape_from_logits"] + output.losses["shape_from_hard_image"]
            reached = torch.autograd.grad(loss, list(coop.model.parameters()), allow_unused=True)
            assert all(gradient is None for gradient in reached) is separate

    def test_a_model_with_frozen_layers_trains(self):
        coop = cooperative()
        for part in (coop.model.stem, coop.model.down, coop.model.bottleneck):
            part.requires_grad_(False)
        cooperative_backward(coop, *batch())
        for name, gradient in gradients(coop).items():
            frozen = name.startswith(("model.stem", "model.down", "model.bottleneck"))
            assert (gradient is None) is frozen

    def test_gradient_scaler_scales_both_stages(self):
        coop, images, labels = case("ftn")
        plain, scaled = copy.deepcopy(coop), copy.deepcopy(coop)
        cooperative_backward(plain, images, labels, generator=seeded())
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        output = cooperative_backward(scaled, images, labels, scaler=scaler, generator=seeded())
        torch.testing.assert_close(output.loss, plain(images, labels, generator=seeded()).loss.detach())
        for name, gradient in gradients(plain).items():
            torch.testing.assert_close(gradients(scaled)[name], 128 * gradient)

    def test_autocast_reaches_every_parameter(self):
        coop, images, labels = case("unet", torch.float32)
        coop.model.dropout.p = 0
        exact = copy.deepcopy(coop)
        exact_loss = cooperative_backward(exact, images, labels, generator=seeded()).losses["segmentation"]
        with torch.autocast("cpu", torch.bfloat16):
            output = cooperative_backward(coop, images, labels, generator=seeded())
        assert output.losses["segmentation"].item() == pytest.approx(exact_loss.item(), rel=0.1)
        assert output.hard_images.dtype == torch.float32
        for name, gradient in gradients(coop).items():
            assert gradient.isfinite().all(), name
            assert gradient.any() == gradients(exact)[name].any(), name

    def test_a_model_that_enters_autocast_itself_is_trained(self):
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

            def forward(self, images):
                with torch.autocast("cpu", torch.bfloat16):
                    return self.decoder(self.encoder(images))

        images, labels = batch()
        coop = CooperativeModel(Mixed(), num_classes=3, example=images)
        output = coop(images, labels, generator=seeded())
        output.loss.backward()
        assert output.logits.dtype == torch.bfloat16
        assert output.refined.dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in gradients(coop).values())

    def test_output_is_a_named_tuple_with_the_loss_first(self):
        output = cooperative()(*batch())
        assert isinstance(output, tuple)
        assert isinstance(output, CooperativeOutput)
        assert output[0] is output.loss
        assert output.logits.shape == output.refined.shape == output.hard_segmentation.shape == (3, 3, 16, 20)
        assert output.hard_images.shape == (3, 1, 16, 20)


class TestHardExamples:
    def test_saliency_is_computed_only_for_a_masker_that_asks(self, monkeypatch):
        counted = []
        original = latentaug.cooperative.eager_losses.latent_saliency
        monkeypatch.setattr(
            latentaug.cooperative.eager_losses, "latent_saliency", lambda *args: (counted.append(1), original(*args))[1]
        )
        images, labels = batch()
        cooperative(augment=RandomChannelMask())(images, labels)
        assert len(counted) == 0
        cooperative(augment=(RandomChannelMask(), TargetedSpatialMask()))(images, labels)
        assert len(counted) == 1
        cooperative(augment=TargetedChannelMask(), codes=["down", "bottleneck"])(images, labels)
        assert len(counted) == 3  # one for the image code, one for all shape codes together

    def test_every_layer_of_several_is_masked_by_its_own_saliency(self):
        spy = Spy(TargetedChannelMask(0.5, annealing=0))
        coop = cooperative(codes=["down", "bottleneck"], augment=(RandomChannelMask(), spy), hard=QUIET)
        coop.model.dropout.p = 0
        images, labels = batch()
        output = coop(images, labels)
        down, bottleneck = spy.calls
        assert down.factor.shape == (3, 8, 1, 1)
        assert bottleneck.factor.shape == (3, 16, 1, 1)
        assert coop.image_code.name == "bottleneck"

        hooks = [
            coop.model.get_submodule(name).register_forward_hook(lambda m, i, code, f=call.factor: code * f)
            for name, call in (("down", down), ("bottleneck", bottleneck))
        ]
        with torch.no_grad():
            torch.testing.assert_close(output.hard_segmentation, coop.model(images))
        for hook in hooks:
            hook.remove()

    def test_tokens_are_masked_along_channels_and_their_prefix_stays(self):
        channels, sites = Spy(TargetedChannelMask(0.5, 0)), Spy(TargetedSpatialMask(0.5, 0))
        torch.manual_seed(0)
        model = Tokens()
        coop = cooperative(model, num_classes=2, codes="block", size=(16, 16), augment=(channels, sites))
        coop(*batch(2, (16, 16)))
        assert coop.image_code.layout == Layout(channel_dim=-1, prefix_tokens=1)
        (call,) = channels.calls
        assert (call.factor[:, 1:] == call.factor[:, 1:2]).all()
        assert (call.factor[:, 1] == 0).sum(-1).tolist() == [3, 3, 3]
        (call,) = sites.calls
        assert call.factor.shape == (3, 17, 1)
        assert (call.factor == 0).sum((1, 2)).tolist() == [8, 8, 8]
        for spy in (channels, sites):
            assert (spy.calls[0].factor[:, 0] == 1).all()

    def test_the_papers_masks_are_the_default(self):
        coop = cooperative()
        assert isinstance(coop.image_transform, OneOf)
        assert coop.image_transform is coop.shape_transform

    def test_both_codes_of_a_wrapped_model_are_the_bottleneck(self):
        coop = cooperative()
        assert "image_code=bottleneck, shape_code=bottleneck, image_range=(0.0, 1.0), hard=HardExamples()" in repr(coop)
        assert coop.image_code.name == "bottleneck"
        assert coop.shape_codes == [coop.image_code]
        assert coop.image_code.stride == (4, 4)

    def test_ftn_brings_its_codes_and_its_image_decoder(self):
        coop, *_ = case("ftn")
        assert (coop.image_code.name, coop.shape_codes[0].name) == ("encoder", "decoupler")
        assert coop.reconstruction is coop.model.image_decoder
        assert coop.reconstruction_head is None
        names = [name for name, _ in coop.named_parameters()]
        assert len(names) == len({id(p) for p in coop.parameters()})
        assert not [name for name in names if "reconstruction" in name]

    def test_a_layer_given_overrides_what_the_ftn_declares(self):
        torch.manual_seed(0)
        coop = cooperative(FTN(num_classes=3, width=2, depth=2), codes="decoupler")
        assert coop.image_code == coop.shape_codes[0]
        assert isinstance(coop.reconstruction_head, ReconstructionHead)

    def test_heads_are_sized_by_the_example(self):
        images = torch.rand(1, 2, 96, 96)
        model = UNet(in_channels=2)
        coop = CooperativeModel(model, num_classes=3, example=images, codes="bottleneck", image_range=(-1, 1))
        assert coop.reconstruction.stride == (4, 4)
        assert coop.reconstruction.image_range == (-1, 1)
        assert coop.reconstruction(torch.rand(1, 16, 24, 24), (96, 96)).shape == (1, 2, 96, 96)
        assert len(coop.shape_prior.encoder.blocks) == 3  # a grid of 12 x 12, as in the paper
        doubled = CooperativeModel(model.double(), num_classes=3, example=images.double(), codes="bottleneck")
        assert {parameter.dtype for parameter in doubled.parameters()} == {torch.float64}

    def test_noise(self):
        seen = []
        coop = cooperative(hard=HardExamples(noise=0.5))
        coop.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        images, labels = batch(size=(64, 64))
        coop(images, labels, generator=seeded())
        noisy = seen[0]
        assert noisy.min() == 0
        assert noisy.max() == 1
        inside = (noisy > 0) & (noisy < 1)
        assert inside.float().mean() < 0.9

        seen.clear()
        coop = cooperative(image_range=None, hard=HardExamples(noise=0.1))
        coop.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        coop(10 * images, labels)  # the first time, the model is looked over as well
        seen.clear()
        coop(10 * images, labels)
        added = seen[0] - 10 * images
        assert (added.std() / (10 * images).std()).item() == pytest.approx(0.1, rel=0.05)

        seen.clear()
        coop.hard = HardExamples(noise=lambda images, generator: images.flip(0))
        coop(images, labels)
        assert torch.equal(seen[0], images.flip(0))

    def test_same_generator_same_step_and_the_global_stream_is_left_alone(self):
        coop, images, labels = case("ftn")
        before = torch.get_rng_state()
        first, second, third = (coop(images, labels, generator=seeded(seed)) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first.loss, second.loss)
        assert not torch.equal(first.hard_images, third.hard_images)


CHECKPOINTED = {
    "blocks": ("model.stem", "model.up", "model.top", "shape_prior.encoder", "reconstruction_head"),
    "around the code": ("model",),
    "the code itself": ("model.bottleneck",),
}


class TestCheckpointed:
    @pytest.mark.parametrize("names", CHECKPOINTED.values(), ids=CHECKPOINTED)
    @pytest.mark.parametrize("way", ["one backward", "branch by branch", "stage by stage"])
    def test_a_step_is_the_same_to_the_last_bit(self, names, way):
        outcomes = []
        for checkpointed in ((), names):
            coop, images, labels = case("unet")
            coop = cooperative(dtype=torch.float64, hard=HardExamples(frozen_norms=("model.top",)))
            coop.checkpointed = checkpointed
            torch.manual_seed(1)
            if way == "one backward":
                output = coop(images, labels, generator=seeded())
                output.loss.backward()
            else:
                wrapped = Wrapper(coop) if way == "stage by stage" else coop
                output = cooperative_backward(wrapped, images, labels, generator=seeded())
            outcomes.append((output.losses, gradients(coop), dict(coop.named_buffers())))
            assert all("forward" not in vars(module) for module in coop.modules())
        torch.testing.assert_close(*outcomes, rtol=0, atol=0)

    def test_less_is_kept_for_the_backward_pass(self):
        coop, images, labels = case("unet")
        plain = bytes_kept(lambda: coop(images, labels))
        coop.checkpointed = ("model.stem", "model.top", "shape_prior", "reconstruction_head")
        assert bytes_kept(lambda: coop(images, labels)) < 0.5 * plain

    def test_a_copy_and_a_pickle_recompute_their_own(self):
        coop = cooperative()
        coop.checkpointed = ("model.stem", "shape_prior")
        images, labels = batch()
        for other in (copy.deepcopy(coop), pickle.loads(pickle.dumps(coop))):
            cooperative_backward(other, images, labels)
            assert all(gradient is None for gradient in gradients(coop).values())
            assert all(gradient is not None for gradient in gradients(other).values())

    def test_names_that_cannot_be_checkpointed(self):
        with pytest.raises(ValueError, match=r"checkpointed must name submodules, .* got \['model.stemm'\]"):
            cooperative().checkpointed = ("model.stemm",)
        with pytest.raises(ValueError, match=r"checkpointed must name submodules, .* got \['model.stemm'\]"):
            cooperative().checkpointed = ("model.stemm",)
        with pytest.raises(ValueError, match=r"none inside another; got 'model' and 'model.stem'"):
            cooperative().checkpointed = ("model.stem", "model")
        with pytest.raises(ValueError, match=r"'image_transform.transforms' only holds some: name those"):
            cooperative().checkpointed = ("image_transform.transforms",)


class TestShortcuts:
    def test_only_a_share_of_the_batch_is_turned_into_hard_examples(self):
        coop, images, labels = case("unet")
        torch.manual_seed(1)
        whole = coop(images, labels, generator=seeded())
        coop.hard = HardExamples(fraction=0.6)
        torch.manual_seed(1)
        part = coop(images, labels, generator=seeded())
        samples = part.hard_samples
        assert whole.hard_samples is None
        assert part.hard_images.shape == (2, 1, 16, 20)
        assert torch.equal(part.hard_segmentation, whole.hard_segmentation[samples])
        for name in STANDARD:
            torch.testing.assert_close(part.losses[name], whole.losses[name], rtol=0, atol=0)
        torch.manual_seed(2)
        hard = coop(images, labels, stage=HardStage(part.hard_images, part.hard_segmentation, samples))
        torch.manual_seed(2)
        examples = part.hard_images, part.hard_segmentation
        by_hand = coop(images[samples], labels[samples], stage=HardStage(*examples))
        torch.testing.assert_close(hard.losses, by_hand.losses, rtol=0, atol=0)

    def test_the_samples_are_drawn_from_the_generator(self):
        coop, images, labels = case("ftn", torch.float32)
        coop.hard = HardExamples(fraction=0.3)
        drawn = [int(coop(images, labels, generator=seeded(seed)).hard_samples) for seed in range(12)]
        assert drawn == [int(coop(images, labels, generator=seeded(seed)).hard_samples) for seed in range(12)]
        assert {*drawn} == {0, 1, 2}

    def test_hard_examples_at_a_lower_resolution_are_compared_with_the_images_and_labels_there(self):
        coop, images, labels = case("unet")
        coop.model.dropout.p = 0
        whole = coop(images, labels, generator=seeded())
        coop.hard = HardExamples(scale=0.5)
        small = coop(images, labels, generator=seeded())
        size = small.hard_images.shape[2:]
        assert size == (8, 8)  # whole sites at stride 4
        torch.testing.assert_close(small.hard_images, F.adaptive_avg_pool2d(whole.hard_images, size))
        torch.testing.assert_close(small.hard_segmentation, F.adaptive_avg_pool2d(whole.hard_segmentation, size))
        nearest = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
        examples = small.hard_images, small.hard_segmentation
        by_hand = coop(F.adaptive_avg_pool2d(images, size), nearest, stage=HardStage(*examples))
        torch.testing.assert_close({name: small.losses[name] for name in HARD}, by_hand.losses, rtol=0, atol=0)

    def test_a_model_of_a_fixed_size_is_refused_at_once(self):
        class Fixed(UNet):
            def forward(self, images):
                if images.shape[2:] != (16, 20):
                    raise ValueError("Wrong size.")
                return super().forward(images)

        with pytest.raises(ValueError, match=r"scale=0.5 needs .* size \(8, 8\); Fixed raised ValueError: Wrong"):
            cooperative(Fixed(), codes="bottleneck", hard=HardExamples(scale=0.5))

    def test_between_two_saliencies_masks_of_the_same_kind_fall_anywhere(self, monkeypatch):
        counted = []
        original = latentaug.cooperative.eager_losses.latent_saliency
        monkeypatch.setattr(
            latentaug.cooperative.eager_losses, "latent_saliency", lambda *args: (counted.append(1), original(*args))[1]
        )
        spy = Spy(TargetedChannelMask(0.5, annealing=0))
        coop = cooperative(augment=spy, hard=HardExamples(saliency_every=3, noise=0))
        images, labels = batch()
        asked = []
        for seed in range(6):
            counted.clear()
            coop(images, labels, generator=seeded(seed))
            asked.append(len(counted))
        assert asked == [2, 0, 0, 2, 0, 0]
        assert all((call.factor == 0).sum(1).flatten().tolist() == [8, 8, 8] for call in spy.calls)
        factors = torch.stack([call.factor for call in spy.calls])
        assert len(factors[2:6].flatten(1).unique(dim=0)) == 4

    def test_the_count_of_batches_goes_on_from_a_state_dict(self):
        coop, images, labels = case("shortcuts")
        for _ in range(3):
            coop(images, labels, generator=seeded())
        coop(images, labels, stage="standard")
        again, *_ = case("shortcuts")
        again.load_state_dict(coop.state_dict())
        copied = copy.deepcopy(coop)
        expected = [coop.saliency_schedule() for _ in range(4)]
        assert expected == [False, True, False, True]
        assert [again.saliency_schedule() for _ in range(4)] == expected
        assert [copied.saliency_schedule() for _ in range(4)] == expected
        assert not [key for key in cooperative().state_dict() if "schedule" in key]

    @pytest.mark.parametrize("value", [0, 1.5, True, "2"])
    def test_other_periods_than_whole_numbers_of_batches(self, value):
        with pytest.raises(ValueError, match="saliency_every must be a whole number of batches, 1 or more; got"):
            cooperative(hard=HardExamples(saliency_every=value))

    @pytest.mark.parametrize("name", ["fraction", "scale"])
    def test_shares_outside_their_range(self, name):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; got 1.5"):
            HardExamples(**{name: 1.5})
        with pytest.raises(ValueError, match=rf"{name} must be above 0; got 0. To train without hard examples"):
            HardExamples(**{name: 0})

    def test_options_are_shown_where_they_are_on(self):
        assert "hard_" not in repr(cooperative())
        assert "hard=HardExamples(fraction=0.5, scale=0.25)" in repr(
            cooperative(hard=HardExamples(fraction=0.5, scale=0.25))
        )
        assert "(saliency_schedule): Every(4)" in repr(cooperative(hard=HardExamples(saliency_every=4)))


class TestLabels:
    def test_ignored_pixels_change_nothing(self):
        coop = cooperative(ignore_index=255, hard=QUIET, augment=TargetedChannelMask(0.5, 0))
        coop.model.dropout.p = 0
        images, labels = batch()
        labels[:, :8] = 255
        seen = []
        coop.shape_prior.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        output = coop(images, labels)
        hot = next(given for given in seen if not given.requires_grad)
        assert not hot[:, :, :8].any()
        assert torch.equal(hot[:, :, 8:].sum(1), torch.ones(3, 8, 20))
        valid = F.cross_entropy(output.logits[:, :, 8:], labels[:, 8:])
        torch.testing.assert_close(output.losses["segmentation"], valid)

    def test_no_valid_pixel_gives_finite_gradients(self):
        coop = cooperative(augment=TargetedChannelMask())
        images, labels = batch()
        with pytest.warns(UserWarning, match="all zero or not finite"):
            output = cooperative_backward(coop, images, torch.full_like(labels, -100))
        assert all(term == 0 for name, term in output.losses.items() if "reconstruction" not in name)
        assert all(gradient.isfinite().all() for gradient in gradients(coop).values() if gradient is not None)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
    def test_a_channel_axis_and_other_types_are_the_same_labels(self, dtype):
        coop, images, labels = case("ftn", torch.float32)
        expected = coop(images, labels, generator=seeded()).loss
        again = coop(images, labels.unsqueeze(1).to(dtype), generator=seeded()).loss
        torch.testing.assert_close(again, expected)

    def test_your_own_loss_gets_logits_and_labels(self):
        calls = []

        def loss(logits, labels):
            calls.append((tuple(logits.shape), tuple(labels.shape), labels.dtype))
            return segmentation_loss(logits, labels)

        cooperative(loss=loss)(*batch())
        assert calls == [((3, 3, 16, 20), (3, 16, 20), torch.int64)] * 6

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: {"out": x, "aux": x},
            lambda x: SimpleNamespace(logits=x),
            lambda x: (x, None),
            lambda x: [x, x[..., ::2, ::2]],
            lambda x: {"logits": [x]},
            lambda x: {"masks": x, "features": x[:, :1]},
            lambda x: torch.stack([x, x * 2], 1),
        ],
    )
    def test_logits_are_read_from_what_libraries_return(self, wrap):
        class Wrapped(UNet):
            def forward(self, images):
                return wrap(super().forward(images))

        torch.manual_seed(0)
        coop = cooperative(Wrapped(), codes="bottleneck").eval()
        images, labels = batch()
        torch.testing.assert_close(coop(images, labels).logits, UNet.forward(coop.model, images))

    def test_small_logits_are_interpolated_to_the_labels(self):
        class Coarse(UNet):
            def forward(self, images):
                return F.avg_pool2d(super().forward(images), 2)

        torch.manual_seed(0)
        coop = cooperative(Coarse(), codes="bottleneck")
        images, labels = batch()
        output = coop(images, labels)
        assert output.logits.shape == output.hard_segmentation.shape == (3, 3, 16, 20)
        coop.eval()
        expected = F.interpolate(coop(images), size=(16, 20), mode="bilinear")
        torch.testing.assert_close(coop(images, labels).logits, expected)
        assert coop.predict(images).shape == labels.shape


class Supervised(UNet):
    """Returns logits of the first level, of a coarser one, and last those that passed through the bottleneck."""

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(4, 3, 1)
        self.coarse = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        stem = self.stem(images)
        return [self.early(stem), self.coarse(self.down(stem)), super().forward(images)]


class TestDeepSupervision:
    def test_all_outputs_enter_the_segmentation_losses_by_their_resolution(self):
        torch.manual_seed(0)
        coop = cooperative(Supervised(), codes="bottleneck", hard=QUIET).eval()
        images, labels = batch()
        early, coarse, full = coop(images)
        expected = (
            segmentation_loss(early, labels) / 2.5
            + segmentation_loss(F.interpolate(coarse, size=(16, 20), mode="bilinear"), labels) / 5
            + segmentation_loss(full, labels) / 2.5
        )
        torch.testing.assert_close(coop(images, labels).losses["segmentation"], expected)

    def test_every_head_learns_from_the_hard_images_too(self):
        torch.manual_seed(0)
        coop = cooperative(Supervised(), codes="bottleneck")
        output = coop(*batch())
        heads = [coop.model.early.weight, coop.model.coarse.weight, coop.model.final.weight]
        gradients = torch.autograd.grad(output.losses["hard_image_segmentation"], heads)
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)

    def test_the_segmentation_is_the_finest_output_that_passes_through_the_code(self):
        torch.manual_seed(0)
        coop = cooperative(Supervised(), codes="bottleneck").eval()
        images, labels = batch()
        assert torch.equal(coop(images, labels).logits, coop(images)[2])
        assert torch.equal(coop.predict(images, refine=0), coop(images)[2].argmax(1))
        hard = coop.train()(images, labels)
        assert not torch.equal(hard.hard_segmentation, hard.logits)

    def test_a_reader_of_your_own_may_leave_outputs_out(self):
        torch.manual_seed(0)
        coop = cooperative(Supervised(), codes="bottleneck", logits=lambda outputs: outputs[1:]).eval()
        images, labels = batch()
        assert torch.equal(coop(images, labels).logits, coop(images)[2])
        assert len(coop.reader.read(coop(images), (16, 20)).outputs) == 2


class TestModes:
    def test_eval_mode_without_labels_is_the_model(self):
        class Named(UNet):
            def forward(self, images):
                return {"out": super().forward(images), "name": "mine"}

        torch.manual_seed(0)
        coop = cooperative(Named(), codes="bottleneck").eval()
        images, _ = batch()
        output = coop(images)
        assert output["name"] == "mine"
        assert torch.equal(output["out"], coop.model(images)["out"])

    def test_eval_mode_with_labels_gives_the_standard_terms(self):
        coop = cooperative(hard=HardExamples(noise=0.5))
        images, labels = batch()
        coop(images, labels)
        buffers = {name: buffer.clone() for name, buffer in coop.named_buffers()}
        coop.eval()
        with torch.no_grad():
            first, second = coop(images, labels), coop(images, labels)
        assert list(first.losses) == STANDARD
        assert torch.equal(first.loss, second.loss)
        assert first.hard_images is first.hard_segmentation is None
        torch.testing.assert_close(first.losses["segmentation"], segmentation_loss(coop(images), labels))
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in coop.named_buffers())

    def test_refine_feeds_each_result_back(self):
        coop = cooperative().eval()
        logits = torch.randn(2, 3, 16, 20)
        assert torch.equal(coop.refine(logits, steps=0), logits)
        once = coop.shape_prior((logits / 2).softmax(1))
        torch.testing.assert_close(coop.refine(logits), once)
        torch.testing.assert_close(coop.refine(logits, steps=2), coop.shape_prior((once / 2).softmax(1)))

    @pytest.mark.parametrize("num_classes", [1, 3])
    def test_predict(self, num_classes):
        coop = cooperative(num_classes=num_classes)
        coop.model.stem.eval()
        images, _ = batch()
        modes = [module.training for module in coop.modules()]
        buffers = [buffer.clone() for buffer in coop.buffers()]
        labels, refined = coop.predict(images, refine=0), coop.predict(images, refine=2)
        assert modes == [module.training for module in coop.modules()]
        assert all(map(torch.equal, buffers, coop.buffers()))
        coop.eval()
        for found, logits in ((labels, coop(images)), (refined, coop.refine(coop(images), steps=2))):
            assert torch.equal(found, logits.argmax(1) if num_classes > 1 else (logits[:, 0] > 0).long())
            assert found.dtype == torch.int64

    def test_the_users_model_is_left_as_it_was(self):
        torch.manual_seed(0)
        model = UNet()
        keys = list(model.state_dict())
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        coop = cooperative(model)
        cooperative_backward(coop, *batch())
        assert coop.model is model
        assert list(model.state_dict()) == keys
        for name, module in model.named_modules():
            assert set(vars(module)) == attributes[name], name
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert module.training

    def test_copies_and_pickles_work_on_their_own(self):
        coop, images, labels = case("ftn")
        coop(images, labels)
        for other in (copy.deepcopy(coop), pickle.loads(pickle.dumps(coop))):
            assert other.model is not coop.model
            assert other.reconstruction is other.model.image_decoder
            before = [parameter.clone() for parameter in coop.parameters()]
            expected = coop(images, labels, generator=seeded()).loss
            torch.testing.assert_close(other(images, labels, generator=seeded()).loss, expected)
            torch.optim.SGD(other.parameters(), lr=0.1).zero_grad()
            cooperative_backward(other, images, labels)
            assert all(parameter.grad is None for parameter in coop.parameters())
            assert all(map(torch.equal, before, coop.parameters()))

    def test_an_error_in_the_hard_stage_leaves_no_trace(self):
        def fail(logits, labels):
            raise ArithmeticError("no loss today")

        coop = cooperative(loss=fail, hard=HardExamples(frozen_norms=("model", "shape_prior")))
        images, labels = batch()
        kept = {name: id(parameter) for name, parameter in coop.named_parameters()}
        statistics = {name: buffer.clone() for name, buffer in coop.named_buffers()}

        examples = (images, torch.zeros(3, 3, 16, 20))
        with pytest.raises(ArithmeticError, match="no loss today"):
            coop(images, labels, stage=HardStage(*examples))
        assert {name: id(parameter) for name, parameter in coop.named_parameters()} == kept
        assert all(torch.equal(buffer, statistics[name]) for name, buffer in coop.named_buffers())
        assert all(m.track_running_stats for m in coop.modules() if isinstance(m, nn.BatchNorm2d))
        assert all("forward" not in vars(module) for module in coop.modules())


def parts_fill_the_same_gradients(coop, wrap):
    images, labels = batch(dtype=torch.float64)
    other = copy.deepcopy(coop)
    torch.manual_seed(1)
    coop(images, labels, generator=seeded()).loss.backward()
    torch.manual_seed(1)
    cooperative_backward(wrap(other), images, labels, generator=seeded())
    for name, gradient in gradients(coop).items():
        torch.testing.assert_close(gradients(other)[name], gradient, rtol=1e-10, atol=1e-14)


class TestHardCode:
    """The loss on what masked shape codes decode to, which the paper doesn't have."""

    def test_it_is_the_loss_of_the_hard_segmentation_and_reaches_all_of_the_model(self):
        coop = cooperative(weights={"hard_code_segmentation": 0.5})
        images, labels = batch()
        output = coop(images, labels, generator=seeded())
        loss = output.losses["hard_code_segmentation"]
        torch.testing.assert_close(loss.detach(), 0.5 * segmentation_loss(output.hard_segmentation, labels))
        assert not output.hard_segmentation.requires_grad
        torch.testing.assert_close(output.loss, sum(output.losses.values()))
        reached = torch.autograd.grad(loss, list(coop.model.parameters()), retain_graph=True, allow_unused=True)
        assert all(gradient is not None for gradient in reached)

    def test_without_a_weight_it_is_not_computed_and_changes_nothing_else(self):
        images, labels = batch(dtype=torch.float64)
        with_it, without = (
            cooperative(dtype=torch.float64, weights=weights) for weights in ({"hard_code_segmentation": 1}, None)
        )
        with_it.model.dropout.p = without.model.dropout.p = 0
        one, other = (cooperative_backward(coop, images, labels, generator=seeded()) for coop in (with_it, without))
        extra = one.losses.pop("hard_code_segmentation")
        assert list(other.losses) == STANDARD + HARD
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.loss - extra, other.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(dict(with_it.named_buffers()), dict(without.named_buffers()), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("layer", ["bottleneck", ["down", "bottleneck"]])
    @pytest.mark.parametrize("wrap", [nn.Identity(), Wrapper], ids=["branch by branch", "stage by stage"])
    def test_backpropagating_in_parts_fills_the_same_gradients(self, wrap, layer):
        coop = cooperative(dtype=torch.float64, weights={"hard_code_segmentation": 1}, codes=layer)
        parts_fill_the_same_gradients(coop, wrap)


class TestDetails:
    def test_are_kept_unless_the_model_declares_its_image_code(self):
        ftn = FTN(num_classes=3, width=2, depth=2)
        assert cooperative().maker.residual == RESIDUAL == (0, 1)
        assert cooperative(ftn).maker.residual == 0
        assert cooperative(ftn, codes="decoupler").maker.residual == RESIDUAL
        assert cooperative(hard=HardExamples(residual=0)).maker.residual == 0
        assert cooperative(ftn, hard=HardExamples(residual=(0.5, 1))).maker.residual == (0.5, 1)

    @pytest.mark.parametrize("image_range", [(0.0, 1.0), (-2.0, 3.0), None])
    @pytest.mark.parametrize("details", [0.25, 1.0])
    def test_a_share_of_what_an_image_has_beyond_its_reconstruction_is_added(self, details, image_range):
        coop = cooperative(dtype=torch.float64, image_range=image_range, hard=HardExamples(noise=0, residual=details))
        coop.model.dropout.p = 0
        twin = copy.deepcopy(coop)
        twin.hard = HardExamples(noise=0, residual=0)
        images, labels = batch(dtype=torch.float64)
        decoded = twin(images, labels, generator=seeded()).hard_images
        code = []
        twin.model.get_submodule(twin.image_code.name).register_forward_hook(lambda *passed: code.append(passed[-1]))
        twin.model(images)
        expected = decoded + details * (images - twin.reconstruction(code[0], images.shape[2:]).detach())
        if image_range is not None:
            expected = expected.clamp(*image_range)
        output = coop(images, labels, generator=seeded())
        assert not output.hard_images.requires_grad
        torch.testing.assert_close(output.hard_images, expected, rtol=1e-10, atol=1e-12)
        assert not torch.equal(output.hard_images, images)

    def test_of_a_pair_each_sample_has_a_share_of_its_own(self):
        images, labels = batch(dtype=torch.float64)
        coop = cooperative(
            dtype=torch.float64,
            hard=HardExamples(residual=(0.25, 0.75)),
            augment=TargetedChannelMask(0.0),
            image_range=None,
        )
        hard, again, other = (coop.explain(images, labels, generator=seeded(seed)).hard_images for seed in (0, 0, 1))
        coop.hard = HardExamples(residual=0)
        reconstructed = coop.explain(images, labels, generator=seeded()).hard_images
        shares = ((hard - reconstructed) / (images - reconstructed)).flatten(1)
        torch.testing.assert_close(shares, shares[:, :1].expand_as(shares), rtol=1e-6, atol=0)
        assert all(0.25 <= share <= 0.75 for share in shares[:, 0].tolist())
        assert len(set(shares[:, 0].tolist())) == len(images)
        assert torch.equal(hard, again)
        assert not torch.equal(hard, other)

    def test_where_nothing_is_masked_all_details_make_the_image(self):
        images, labels = batch()
        coop = cooperative(hard=HardExamples(residual=1.0), augment=TargetedChannelMask(0.0))
        assert torch.equal(coop(images, labels, generator=seeded()).hard_images, images)
        assert torch.equal(coop.explain(images, labels, generator=seeded()).hard_images, images)

    @pytest.mark.parametrize("details", [1.0, (0.0, 1.0)])
    @pytest.mark.parametrize("wrap", [nn.Identity(), Wrapper], ids=["branch by branch", "stage by stage"])
    def test_backpropagating_in_parts_fills_the_same_gradients(self, wrap, details):
        coop = cooperative(dtype=torch.float64, hard=HardExamples(residual=details, fraction=0.5))
        parts_fill_the_same_gradients(coop, wrap)


class TestHardNormFrozen:
    def test_only_the_named_networks_learn_no_scale_and_shift_from_hard_examples(self):
        coop = cooperative(hard=HardExamples(frozen_norms=("model.up", "shape_prior")))
        images, labels = batch()
        standard = coop(images, labels, stage="first")
        examples = standard.hard_images, standard.hard_segmentation
        hard = coop(images, labels, stage=HardStage(*examples))
        assert list(hard.losses) == HARD
        names, parameters = zip(*coop.named_parameters(), strict=True)
        reached = dict(zip(names, torch.autograd.grad(hard.loss, parameters, allow_unused=True), strict=True))
        norms = {
            f"{path}.{kind}"
            for root in ("model.up", "shape_prior")
            for path, module in coop.named_modules()
            if path.startswith(root) and isinstance(module, nn.BatchNorm2d)
            for kind in ("weight", "bias")
        }
        assert {name for name, gradient in reached.items() if gradient is None} == norms


class TestRefusals:
    def test_train_mode_needs_labels(self):
        with pytest.raises(ValueError, match=r"needs `labels` in train mode; got None. .* call .eval\(\)"):
            cooperative()(batch()[0])

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_train_mode_needs_gradients(self, context):
        coop, images, labels = cooperative(), *batch()
        with context(), pytest.raises(RuntimeError, match=r"gradients are disabled here. Leave torch.no_grad"):
            coop(images, labels)

    def test_it_needs_train_mode(self):
        coop = cooperative().eval()
        with pytest.raises(RuntimeError, match=r"needs the model in train mode; call .train\(\)"):
            cooperative_backward(coop, *batch())
        assert all(parameter.grad is None for parameter in coop.parameters())

    def test_unknown_stage(self):
        with pytest.raises(
            ValueError, match="stage must be one of 'all', 'standard', 'first' or a HardStage; got 'hrad'"
        ):
            cooperative()(*batch(), stage="hrad")

    def test_negative_refinement(self):
        with pytest.raises(ValueError, match="needs 0 or more steps of refinement; got -1"):
            cooperative().predict(batch()[0], refine=-1)

    def test_images_outside_their_range(self):
        coop = cooperative()
        images, labels = batch()
        with pytest.raises(
            ValueError, match=r"image_range=\(0, 1\); got values from .* None for images without bounds"
        ):
            coop(10 * images - 5, labels)
        with pytest.raises(ValueError, match="got values from nan to nan"):
            coop(images * float("nan"), labels)
        coop(images + 1e-4, labels)
        coop(images + 1, labels)  # only the first good batch is looked at, so that no step waits for the device

    def test_labels_outside_the_classes(self):
        images, labels = batch()
        labels[0, 0, 0] = 255
        with pytest.raises(ValueError, match=r"needs labels in 0 … 2 or ignore_index=-100; got 255"):
            cooperative()(images, labels)
        with pytest.raises(ValueError, match=r"needs labels in 0 … 1 or ignore_index=-100; got 255"):
            cooperative(num_classes=1)(images, labels)

    def test_labels_between_classes(self):
        images, labels = batch()
        with pytest.raises(ValueError, match=r"needs labels in 0 … 2 or ignore_index=-100; got 0\.5"):
            cooperative()(images, labels / 2)

    @pytest.mark.parametrize("masker", ["paper", TargetedChannelMask, (paper_masks(),), (paper_masks(), None)])
    def test_other_things_than_maskers(self, masker):
        with pytest.raises(
            TypeError, match=r"augment must be a transform, or a pair of them .* got .* Pass an instance"
        ):
            cooperative(augment=masker)

    def test_one_hot_labels(self):
        images, labels = batch()
        with pytest.raises(ValueError, match=r"needs labels \[B, \*S\] .* got \(3, 3, 16, 20\). Pass class indices"):
            cooperative()(images, one_hot(labels, 3))

    def test_logits_of_another_number_of_classes(self):
        with pytest.raises(
            ValueError, match=r"needs logits \[B, 3, \*S\] .* got \(3, 4, 16, 20\). Check `num_classes`"
        ):
            cooperative(UNet(num_classes=4))

    def test_no_logits_in_the_output(self):
        class Odd(UNet):
            def forward(self, images):
                return {"masks": super().forward(images).movedim(1, -1)}

        torch.manual_seed(0)
        with pytest.raises(ValueError, match=r"needs logits .* got \(3, 16, 20, 3\). .* pass logits="):
            cooperative(Odd(), codes="bottleneck")
        coop = cooperative(Odd(), codes="bottleneck", logits=lambda output: output["masks"].movedim(-1, 1))
        assert coop(*batch()).loss.isfinite()

    def test_unknown_weights(self):
        with pytest.raises(ValueError, match="has no loss total to weigh; it has segmentation, reconstruction"):
            cooperative(weights={"total": 1.0})

    def test_no_share_of_details(self):
        with pytest.raises(ValueError, match=r"residual must be in \[0, 1\]; got 2"):
            cooperative(hard=HardExamples(residual=2))
        with pytest.raises(TypeError, match="residual must be a number or a pair"):
            cooperative(hard=HardExamples(residual="all"))

    def test_unknown_networks_to_freeze(self):
        with pytest.raises(ValueError, match="frozen_norms must name submodules"):
            cooperative(hard=HardExamples(frozen_norms=("model.encodr",)))

    def test_image_decoder_of_another_range(self):
        with pytest.raises(ValueError, match=r"image decoder of image_range=None; got one of \(0.0, 1.0\)"):
            cooperative(FTN(num_classes=3, width=2, depth=2), image_range=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_after_the_first_makes_the_host_wait():
    coop = cooperative(FTN(num_classes=3, width=2, depth=2).cuda(), shape_prior=small_prior().cuda())
    images, labels = (tensor.cuda() for tensor in batch())
    cooperative_backward(coop, images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            cooperative_backward(coop, images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestPlainStage:
    def test_plain_is_the_standard_stage_without_hard_examples(self):
        coop, images, labels = case("unet")
        other = copy.deepcopy(coop)
        torch.manual_seed(1)
        plain = standard_backward(other, images, labels, generator=seeded())
        torch.manual_seed(1)
        standard = coop(images, labels, generator=seeded(), stage="first")
        standard.loss.backward()

        assert plain.hard_images is None
        assert plain.hard_segmentation is None
        torch.testing.assert_close(plain.losses, standard.losses, rtol=0, atol=0)
        for name, gradient in gradients(coop).items():
            torch.testing.assert_close(gradients(other)[name], gradient, rtol=1e-10, atol=1e-14)

    def test_plain_draws_no_mask_and_decodes_nothing(self, monkeypatch):
        coop, images, labels = case("unet")
        monkeypatch.setattr(coop.reconstruction.decoder, "forward", counted := Counted(coop.reconstruction.decoder))
        coop(images, labels, stage="standard")
        assert counted.calls == 1
        coop(images, labels, stage="first")
        assert counted.calls == 3


class Counted:
    def __init__(self, module):
        self.forward, self.calls = module.forward, 0

    def __call__(self, *args):
        self.calls += 1
        return self.forward(*args)


class TestExplain:
    @pytest.mark.parametrize("name", CASES)
    def test_every_step_of_the_making_of_hard_examples(self, name):
        coop, images, labels = case(name)
        before = copy.deepcopy(coop.state_dict())
        shown = coop.explain(images, labels, generator=seeded())

        assert shown.hard_images.shape == images.shape
        assert shown.hard_segmentation.shape == shown.refined.shape == shown.logits.shape
        assert shown.image_saliency.shape[1] == shown.image_factor.shape[1] or shown.image_factor.shape[1] == 1
        assert shown.shape_saliency.abs().max() > 0
        assert coop.training
        assert all(parameter.grad is None for parameter in coop.parameters())
        for key, value in coop.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)

    def test_without_a_mask_the_hard_segmentation_is_the_prediction(self):
        coop = cooperative(augment=RandomChannelMask(0.0), dtype=torch.float64)
        shown = coop.explain(*batch(dtype=torch.float64))
        torch.testing.assert_close(shown.hard_segmentation, shown.logits, rtol=1e-12, atol=1e-12)
        assert shown.shape_factor.eq(1).all()
