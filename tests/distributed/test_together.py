"""Two processes train one model: their gradients, losses, stops, checkpoints and evaluations are of all ranks."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from latentaug.training.checkpoint import load_checkpoint
from latentaug.training.random_streams import preserved_random_streams
from tests.distributed import together
from tests.distributed.worker import cooperative
from tests.support.processes import found_by_ranks
from tests.support.tiny_training import same_weights, tiny_coop, tiny_trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]

ROOT = Path(__file__).parents[2]
RANKS = 2
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> Found:
    """What every rank found, by check."""
    with preserved_random_streams(together.CPU, ()):
        together.written(folder / "one", "bare", 0)
    return found_by_ranks(together.__file__, RANKS, folder, safely=False)


# Gradients ------------------------------------------------------------------------------------------------------------


def alone(name: str, rank: int, steps: int = 1) -> dict[str, Any]:
    model = cooperative(name)
    for _ in range(steps):
        together.step(model, rank)
    return together.gradients_of(model)


CASES = [*((name, way) for name in together.GRADIENTS for way in ("bare", "twice")), ("unet", "held")]
if together.HAS_FULLY_SHARD:
    CASES.append(("unet", "network sharded"))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_gradients_are_averaged_where_no_wrapper_does(results: Found, name: str, way: str) -> None:
    first, second = (found["averaged"][name, way] for found in results)
    own = [alone(name, rank, steps=2 if way == "twice" else 1) for rank in range(RANKS)]
    for parameter, gradient in first.items():
        assert torch.equal(gradient, second[parameter]), parameter
        mean = sum(gradients[parameter] for gradients in own) / RANKS
        torch.testing.assert_close(gradient, mean, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(*(gradients["shape_prior.decoder.projection.weight"] for gradients in own))


def test_independent_models_keep_their_own_gradients(results: Found) -> None:
    for rank in range(RANKS):
        found, own = results[rank]["averaged"]["unet", "alone"], alone("unet", rank)
        assert all(torch.equal(found[key], own[key]) for key in own)


def test_a_parameter_that_some_ranks_use_counts_as_zero_on_the_others(results: Found) -> None:
    own = [together.uneven_gradients(rank) for rank in range(RANKS)]
    assert own[0]["model.now_and_then.weight"] is None
    for found in results:
        for name, gradient in found["averaged"]["uneven"].items():
            if name.startswith("model.never"):
                assert gradient is None
            else:
                there = [gradients[name] for gradients in own if gradients[name] is not None]
                torch.testing.assert_close(gradient, sum(there) / RANKS, rtol=1e-10, atol=1e-14)


def test_ranks_that_begin_with_other_weights_are_refused(results: Found) -> None:
    for found in results:
        assert "All ranks must begin with the same weights" in found["averaged"]["other weights"]


# Losses and scores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", together.KINDS)
def test_ranks_hold_the_same_weights_whatever_averages_gradients(results: Found, kind: str) -> None:
    first, second = (found["trained"][kind]["weights"] for found in results)
    trained = [name for name, _ in tiny_coop().named_parameters()]
    for name in trained:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], results[0]["trained"]["DDP"]["weights"][name], rtol=1e-4, atol=1e-6)
    assert results[0]["trained"]["bare"]["streams"][0].ne(results[1]["trained"]["bare"]["streams"][0]).any()


@pytest.mark.parametrize("kind", together.KINDS)
def test_each_loss_that_is_logged_is_the_mean_over_all_ranks(results: Found, kind: str) -> None:
    histories = [found["trained"][kind]["history"] for found in results]
    losses = [found["trained"][kind]["losses"] for found in results]
    assert losses[0] != losses[1]
    for epoch in range(2):
        own = [row for rows in losses for row in rows[3 * epoch : 3 * epoch + 3]]
        for name in own[0]:
            expected = mean(row[name] for row in own)
            assert all(history[epoch][name] == pytest.approx(expected, rel=1e-5) for history in histories), name
    rows = [[{**row, "seconds": 0} for row in history] for history in histories]
    assert rows[0] == rows[1]  # scores too, of ranks whose running statistics differ


def test_scores_are_those_of_the_weights_that_are_saved_on_the_batches_of_all_ranks(results: Found) -> None:
    scores = [found["trained"]["scores"] for found in results]
    batches = [batch for rank in range(RANKS) for batch in together.own_batches(rank, 3 - 2 * rank)]
    with preserved_random_streams(together.CPU, ()):
        expected = tiny_trainer().evaluate(batches)
        after = {key: value for key, value in results[0]["trained"]["bare"]["history"][1].items() if key[:3] == "val"}
        trainer = tiny_trainer(ema=0.5)
        trainer.model.load_state_dict(results[0]["trained"]["bare"]["best"].weights)
        best = trainer.evaluate(batches)
    assert scores[0] == scores[1] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    epoch = results[0]["trained"]["bare"]["best"].epoch
    after = results[0]["trained"]["bare"]["history"][epoch - 1]
    assert {name: after[f"val_{name}"] for name in best} == pytest.approx(best, rel=1e-5, nan_ok=True)


def test_an_epoch_ends_with_the_rank_that_has_the_fewest_batches_and_begins_with_weights_of_rank_0(
    results: Found,
) -> None:
    (steps, epoch, first), (_, _, second) = (found["trained"]["other weights, uneven"] for found in results)
    assert (steps, epoch) == (3, 1) == results[1]["trained"]["other weights, uneven"][:2]
    assert all(torch.equal(first[name], second[name]) for name, _ in tiny_coop().named_parameters() if name in first)


# Stopping -------------------------------------------------------------------------------------------------------------

STOPS = {
    "SIGTERM": ("Terminated", (2, 0)),
    "Ctrl-C": ("Interrupted", (4, 1)),
    "Ctrl-C after the last update of an epoch": ("Interrupted", (3, 0)),
    "SIGTERM in validation": ("Terminated", (3, 0)),
    "SIGTERM after an epoch": ("Terminated", (3, 1)),
    "stop": ("", (2, 0)),
    "stop after an epoch": ("", (3, 1)),
}


@pytest.mark.parametrize("way", STOPS)
def test_ranks_stop_at_one_step_and_go_on_as_if_they_had_not(results: Found, way: str) -> None:
    kind, at = STOPS[way]
    for found in results:
        stop, (weights, (generator, streams)) = found["stopped"][way], found["stopped"]["straight"]
        assert (stop["said"][0], stop["at"]) == (kind, at)
        assert same_weights(stop["weights"], weights)
        assert torch.equal(stop["streams"][0], generator)
        assert torch.equal(stop["streams"][1]["cpu"], streams["cpu"])
        assert stop["streams"][1]["python"] == streams["python"]
    generators = [found["stopped"][way]["streams"][0] for found in results]
    assert not torch.equal(*generators)  # each its own


def test_too_many_batches_of_one_rank_that_are_not_finite_stop_all(results: Found) -> None:
    for rank, found in enumerate(results):
        kind, message = found["stopped"]["not finite"]["said"]
        assert kind == "NotFiniteError"
        assert ("something on another rank" in message) == (rank == 0)
        assert found["stopped"]["not finite"]["at"] == 2
        assert "last.pt" in found["stopped"]["not finite"]["files"]


def test_a_failure_of_one_rank_ends_all(results: Found) -> None:
    first, second = (found["stopped"] for found in results)
    assert second["loader"] == {"said": ("OSError", "a disk is gone"), "at": 1}
    assert first["loader"]["said"][0] == first["labels"]["said"][0] == "RanksDifferError"
    assert "Rank 1 failed while it drew batches of a step" in first["loader"]["said"][1]
    assert second["labels"]["said"][0] == "ValueError"
    assert first["folder"]["said"][0] == "IsADirectoryError"
    assert "Rank 0 failed (a folder to lock): IsADirectoryError" in second["folder"]["said"][1]
    for found in (first, second):
        assert "rank 0 to 'random streams to save', rank 1 to 'buffers to score" in found["different calls"]["said"][1]


# Other numbers of ranks -----------------------------------------------------------------------------------------------


def same_state(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_state(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("kind", together.KINDS)
def test_checkpoints_are_whole_and_go_on_with_any_kind_of_model(results: Found, folder: Path, kind: str) -> None:
    found = results[0]["elsewhere"]
    state = load_checkpoint(folder / f"two {kind}" / "last.pt", {"model", "ranks", "average"})
    shapes = {name: value.shape for name, value in tiny_coop().state_dict().items()}
    assert {name: value.shape for name, value in state["model"].items()} == shapes
    expected = {key: found["written", kind][key] for key in ("weights", "optimizer", "average")}
    assert same_state(state["model"], expected["weights"])
    for other in together.KINDS:
        assert same_state(found["resumed", kind, other], expected), other


@pytest.mark.parametrize("kind", together.KINDS)
def test_resumed_ranks_go_on_as_if_they_had_not_stopped(results: Found, kind: str) -> None:
    straight, resumed = results[0]["elsewhere"]["gone on", kind]
    assert same_state(straight, resumed)
    best = load_checkpoint(ROOT / results[0]["elsewhere"]["written", kind]["best"].folder / "best.pt", {"model"})
    assert best["model"].keys() == results[0]["elsewhere"]["best", kind].keys()


@pytest.mark.parametrize("kind", together.KINDS)
def test_one_process_goes_on_from_two(
    results: Found, folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with preserved_random_streams(together.CPU, ()):
        trainer = together.trainer_of("bare", 0, ema=0.5)
        trainer.resume(folder / f"two {kind}" / "last.pt")
        written = results[0]["elsewhere"]["written", kind]
        assert same_state(
            together.state_of(trainer), {key: written[key] for key in ("weights", "optimizer", "average")}
        )
        assert trainer.global_step == 4
        trainer.fit(together.loader(), epochs=2)
    assert "was written by 2 ranks, and 1 goes on from it: the random streams of rank 1 end here" in caplog.text
    assert trainer.global_step == 4 + 4  # a third of the second epoch was through: 1 batch of 3, then 2 of 6
    assert len(trainer.history) == 2


@pytest.mark.parametrize("kind", together.KINDS)
def test_two_ranks_go_on_from_one(results: Found, folder: Path, kind: str) -> None:
    first, second = (found["elsewhere"]["one", kind] for found in results)
    state = load_checkpoint(folder / "one" / "last.pt", {"model", "generator"})
    assert same_state(first["weights"], state["model"])
    assert same_state(first["average"], state["average"])
    assert torch.equal(first["streams"][0], state["generator"])
    assert torch.equal(first["random"]["cpu"], state["random"]["cpu"])
    assert not torch.equal(second["streams"][0], state["generator"])
    assert not torch.equal(second["random"]["cpu"], state["random"]["cpu"])
    assert (
        first["steps"] == second["steps"] == 9 + 2
    )  # half of the second epoch was through: 3 batches of 6, then 1 of 3
    assert [row["loss"] for row in first["history"]] == [row["loss"] for row in second["history"]]
