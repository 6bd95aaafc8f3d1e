"""The table of training steps: variants, modes, what is left out and why, and loops with a tap."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import loops, step, variants
from benchmarks.interleaved import Taken
from benchmarks.networks import LITTLE, LITTLE_UNETS, STEPPED
from benchmarks.report import Options
from benchmarks.step import Measured, deadline, first_line, in_process, modes
from benchmarks.variants import PLAIN, VARIANTS, Mode, build

CPU = torch.device("cpu")
OPTIONS = Options("cpu", threads=1, repeats=1, quick=True)


def test_a_plain_step_is_forward_loss_and_backward_of_the_network_alone() -> None:
    torch.manual_seed(0)
    network = LITTLE[0].build().train()
    images, labels = variants.batch(CPU, 2, (32, 32))
    expected = torch.nn.functional.cross_entropy(network(images), labels)
    torch.testing.assert_close(build(LITTLE[0], PLAIN, CPU).step(), expected.detach())


def test_all_networks_that_are_timed_can_be_sent_to_a_process() -> None:
    import pickle

    assert [pickle.loads(pickle.dumps(row)).size for row in STEPPED] == [row.size for row in STEPPED]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_built_and_run(name: str) -> None:
    assert build(LITTLE[0], name, CPU).step().isfinite()


def test_on_a_gpu_and_quickly_the_main_ones_are_measured() -> None:
    main = [PLAIN, "default", "two passes, shape prior"]
    assert step.names(Options("cuda", 1, 1)) == step.names(OPTIONS) == main
    assert step.names(Options("cpu", 1, 1)) == [PLAIN, *VARIANTS]


@pytest.mark.slow
def test_a_variant_that_the_library_does_not_know_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "later", {"hard": {"colour": "red"}})
    monkeypatch.setitem(VARIANTS, "sooner", {"residue": 1})
    one = in_process(LITTLE[0], [Mode()], Options("cpu", threads=1, repeats=1), False)["float32"]
    assert {PLAIN, "default"} <= one.taken.keys()
    assert "unexpected keyword argument 'colour'" in one.skipped["later"]
    assert "unexpected keyword argument 'residue'" in one.skipped["sooner"]
    assert not {"later", "sooner"} & one.taken.keys()


def taken(*cpu: float, peak: int = 100) -> Taken:
    return Taken([*cpu], [*cpu], peak)


@pytest.mark.parametrize(("fresh", "shown"), [(2.1, 2.1), (1.9, 1.9), (2.3, None), (1.0, None)])
def test_the_allocator_as_it_comes_is_shown_where_it_agrees_within_a_tenth(fresh: float, shown: float | None) -> None:
    one = Measured({PLAIN: taken(1.0), "default": taken(2.0, peak=150)}, {PLAIN: taken(1.0), "default": taken(fresh)})
    table = step._details(LITTLE[0], "float32", one, CPU)
    row = dict(zip(table.columns, table.rows["default"], strict=True))
    assert row["plain steps"] == 2.0
    assert row["allocator as it comes"] == shown
    assert row["plain peaks"] == 1.5


def test_without_a_plain_step_there_are_no_costs() -> None:
    one = Measured({"default": taken(2.0)}, skipped={PLAIN: "RuntimeError: none"})
    assert one.cost("default", CPU) is None
    assert one.memory("default") is None
    assert "plain: not measured" in step._details(LITTLE[0], "float32", one, CPU).rows


def test_modes_of_a_device() -> None:
    def names(options: Options) -> list[list[str]]:
        return [[str(mode) for mode in together] for together in modes(options)]

    assert names(OPTIONS) == [["float32"]]
    assert names(Options("cpu", 1, 1, compiled=True)) == [["float32"], ["float32, compiled"]]
    assert names(Options("cuda", 1, 1)) == [
        ["float32", "bfloat16"],
        ["float32, compiled"],
        ["bfloat16, compiled"],
    ]


def test_a_network_that_has_no_time_left_is_named() -> None:
    found = step.measured(LITTLE[0], [Mode()], OPTIONS, deadline(1.0))
    assert set(found["float32"].skipped.values()) == {"TimeoutError: No time was left."}


def test_an_error_is_one_line_that_a_table_can_hold() -> None:
    assert first_line(ValueError("a | b\nc")) == "ValueError: a / b"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.slow
def test_compiled_steps_are_measured_or_named_with_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "compile_parts", lambda model: model.model.encoder.compile(backend="aot_eager"))
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_eagerly(torch.nn.Module.compile))
    one = in_process(LITTLE[0], [Mode(compiled=True)], OPTIONS, False)["float32, compiled"]
    assert "default" in one.taken.keys() | one.skipped.keys()
    assert PLAIN in one.taken


def _compiled_eagerly(compile: Any) -> Any:
    return lambda module, **options: compile(module, backend="aot_eager")


# Loops with a tap -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loops_compute_what_is_worked_out_by_hand() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    seconds, gflops, missing = loops.in_process(LITTLE_UNETS[0], OPTIONS)
    encoder, decoder, first = gflops["encoder"], gflops["decoder"], gflops["first convolution"]
    expected = {name: e * encoder + d * decoder - first for name, (e, d) in loops.BY_HAND.items()}
    assert gflops["plain"] == pytest.approx(expected["plain"])
    assert seconds["tap loop"].keys() == {"all", *loops.PARTS}
    assert seconds["plain"].keys() == {"all", "pass", "backward"}
    assert not missing
    assert gflops["tap loop"] == pytest.approx(expected["tap loop"])
    assert gflops["frugal"] == pytest.approx(expected["frugal"])
