"""How far what stands in for a code reaches."""

from __future__ import annotations

from torch import nn

from latentaug.discovery.bottleneck import looked
from latentaug.discovery.candidates import candidates
from latentaug.discovery.reach import Reach, reach
from tests.models.handwritten.strange import HooksInForward
from tests.models.searched.parts import Encoder, Net, images


def reaches(model: nn.Module) -> dict[str, Reach]:
    look, again = looked(model, (images(),), {}, None)
    found = candidates(model, look, again, guess=True)
    return {str(c.location): reach(model, c, look, again, watched=True) for c in found}


def test_a_code_that_its_caller_reads_reaches_all() -> None:
    assert reaches(Net(Encoder()))["encoder[2]"] is Reach.ALL


def test_a_code_that_hooks_took_before_it_was_returned_reaches_nothing() -> None:
    found = reaches(HooksInForward())
    assert (found["encoder"], found["encoder.2.1.2"]) == (Reach.NOTHING, Reach.ALL)
