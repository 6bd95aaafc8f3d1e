"""Changes are recorded, kept on disk, and made again."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from latentaug import (
    GIN,
    IPA,
    Change,
    Compose,
    Context,
    DropBlock,
    LatentMask,
    LatentTransform,
    ManifoldMixup,
    MixStyle,
    OneOf,
    RandomApply,
    RandomChannelMask,
    StrongIntensity,
    TargetedChannelMask,
    TargetedSpatialMask,
)
from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout
from tests.support.codes import KINDS, Kind, seeded

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TRANSFORMS: dict[str, LatentTransform] = {
    "MixStyle": MixStyle(p=1),
    "gated": MixStyle(p=0.5, per_sample=True),
    "never": MixStyle(p=0),
    "DropBlock": DropBlock(0.3, 3),
    "GIN": GIN(),
    "IPA": IPA(),
    "StrongIntensity": StrongIntensity(noise=1, gamma=0.5),
    "ManifoldMixup": ManifoldMixup(),
    "TargetedChannelMask": TargetedChannelMask(),
    "masks": Compose([RandomChannelMask(), TargetedSpatialMask()]),
    "Compose": Compose([MixStyle(p=1), OneOf([TargetedChannelMask(), RandomChannelMask()]), GIN()]),
    "OneOf": OneOf([TargetedChannelMask(), MixStyle(p=1), GIN()]),
    "RandomApply": RandomApply(MixStyle(p=1), p=0.5),
}
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def from_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@EVERY_KIND
@EVERY_TRANSFORM
@pytest.mark.parametrize("seed", range(3))
def test_a_change_from_disk_is_the_same_change(kind: Kind, transform: LatentTransform, seed: int) -> None:
    code, other = kind.code(), kind.code(seed=1)
    change = transform(code, kind.code(seed=2), layout=kind.layout, generator=seeded(seed))
    again = transform.change_from(from_disk(change.state_dict()))
    assert type(again) is type(change)
    assert torch.equal(again.apply(code), change.apply(code))
    assert torch.equal(again.apply(other), change.apply(other))
    assert again.whole_pass == change.whole_pass
    assert repr(again) == repr(change)


def test_a_mixture_from_disk_mixes_losses_alike() -> None:
    code, logits, labels = torch.randn(4, 2, 3), torch.randn(4, 5, 3), torch.randint(5, (4, 3))
    transform = Compose([ManifoldMixup()])
    change = transform(code, generator=seeded())
    again = transform.change_from(from_disk(change.state_dict()))
    criterion = torch.nn.functional.cross_entropy
    assert torch.equal(again.loss(criterion, logits, labels), change.loss(criterion, logits, labels))
    assert not torch.equal(change.loss(criterion, logits, labels), criterion(logits, labels))


def test_the_change_of_another_transform_is_refused() -> None:
    state = MixStyle(p=1, eps=1e-3)(torch.ones(2, 1, 3)).state_dict()
    with pytest.raises(
        ValueError, match=r"change_from needs a change sampled by MixStyle\(p=1\.0\); got one by MixStyle\(p=1\.0, eps"
    ):
        MixStyle(p=1).change_from(state)
    assert MixStyle(p=1, eps=1e-3).change_from(state).params.keys() == {"order", "own"}


@pytest.mark.parametrize("state", [{}, None, "change.pt", {"transform": "MixStyle(p=1.0)"}, MixStyle(p=1).state_dict()])
def test_what_is_no_state_of_a_change_is_refused(state: Any) -> None:
    with pytest.raises(TypeError, match=r"change_from needs what Change\.state_dict\(\) returned; got"):
        MixStyle(p=1).change_from(state)


@EVERY_TRANSFORM
def test_moving_to_another_device_moves_all_that_was_sampled(transform: LatentTransform) -> None:
    change = transform(torch.randn(4, 6, 5, 7), torch.randn(4, 6, 5, 7), generator=seeded())
    moved = change.to("meta")

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Change):
            extra = [value.factor] if isinstance(value, LatentMask) else []
            return [*tensors(value.params), *([] if value.gate is None else [value.gate]), *extra]
        if isinstance(value, dict | list):
            return [one for part in (value.values() if isinstance(value, dict) else value) for one in tensors(part)]
        return [value] if isinstance(value, Tensor) else []

    assert all(one.is_meta for one in tensors(moved)) or moved.is_identity
    assert not any(one.is_meta for one in tensors(change))
    assert len(tensors(moved)) == len(tensors(change))


class Named(NamedTuple):
    factor: Tensor
    rest: tuple[()]


class InContainers(LatentTransform):
    """A transform whose parameters are in containers of all kinds, one within the other."""

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        factor = context.rand(len(code))
        nested = {"name": Named(factor, ()), "size": torch.Size([3])}
        return {"pair": (factor, [factor, (2, factor)]), "by": nested}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        factor, [_, (times, _)] = params["pair"]
        return code * (times * factor).view(-1, 1, 1)


def test_containers_of_parameters_are_kept_and_moved() -> None:
    code, transform = torch.ones(2, 3, 4), InContainers()
    change = transform(code)
    again = transform.change_from(from_disk(change.state_dict()))
    assert repr(again) == repr(change)
    assert torch.equal(again.apply(code), change.apply(code))
    moved = change.to("meta")
    for one, kind in ((again, tuple), (moved, Named)):
        factor, [inner, deep] = one.params["pair"]
        named = one.params["by"]["name"]
        assert (type(one.params["pair"]), type(deep), type(named)) == (tuple, tuple, kind)
        assert (deep[0], named[1], one.params["by"]["size"]) == (2, (), (3,))
        assert {tensor.is_meta for tensor in (factor, inner, deep[1], named[0])} == {one is moved}


def test_what_changes_nothing_does_so_on_another_device_too() -> None:
    code = torch.randn(4, 6, 5, 7, generator=seeded())
    moved = TRANSFORMS["never"](code).to("meta")
    assert moved.is_identity
    assert moved.apply(code) is code


def test_a_change_of_one_layout_is_made_in_another() -> None:
    code = torch.randn(3, 6, 5, 7, generator=seeded())
    for transform in (MixStyle(p=1), RandomChannelMask(), DropBlock(0.3, 3)):
        change = transform(code, generator=seeded())
        last = change.on(CHANNELS_LAST)
        assert torch.equal(last.apply(code.movedim(1, -1)).movedim(-1, 1), change.apply(code))
        assert change.layout == CHANNELS_FIRST
    mask = RandomChannelMask()(code.flatten(2).movedim(1, -1), layout=TOKENS)
    assert mask.on(TOKENS).factor is mask.factor
    with pytest.raises(ValueError, match=r"A mask for .* does not fit tokens, 1 prefix"):
        mask.on(Layout(-1, 1))


def test_what_was_sampled_is_shown() -> None:
    change = MixStyle(p=1)(torch.ones(2, 1, 3), generator=seeded())
    change.params = {"order": torch.tensor([1, 0]), "own": torch.tensor(0.25), "weights": [torch.ones(3, 4, 5)], "n": 2}
    assert repr(change) == "Change(by MixStyle, order=[1, 0], own=0.25, weights=[<3x4x5>], n=2)"
    change.params = {"noise": {"chosen": torch.tensor([True, False]), "by": torch.ones(2, 3, 9)}}
    assert repr(change) == "Change(by MixStyle, noise={chosen: [True, False], by: <2x3x9>})"
    assert repr(MixStyle(p=0)(torch.ones(2, 1, 3))) == "Change(by MixStyle, leaves all as it is)"
