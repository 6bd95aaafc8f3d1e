"""The maskers mask exactly what the authors' released code masks.

The golden masks come from a decoder, a loss and a code that are all in the file, so the saliency is computed here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.augment.masks import LatentMask, RandomChannelMask, TargetedChannelMask, TargetedSpatialMask, top_mask

Golden = Callable[[str], dict[str, Any]]
MASKERS = {"channel": TargetedChannelMask, "spatial": TargetedSpatialMask}


@pytest.fixture(params=MASKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def arrays(golden: Golden, kind: str) -> dict[str, Tensor]:
    return golden(f"masks_{kind}.npz")


@pytest.fixture
def settings(golden: Golden, kind: str) -> dict[str, Any]:
    return golden(f"masks_{kind}.json")


def decoder_of(case: dict[str, Any], arrays: dict[str, Tensor]) -> nn.Sequential:
    """The small decoder of a case, with its golden weights."""
    prefix = f"{case['case']}__dec."
    channels, hidden, out = case["shape"][1], case["dec_hidden"], case["dec_out"]
    enlarge = [nn.Upsample(scale_factor=2)] if case["dec_upsample2_before_last_conv"] else []
    decoder = nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1), nn.Tanh(), *enlarge, nn.Conv2d(hidden, out, 3, padding=1)
    )
    decoder.load_state_dict({key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)})
    return decoder.double()


def loss_of(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """The scalar loss of a case: cross entropy, mean square error or correlation."""
    if kind == "ce":
        return F.cross_entropy(output, target)
    if not target.is_floating_point():
        target = F.one_hot(target, output.shape[1]).movedim(-1, 1).to(output)
    return F.mse_loss(output, target) if kind == "mse" else (output * target).mean()


def saliency_of(loss: str, decode: Callable[[Tensor], Tensor], latent: Tensor, target: Tensor) -> Tensor:
    """Compute in float64, so that it is the same on every machine; the golden saliency is float32."""
    code = latent.double().requires_grad_()
    target = target.double() if target.is_floating_point() else target
    return torch.autograd.grad(loss_of(loss, decode(code), target), code)[0]


def cases_with_saliency(
    settings: dict[str, Any], arrays: dict[str, Tensor]
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, Tensor]]:
    """Each random case with its code, the golden saliency and the one computed here."""
    for case in settings["cases"]:
        latent, target, grad = (arrays[f"{case['case']}__{field}"] for field in ("latent", "target", "grad"))
        yield case, latent, grad, saliency_of(case["loss"], decoder_of(case, arrays), latent, target)


def test_saliency_is_the_golden_one(settings: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    for _, _, grad, computed in cases_with_saliency(settings, arrays):
        torch.testing.assert_close(computed, grad.double(), rtol=0, atol=5e-7 * grad.abs().max().item())


def test_hard_masks_are_equal(kind: str, settings: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    for case, latent, *saliencies in cases_with_saliency(settings, arrays):
        for percentile in case["percentiles"]:
            expected = arrays[f"{case['case']}__p{percentile:.4f}__mask_hard"]
            for saliency in saliencies:
                mask = MASKERS[kind](percentile, annealing=0)(latent, saliency)
                assert torch.equal(mask.factor, expected), (case["case"], percentile)


def test_soft_masks_damp_the_same_entries(
    kind: str, settings: dict[str, Any], arrays: dict[str, Tensor], generator: torch.Generator
) -> None:
    for case, latent, *saliencies in cases_with_saliency(settings, arrays):
        for percentile in case["percentiles"]:
            example = arrays[f"{case['case']}__p{percentile:.4f}__mask_soft_example"]
            for saliency in saliencies:
                factor = MASKERS[kind](percentile)(latent, saliency, generator=generator).factor
                assert torch.equal(factor != 1, example != 1), (case["case"], percentile)
                assert (factor[factor != 1] <= 0.5).all()


def test_a_drawn_percentile_masks_the_same_entries(
    kind: str, settings: dict[str, Any], arrays: dict[str, Tensor]
) -> None:
    dims = {"channel": (2, 3), "spatial": (1,)}[kind]
    for case, _, *saliencies in cases_with_saliency(settings, arrays):
        percentile = 0.5 * arrays[f"{case['case']}__rand_u"]
        expected = arrays[f"{case['case']}__rand__mask_hard"].flatten(1)
        for saliency in saliencies:
            score = saliency.mean(dims).flatten(1)
            assert torch.equal(top_mask(score, percentile, 0), expected), case["case"]


def test_the_masker_itself_draws_that_percentile(
    kind: str, settings: dict[str, Any], arrays: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, latent, *saliencies in cases_with_saliency(settings, arrays):
        uniform = arrays[f"{case['case']}__rand_u"].float()
        monkeypatch.setattr(torch, "rand", lambda *_, uniform=uniform, **__: uniform)
        for saliency in saliencies:
            factor = MASKERS[kind](annealing=0)(latent, saliency).factor
            assert torch.equal(factor, arrays[f"{case['case']}__rand__mask_hard"]), case["case"]


@pytest.mark.filterwarnings("ignore:.*saliency is all zero:UserWarning")  # tie_all_zero_grad is just that
def test_exact_ties_are_treated_alike(kind: str, settings: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    for name, tie in settings["ties"].items():
        fields = ("latent", "target", "grad", "dec.weight")
        latent, target, grad, weight = (arrays[f"tie_{name}__{field}"] for field in fields)
        computed = saliency_of(tie["loss"], partial(F.conv2d, weight=weight.double()), latent, target)
        assert torch.equal(computed, grad.double()), name
        for label, n_masked in tie["n_masked"].items():
            factor = MASKERS[kind](float(label[1:]), annealing=0)(latent, grad).factor
            assert torch.equal(factor, arrays[f"tie_{name}__{label}__mask_hard"]), (name, label)
            assert (factor == 0).flatten(1).sum(1).tolist() == n_masked


def test_a_percentile_of_one_masks_all_where_the_reference_raises(
    kind: str, settings: dict[str, Any], arrays: dict[str, Tensor]
) -> None:
    assert settings["percentile_1_0"] == "IndexError"
    for _, latent, grad, _ in cases_with_saliency(settings, arrays):
        assert not MASKERS[kind](1, annealing=0)(latent, grad).factor.any()


def test_magnitude_would_not_reproduce_the_golden_masks(
    kind: str, settings: dict[str, Any], arrays: dict[str, Tensor]
) -> None:
    same = [
        torch.equal(
            MASKERS[kind](0.25, 0, score="magnitude")(latent, grad).factor,
            arrays[f"{case['case']}__p0.2500__mask_hard"],
        )
        for case, latent, grad, _ in cases_with_saliency(settings, arrays)
    ]
    assert not all(same)


def test_dropout_multiplies_as_the_authors_does(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = golden("dropout.npz")
    kept, latent = arrays["kept_channel"], arrays["latent"]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.where(kept, 0.75, 0.25))  # kept where u >= p
    mask = RandomChannelMask(0.5)(latent)
    assert torch.equal(mask.factor, 2.0 * kept[:, :, None, None])
    assert torch.equal(mask.apply(latent), arrays["masked"])


def test_the_mask_the_authors_return_for_dropout_is_not_the_one_they_applied(golden: Golden) -> None:
    arrays = golden("dropout.npz")
    wrong = LatentMask(arrays["reference_returned_mask"]).apply(arrays["latent"])
    kept = arrays["kept_channel"]
    assert not torch.equal(wrong, arrays["masked"])
    assert not wrong[kept].any()  # they call every entry of a kept channel dropped
    assert arrays["masked"][kept].any()
