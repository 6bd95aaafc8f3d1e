"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout
from latentaug.training.allocator import tune_allocator
from tests.campaigns import day

settings.register_profile("latentaug", deadline=None)  # a busy machine is no failure
settings.load_profile("latentaug")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell, whose Ctrl-C is for others
    signal.signal(signal.SIGINT, signal.default_int_handler)
tune_allocator(2**30)  # fresh pages for every large tensor take a quarter of the tests' time
torch.set_num_threads(1)  # the tests' tensors are small; threads that wait for each other only cost time
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start, and frameworks that choose a number

SHAPES = {
    "channels_first": (CHANNELS_FIRST, (2, 8, 3, 5)),
    "channels_last": (CHANNELS_LAST, (2, 3, 5, 8)),
    "tokens": (TOKENS, (2, 15, 8)),
    "tokens_with_prefix": (Layout(channel_dim=-1, prefix_tokens=2), (2, 2 + 15, 8)),
}
WHOLE = ("benchmarks", "campaigns", "distributed", "examples", "integrations")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage in tests of whole programs and models: it slows them by half, and the others reach 99 %."""
    for item in items:
        if item.path.parent.name in WHOLE:
            item.add_marker("no_cover")


def pytest_runtest_teardown() -> None:
    """Take back a number of threads that a framework has chosen: with two, later tests take ten times as long."""
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Print the seed of the campaigns, by which they can be repeated."""
    return f"campaigns: LATENTAUG_SEED={day.seed()}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the matrix of models write the table of the docs."""
    parser.addoption("--write-model-table", action="store_true", help="measure docs/reference/models.md anew")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator, fresh for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=SHAPES)
def layout_and_shape(request: pytest.FixtureRequest) -> tuple[Layout, tuple[int, ...]]:
    """One of the four layouts with a shape for it; `layout` and `code` are its two halves."""
    return SHAPES[request.param]


@pytest.fixture
def layout(layout_and_shape: tuple[Layout, tuple[int, ...]]) -> Layout:
    """The layout of `code`."""
    return layout_and_shape[0]


@pytest.fixture
def code(layout_and_shape: tuple[Layout, tuple[int, ...]]) -> Tensor:
    """A code of 2 samples, 8 channels and 15 sites, in `layout`."""
    return torch.randn(layout_and_shape[1], generator=torch.Generator().manual_seed(1))


@pytest.fixture
def process_group() -> Iterator[None]:
    """One process that talks to itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
