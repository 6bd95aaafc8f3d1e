"""Arguments that have moved: each works as it did, and says what to write."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentaug import FTN, CooperativeModel, HardExamples, RandomChannelMask
from latentaug.cooperative.moved import IN_HARD, SPELLINGS

EXAMPLE = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def made(**options: Any) -> CooperativeModel:
    torch.manual_seed(0)
    return CooperativeModel(FTN(num_classes=3, width=2, depth=2), num_classes=3, example=EXAMPLE, **options)


CASES: dict[str, tuple[Any, Callable[[CooperativeModel], object], object]] = {
    "layer": ("decoupler", lambda coop: [str(coop.image_code), *map(str, coop.shape_codes)], ["decoupler"] * 2),
    "image_code": ("encoder.blocks.0", lambda coop: [str(coop.image_code), str(coop.shape_codes[0])], None),
    "shape_code": ("encoder", lambda coop: [str(coop.image_code), str(coop.shape_codes[0])], ["encoder", "encoder"]),
    "masker": (RandomChannelMask(0.25), lambda coop: coop.image_transform.p, 0.25),
    "temperature": (3.0, lambda coop: coop.shape_prior and coop.shape_prior.temperature, 3.0),
    "checkpointed": (("model.encoder",), lambda coop: coop.checkpointed, ("model.encoder",)),
    "input_noise": (0.1, lambda coop: coop.hard, HardExamples(noise=0.1)),
    "details": ((0.25, 0.5), lambda coop: coop.hard, HardExamples(residual=(0.25, 0.5))),
    "hard_share": (0.5, lambda coop: coop.hard, HardExamples(fraction=0.5)),
    "hard_scale": (0.5, lambda coop: coop.hard, HardExamples(scale=0.5)),
    "saliency_every": (3, lambda coop: coop.hard, HardExamples(saliency_every=3)),
    "hard_norm_frozen": (("model",), lambda coop: coop.hard, HardExamples(frozen_norms=("model",))),
    "separate": (True, lambda coop: coop.hard, HardExamples(separate=True)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_has_moved_works_and_says_the_new_spelling(name: str) -> None:
    value, read, expected = CASES[name]
    spelling = SPELLINGS[name].split("=")[0]
    with pytest.warns(
        DeprecationWarning, match=rf"CooperativeModel\({name}=...\) has moved since 0.1.0, .* Write {spelling}"
    ) as said:
        coop = made(**{name: value})
    assert said[0].filename == __file__
    assert read(coop) == (expected or ["encoder.blocks.0", "decoupler"])


def test_every_moved_argument_has_a_case() -> None:
    assert CASES.keys() == SPELLINGS.keys() >= IN_HARD.keys()


def test_fields_of_hard_examples_add_up() -> None:
    with pytest.warns(DeprecationWarning, match="has moved"):
        coop = made(hard=HardExamples(scale=0.5), input_noise=0.0, details=1.0)
    assert coop.hard == HardExamples(scale=0.5, noise=0.0, residual=1.0)


def test_new_and_former_spelling_make_the_same_step() -> None:
    labels = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    with pytest.warns(DeprecationWarning, match="has moved"):
        former = made(masker=RandomChannelMask(), input_noise=0.1, temperature=3.0, hard_share=0.5)
    new = made(augment=RandomChannelMask(), hard=HardExamples(noise=0.1, fraction=0.5))
    assert new.shape_prior is not None
    new.shape_prior.temperature = 3.0
    losses = [coop(EXAMPLE, labels, generator=torch.Generator().manual_seed(2)).loss for coop in (former, new)]
    assert torch.equal(*losses)


def test_unknown_arguments_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'maskers'"):
        made(maskers=RandomChannelMask())


def test_the_signature_shows_the_thirteen_arguments_alone() -> None:
    _, model, *rest = inspect.signature(CooperativeModel.__init__).parameters.values()
    assert model.name == "model"
    assert len(rest) == 13
    assert not {one.name for one in rest} & SPELLINGS.keys()
