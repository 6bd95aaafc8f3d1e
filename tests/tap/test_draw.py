"""Changes that a tap samples: with the code's layout, its saliency, and the losses of its replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug import (
    FGSM,
    GIN,
    VAT,
    AdvStyle,
    Change,
    Compose,
    DropBlock,
    LatentMask,
    LatentTap,
    LatentTransform,
    ManifoldMixup,
    MaxStyle,
    MixStyle,
    OneOf,
    RandomApply,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    kl_divergence,
    latent_saliency,
)
from tests.models.handwritten.unets import FunctionalUNet
from tests.models.hostile.table import CASES
from tests.support.compare import close, gradients
from tests.support.mixing import FixedMixup
from tests.support.random_streams import random_state, seed_all

TRANSFORMS: dict[str, LatentTransform] = {
    "MixStyle": MixStyle(p=1),
    "DropBlock": DropBlock(0.3, 3),
    "GIN": GIN(),
    "RandomChannelMask": RandomChannelMask(),
    "TargetedChannelMask": TargetedChannelMask(),
    "TargetedSpatialMask": TargetedSpatialMask(score="harm"),
    "Compose": Compose([MixStyle(p=1), TargetedChannelMask(), GIN()]),
    "OneOf": OneOf([TargetedChannelMask(), MixStyle(p=1)]),
    "RandomApply": RandomApply(TargetedSpatialMask(), p=0.5),
    "ManifoldMixup": ManifoldMixup(),
    "FGSM": FGSM(steps=2),
    "AdvStyle": AdvStyle(),
    "MaxStyle": MaxStyle(p=1, steps=2),
}
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def unet() -> nn.Module:
    torch.manual_seed(0)
    return FunctionalUNet().double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 24, generator=generator, dtype=torch.float64)
    return images, torch.randint(2, (4, 16, 24), generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES, LABELS = batch()


def objective(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


class Asking(LatentTransform):
    """Ask for whatever a function says, and add one."""

    needs = ("loss_at",)

    def __init__(self, ask: Callable[[Tensor, Any], Any]) -> None:
        super().__init__()
        self.ask = ask

    def make_params(self, code: Tensor, context: Any) -> dict[str, Any]:
        return {"asked": self.ask(code, context)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code + 1


@EVERY_TRANSFORM
def test_a_replay_of_a_transform_is_one_of_what_it_draws(transform: LatentTransform) -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        change = tap.draw(transform, objective=objective, generator=seeded(2))
        assert isinstance(change, Change)
        drawn = tap.replay(change)
        at_once = tap.replay(transform, objective=objective, generator=seeded(2))
        assert torch.equal(drawn, at_once)
        assert close(gradients(model, drawn), gradients(model, at_once))
        assert torch.equal(tap.replay(change, full=True), drawn)
        if not change.whole_pass:
            assert torch.equal(tap.replay(change.apply(tap.code)), drawn)
            assert torch.equal(tap.replay(change.apply), drawn)


@EVERY_TRANSFORM
def test_what_is_drawn_is_what_a_plain_call_with_layout_and_saliency_gives(transform: LatentTransform) -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        loss = objective(model(IMAGES))
        saliency = latent_saliency(loss, tap.code)
        change = tap.draw(transform, objective=objective, generator=seeded(2))

        def loss_at(code: Tensor) -> Tensor:
            return objective(tap.replay(code, detach=True))

        expected = transform(tap.code, saliency, generator=seeded(2), loss_at=loss_at)
        assert torch.equal(change.apply(tap.code), expected.apply(tap.code))


def test_the_layout_is_that_of_the_tap() -> None:
    case = CASES["TokensWithPrefix"]
    model = case.model(True)
    with LatentTap(model, case.spot) as tap:
        model(case.images())
        change = tap.draw(MixStyle(p=1), generator=seeded())
        assert change.layout == tap.layout
        assert change.layout.prefix_tokens == 1
        assert torch.equal(change.apply(tap.code)[:, :1], tap.code[:, :1])
        mask = tap.draw(TargetedChannelMask(0.5, 0), objective=lambda output: output.square().mean())
        assert isinstance(mask, LatentMask)
        assert mask.factor.shape == (2, 17, 8)
        assert tap.draw(ManifoldMixup()).whole_pass


def test_saliency_is_computed_once_and_only_if_asked_for() -> None:
    model, calls = unet(), []

    def counted(output: Tensor) -> Tensor:
        calls.append(output)
        return objective(output)

    with LatentTap(model, ["enc2", "bottom"]) as tap:
        output = model(IMAGES)
        tap.draw([MixStyle(), RandomChannelMask()], objective=counted)
        assert not calls
        changes = tap.draw(TargetedChannelMask(0.5, 0), objective=counted)
        assert len(calls) == 1
        assert calls[0] is output
        saliency = latent_saliency(objective(output), tap.codes)
        for change, code, one in zip(changes, tap.codes, saliency, strict=True):
            assert torch.equal(change.factor, TargetedChannelMask(0.5, 0)(code, one).factor)


def test_losses_at_other_codes_are_those_of_replays() -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        output = model(IMAGES)

        def ask(code: Tensor, context: Any) -> tuple[Tensor, Tensor, Tensor]:
            leaf = (code * 0.5).requires_grad_()
            loss = context.loss_at(leaf)
            return loss, torch.autograd.grad(loss, leaf)[0], context.loss_at(code)

        loss, gradient, same = tap.draw(Asking(ask), objective=objective).params["asked"]
        assert torch.equal(same, objective(output))
        leaf = (tap.code.detach() * 0.5).requires_grad_()
        expected = objective(tap.replay(leaf, detach=True))
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, torch.autograd.grad(expected, leaf)[0])
        assert all(weight.grad is None for weight in model.parameters())


def test_losses_at_one_of_several_codes_leave_the_others_to_the_replay() -> None:
    model = unet()
    with LatentTap(model, ["enc2", "bottom"]) as tap:
        model(IMAGES)
        asked = [
            one.params["asked"]
            for one in tap.draw(Asking(lambda code, context: context.loss_at(code * 0)), objective=objective)
        ]
        with torch.no_grad():
            expected = [
                objective(tap.replay([tap.codes[0] * 0, None])),
                objective(tap.replay([None, tap.codes[1] * 0])),
            ]
        torch.testing.assert_close([one.detach() for one in asked], expected)


def test_losses_of_tokens_speak_the_model_s_layout() -> None:
    case = CASES["TokensWithPrefix"]
    model = case.model(False)
    with LatentTap(model, case.spot) as tap:
        model(case.images())
        seen = tap.draw(Asking(lambda code, context: (code.shape, context.loss_at(code * 0))), objective=torch.sum)
        shape, loss = seen.params["asked"]
        assert shape == (2, 8, 16)
        code = torch.cat([tap.code[:, :1], tap.code[:, 1:] * 0], 1)
        torch.testing.assert_close(loss, tap.replay(code).sum())


def test_an_objective_under_no_grad_still_has_a_saliency_if_the_pass_had_a_graph() -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        with torch.no_grad():
            change = tap.draw(TargetedChannelMask(0.5, 0), objective=objective)
        expected = tap.draw(TargetedChannelMask(0.5, 0), objective=objective)
        assert torch.equal(change.factor, expected.factor)


def test_drawing_and_replaying_leave_the_streams_as_a_transform_does() -> None:
    model, transform = unet(), MixStyle(p=1)
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        seed_all(4)
        change = tap.draw(transform)
        after = random_state()
        seed_all(4)
        transform(tap.code)
        assert random_state() == after
        tap.replay(change)
        assert random_state() == after
        seed_all(4)
        before = random_state()
        tap.replay(transform, generator=seeded())
        assert random_state() == before
        seed_all(4)
        assert torch.equal(tap.replay(transform), tap.replay(change))


def test_labels_mix_with_what_is_replayed() -> None:
    model, mixup = unet(), FixedMixup()
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        change = tap.draw(mixup)
        logits = tap.replay(change)
        loss = change.loss(F.cross_entropy, logits, LABELS)
    own, partners = mixup.own32, LABELS.roll(-1, 0)
    expected = own * F.cross_entropy(logits, LABELS) + (1 - own) * F.cross_entropy(logits, partners)
    torch.testing.assert_close(loss, expected)


# Several layers -----------------------------------------------------------------------------------------------------


def test_one_transform_samples_for_each_layer_and_a_list_gives_each_its_own() -> None:
    model = unet()
    with LatentTap(model, ["enc1", "bottom"]) as tap:
        model(IMAGES)
        first, second = tap.draw(RandomChannelMask(), generator=seeded())
        assert (first.factor.shape[1], second.factor.shape[1]) == (8, 32)
        style, mask = tap.draw([MixStyle(p=1), DropBlock(0.5, 3)], generator=seeded())
        assert (type(style.transform), type(mask.transform)) == (MixStyle, DropBlock)
        expected = tap.replay([style.apply(tap.codes[0]), mask.apply])
        assert torch.equal(tap.replay([style, mask]), expected)
        assert torch.equal(tap.replay([MixStyle(p=1), DropBlock(0.5, 3)], generator=seeded()), expected)
        assert torch.equal(tap.replay([style, None]), tap.replay([style.apply(tap.codes[0]), None]))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_change_of_the_whole_pass_is_one_however_many_layers(p: float) -> None:
    model = unet()
    with LatentTap(model, ["enc1", "bottom"]) as tap:
        output = model(IMAGES)
        change = tap.draw(ManifoldMixup(p=p), generator=seeded())
        assert isinstance(change, Change)
        replayed = tap.replay(change)
        assert torch.equal(replayed, tap.replay(ManifoldMixup(p=p), generator=seeded()))
        assert torch.equal(replayed, output) is (p == 0)
        change.loss(F.cross_entropy, replayed, LABELS)
    model.eval()
    with LatentTap(model, ["enc1", "bottom"]) as tap:
        output = model(IMAGES)
        assert torch.equal(tap.replay(ManifoldMixup().eval()), output)


def test_a_choice_between_the_whole_pass_and_one_code_needs_one_layer() -> None:
    model = unet()
    choice = OneOf({MixStyle(p=1): 1, ManifoldMixup(): 0})
    with LatentTap(model, ["enc1", "bottom"]) as tap:
        model(IMAGES)
        with pytest.raises(ValueError, match=r"needs, with 2 layers, a transform that changes the whole pass whatever"):
            tap.replay(choice)
        assert tap.draw(OneOf([ManifoldMixup(), RandomApply(ManifoldMixup(), p=1)])).whole_pass
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        assert not torch.equal(tap.replay(choice), tap.replay(None))


# Refused ------------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_too_much_is_named() -> None:
    model = unet()
    with LatentTap(model, ["enc1", "bottom"]) as tap:
        with pytest.raises(
            RuntimeError, match=r"LatentTap\.draw needs a forward pass of FunctionalUNet in this context"
        ):
            tap.draw(MixStyle())
        model(IMAGES)
        for transform in (TargetedChannelMask(), Compose([GIN(), TargetedSpatialMask()])):
            name = type(transform).__name__
            with pytest.raises(
                ValueError, match=rf"needs `objective` for {name}, which asks for the saliency; got None"
            ):
                tap.draw(transform)
        with pytest.raises(ValueError, match=r"needs `objective` for Asking, which asks for the loss_at; got None"):
            tap.replay(Asking(lambda code, context: None))
        for wrong in ([MixStyle()], [MixStyle(), torch.relu], MixStyle):
            with pytest.raises(
                (ValueError, TypeError), match=r"LatentTap.draw needs a transform, or a list of 2|iterable"
            ):
                tap.draw(wrong)
        with pytest.raises(ValueError, match="needs a change of the whole pass by itself; got it in a list of codes"):
            tap.replay([ManifoldMixup(), None])
    with pytest.raises(RuntimeError, match=r"LatentTap\.draw is gone once the context is left"):
        tap.draw(MixStyle())


def test_a_saliency_needs_a_graph() -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        with torch.no_grad():
            model(IMAGES)
        with pytest.raises((RuntimeError, ValueError), match="grad"):
            tap.draw(TargetedChannelMask(), objective=objective)


def test_tokens_are_no_channels() -> None:
    """The layout that a plain call would assume gives another change."""
    case, transform = CASES["TokensWithPrefix"], MixStyle(p=1, alpha=50.0)
    model = case.model(True)
    with LatentTap(model, case.spot) as tap:
        model(case.images())
        change = tap.draw(transform, generator=seeded(1))
        assert change.params["order"].tolist() == [1, 0]
        assert not torch.allclose(change.apply(tap.code), transform(tap.code, generator=seeded(1)).apply(tap.code))


# Climbing ---------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("transform", [MaxStyle(p=1), AdvStyle(steps=3), FGSM(steps=3), VAT(steps=2)], ids=repr)
def test_climbing_touches_neither_weights_nor_gradients_nor_statistics(transform: LatentTransform) -> None:
    seed_all(0)
    model = CASES["TokensWithPrefix"].model(True)
    before, images = state_of(model), CASES["TokensWithPrefix"].images()
    with LatentTap(model, CASES["TokensWithPrefix"].spot) as tap:
        output = model(images)
        moved = state_of(model)  # by the pass itself
        target = torch.randn_like(output)
        seed_all(1)
        state = random_state()
        tap.draw(transform, objective=lambda out: F.mse_loss(out, target), generator=seeded())
        assert random_state() == state
        assert all(torch.equal(value, moved[name]) for name, value in model.state_dict().items())
        F.mse_loss(output, target).backward()
    assert before.keys() == moved.keys()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("steps", [1, 3])
def test_each_step_of_an_ascent_costs_one_pass_of_what_follows(steps: int) -> None:
    model = unet()
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        model(IMAGES)
        tap.replay(tap.code)  # what finds out what can be skipped is behind us
        calls.clear()
        tap.replay(tap.code)
        following = len(calls)
        for transform, passes in ((MaxStyle(p=1, steps=steps), steps), (FGSM(steps=steps), steps - 1)):
            calls.clear()
            tap.draw(transform, objective=objective, generator=seeded())
            assert len(calls) == passes * following
    assert 0 < following < sum(isinstance(module, nn.Conv2d) for module in model.modules())


def test_maxstyle_makes_the_loss_of_the_replay_larger() -> None:
    model = unet()
    with LatentTap(model, "bottom") as tap:
        model(IMAGES)
        losses = [
            objective(tap.replay(MaxStyle(p=1, steps=steps), objective=objective, generator=seeded())).item()
            for steps in (0, 5, 20)
        ]
    assert losses == sorted(set(losses))


def test_of_several_layers_one_maxstyle_climbs_over_all_together() -> None:
    model = unet()
    with LatentTap(model, ["enc2", "bottom"]) as tap:
        model(IMAGES)
        together = tap.draw(MaxStyle(p=1, steps=3), objective=objective, generator=seeded())
        apart = tap.draw([MaxStyle(p=1, steps=3)] * 2, objective=objective, generator=seeded())
        start = tap.draw(MaxStyle(p=1, steps=0), objective=objective, generator=seeded())
        assert len(together) == 2
        names = ("own", "scale_noise", "shift_noise")
        variables = [{name: change.params[name].clone().requires_grad_() for name in names} for change in start]
        adam = torch.optim.Adam([one for each in variables for one in each.values()], lr=0.1, maximize=True)
        for _ in range(3):
            for change, learned in zip(start, variables, strict=True):
                change.params |= learned
            loss = objective(tap.replay(list(start), detach=True))
            adam.zero_grad()
            loss.backward(inputs=adam.param_groups[0]["params"])
            adam.step()
            with torch.no_grad():
                for each in variables:
                    each["own"].clamp_(0, 1)
        for change, learned in zip(together, variables, strict=True):
            for name in names:
                torch.testing.assert_close(change.params[name], learned[name].detach(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(apart[1].params["scale_noise"], together[1].params["scale_noise"])
        assert objective(tap.replay(together)) > objective(tap.replay([None, None]))


def test_layers_that_are_left_alone_are_not_climbed() -> None:
    model = unet()
    with LatentTap(model, ["enc2", "bottom"]) as tap:
        model(IMAGES)
        seen = set()
        for seed in range(12):
            changes = tap.draw(MaxStyle(p=0.5, steps=1), objective=objective, generator=seeded(seed))
            seen.add(tuple(change.is_identity for change in changes))
            assert tap.replay(changes).shape == tap.replay([None, None]).shape
        assert len(seen) == 4


@pytest.mark.parametrize(
    "wrap", [lambda out: out, lambda out: {"out": out}, lambda out: {"logits": out}, lambda out: [out, out[:, :, ::2]]]
)
def test_vat_climbs_the_divergence_without_labels(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet()

        def forward(self, images: Tensor) -> Any:
            return wrap(self.inner(images))

    model = Wrapped()
    with LatentTap(model, "inner.bottom") as tap:
        output = model(IMAGES)
        change = tap.draw(VAT(0.3), generator=seeded())
        clean = tap.replay(None)

        def divergence(code: Any) -> float:
            first: Any = tap.replay(code)
            return kl_divergence(*(next(_tensors(one)) for one in (first, clean))).item()

        random = torch.randn(tap.code.shape, generator=seeded(5)).double()
        random *= ((change.apply(tap.code) - tap.code).flatten(1).norm(dim=1) / random.flatten(1).norm(dim=1)).view(
            -1, 1, 1, 1
        )
        assert divergence(change) > 2 * divergence(tap.code + random)
        assert next(_tensors(output)).requires_grad


def _tensors(output: Any) -> Any:
    if isinstance(output, Tensor):
        yield output
    else:
        yield from (output.values() if isinstance(output, dict) else output)


def test_what_holds_no_logits_needs_a_divergence_of_the_caller() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet()

        def forward(self, images: Tensor) -> Any:
            return {"masks": self.inner(images)}

    model = Named()
    with LatentTap(model, "inner.bottom") as tap:
        model(IMAGES)
        with pytest.raises(TypeError, match=r"finds no logits in what the model returns, a dict\. Pass divergence="):
            tap.draw(VAT())
        tap.replay(VAT(), divergence=lambda output, clean: kl_divergence(output["masks"], clean["masks"]))


# One change for several layers ------------------------------------------------------------------------------------


def test_one_draw_for_several_layers() -> None:
    model = unet()
    with LatentTap(model, ["enc2", "bottom"]) as tap:
        model(IMAGES)
        same = tap.draw(MixStyle(p=1), same=True, generator=seeded())
        apart = tap.draw(MixStyle(p=1), generator=seeded())
        assert all(torch.equal(same[0].params[name], same[1].params[name]) for name in ("order", "own"))
        assert not torch.equal(apart[0].params["own"], apart[1].params["own"])
        tap.replay(same)
        with pytest.raises(
            ValueError, match=r"same=True needs a transform whose parameters fit every code; those of D"
        ):
            tap.draw(DropBlock(0.3, 3), same=True)
        with pytest.raises(ValueError, match=r"same=True needs one transform; got a list"):
            tap.draw([MixStyle(), MixStyle()], same=True)
