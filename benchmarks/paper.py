"""Time and memory of a training step of the paper's network: bare, standard and cooperative, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.flops import OPTIONS, expected
from benchmarks.interleaved import KEPT
from benchmarks.measure import Measured, Step, Subject, alone, fits, largest, take_turns
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import MASKERS, Size, authors, bare, matmul, trained

COLUMNS = ("seconds", "spread", "over bare", "over standard", "peak GB", "GFLOP/s", "of matmul")
FORMATS = {"spread": "± {:.0%}", "GFLOP/s": "{:,.0f}", "of matmul": "{:.0%}"}


def run(options: Options) -> Report:
    """Measure at the paper's batch of 20 and at 4, with each mask alone, and the authors' code if given."""
    peaks = matmuls(options)
    table = partial(_table, options=options, peaks=peaks)
    if options.quick:
        return Report([table("batch 2, 32²", steps(2, 32, options)), _peak_table(peaks)], drawn="seconds", notes=NOTES)
    tables = [
        table("the paper's network, batch 20, 192²", steps(20, 192, options)),
        table("the paper's network, batch 4, 192²", steps(4, 192, options)),
        table("each mask alone, batch 20, 192²", masks(20, 192)),
        table("variants, batch 20, 192²", variants(20, 192, options)),
        table("options that change the numbers, batch 20, 192²", shortcuts(20, 192)),
        _peak_table(peaks),
    ]
    if torch.device(options.device).type == "cuda":
        tables.append(largest_batches(options, 192))
    return Report(tables, drawn="seconds", notes=NOTES)


def steps(images: int, side: int, options: Options) -> dict[str, Subject]:
    """Return steps of the paper's network, and of the authors' code."""
    size = Size(images=images, side=side)
    plain, whole = images * expected("bare", side), images * expected("cooperative", side)
    cooperative = partial(trained, kind="cooperative", **size)
    subjects = {
        "bare": Subject(partial(bare, **size), kept=KEPT, flops=plain),
        "standard": Subject(
            partial(trained, kind="standard", **size), kept=KEPT, flops=images * expected("standard", side)
        ),
        "cooperative": Subject(cooperative, kept=KEPT, flops=whole),
    }
    if options.authors is not None:
        path = str(options.authors)
        for kind in ("standard", "cooperative"):
            subjects[f"authors' {kind}"] = Subject(partial(authors, path=path, kind=kind, **size), kept=KEPT)
    return subjects


def masks(images: int, side: int) -> dict[str, Subject]:
    """Return cooperative steps with one kind of mask each."""
    size = Size(images=images, side=side)
    standard = Subject(partial(trained, kind="standard", **size), flops=images * expected("standard", side))
    masked = {
        name: Subject(
            partial(trained, kind="cooperative", masker=name, **size),
            flops=images * expected(f"cooperative, {name}", side),
        )
        for name in MASKERS
    }
    return {"standard": standard, **masked}


def variants(images: int, side: int, options: Options) -> dict[str, Subject]:
    """Return cooperative steps in other layouts and precisions; on a GPU also compiled, and recorded kernels."""
    size = Size(images=images, side=side)
    step = partial(trained, kind="cooperative", **size)
    eager = partial(Subject, flops=images * expected("cooperative", side))
    half = torch.bfloat16
    subjects = {
        "cooperative": eager(step),
        "contiguous": eager(partial(step, channels_last=False)),
        "bfloat16": eager(partial(step, precision=half), precision=half),
    }
    if torch.device(options.device).type != "cuda":
        return subjects
    plain = partial(Subject, flops=images * expected("bare", side))
    tried = {
        "compiled": eager(partial(step, compiled="default")),
        "compiled, bfloat16": eager(partial(step, compiled="default", precision=half), precision=half),
        "compiled, CUDA graphs": eager(partial(step, compiled="reduce-overhead")),
        "bare": plain(partial(bare, **size)),
        "bare, CUDA graph": plain(partial(bare, recorded=True, **size)),
    }
    return {**subjects, **tried}


def shortcuts(images: int, side: int) -> dict[str, Subject]:
    """Return cooperative steps with the options that make them cheaper and change the numbers."""
    step = partial(trained, kind="cooperative", masker="targeted channels", images=images, side=side)
    rows: dict[str, str] = {"cooperative": "cooperative, targeted channels", **{name: name for name in OPTIONS}}
    return {
        name: Subject(partial(step, options=OPTIONS.get(name)), flops=images * expected(counted, side))
        for name, counted in rows.items()
    }


def largest_batches(options: Options, side: int) -> Table:
    """Find how many images fit into the memory of a GPU."""
    device, step = torch.device(options.device), partial(trained, side=side)
    builds = {
        "bare": partial(bare, side=side),
        "standard": partial(step, kind="standard"),
        "cooperative": partial(step, kind="cooperative"),
        "cooperative, bfloat16": partial(step, kind="cooperative", precision=torch.bfloat16),
    }
    rows = {name: (_largest_batch(build, device),) for name, build in builds.items()}
    return Table(f"largest batch that fits, {side}²", ("images",), rows, {"images": "{:,}"})


def _largest_batch(build: Callable[..., Step], device: torch.device) -> int:
    return largest(lambda images: fits(partial(build, images=images), device))


def matmuls(options: Options) -> dict[torch.dtype, float]:
    """Return the operations in a second that products of large matrices reach, by precision."""
    side = 256 if options.quick else 8192 if torch.device(options.device).type == "cuda" else 2048
    peaks = {}
    for precision in (torch.float32, torch.bfloat16):
        build = partial(matmul, side=side, precision=precision)
        one = alone(build, device=options.device, threads=options.threads, repeats=options.repeats)
        peaks[precision] = 2 * side**3 / min(one.seconds)
    return peaks


NOTES = (
    "Every subject has a process of its own, and they take turns; medians of wall time, and half the range of the "
    "middle half. *Bare* is plain PyTorch: encoder, decoupler, segmentation decoder, cross entropy and Adam. All are "
    "`channels_last`, and keep large blocks of memory on a CPU: in the first two tables all of them, in the others "
    "those of up to 32 MiB, by `tune_allocator()` as the cardiac example calls it. *bfloat16* is autocast to it, which "
    "changes the numbers. Peak: most bytes over those before the first step, resident ones on a CPU.",
    "*GFLOP/s* is the arithmetic of convolutions that `flops` works out, a mean over the paper's masks, by the median "
    "time; *of matmul* is its share of what a product of large matrices reaches at the same precision, with TF32 where "
    "convolutions may use it.",
    "*CUDA graph*: all kernels of the step are recorded once and launched together. A cooperative step draws its kind "
    "of mask on the host, so that only the parts between can be recorded, as `torch.compile` does. What does not run "
    "is named with its error.",
)


def _table(
    title: str, subjects: Mapping[str, Subject], *, options: Options, peaks: Mapping[torch.dtype, float]
) -> Table:
    working, failed = tried(subjects, options)
    measured = take_turns(working, device=options.device, threads=options.threads, repeats=options.repeats)
    rows = {
        name: (
            one.median,
            one.spread,
            _over("bare", one, measured),
            _over("standard", one, measured),
            one.peak / 1e9,
            *_rate(subjects[name], one, peaks),
        )
        for name, one in measured.items()
    }
    missing = {f"{name}: {error}": (None,) * len(COLUMNS) for name, error in failed.items()}
    return Table(title, COLUMNS, {**rows, **missing}, FORMATS)


def tried(subjects: Mapping[str, Subject], options: Options) -> tuple[dict[str, Subject], dict[str, str]]:
    """Return the subjects that run, and the errors of those that don't, of what depends on compilers and drivers."""
    working, failed = {}, {}
    for name, subject in subjects.items():
        if name.startswith("compiled") or name.endswith("CUDA graph"):
            try:
                alone(subject.build, device=options.device, threads=options.threads, repeats=1)
            except Exception as error:
                failed[name] = type(error).__name__
                continue
        working[name] = subject
    return working, failed


def _rate(subject: Subject, one: Measured, peaks: Mapping[torch.dtype, float]) -> tuple[float | None, float | None]:
    """Return operations in a second, in billions, and their share of the peak."""
    if subject.flops is None:
        return None, None
    rate = subject.flops / one.median
    return rate / 1e9, rate / peaks[subject.precision]


def _peak_table(peaks: Mapping[torch.dtype, float]) -> Table:
    rows = {str(precision).removeprefix("torch."): (peak / 1e9,) for precision, peak in peaks.items()}
    return Table("product of large matrices", ("GFLOP/s",), rows, {"GFLOP/s": "{:,.0f}"})


def _over(yardstick: str, one: Measured, measured: Mapping[str, Measured]) -> float | None:
    return one.median / measured[yardstick].median if yardstick in measured else None
