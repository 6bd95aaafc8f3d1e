"""Train with and without latent-space hard examples on cardiac MR, then test on artefacts and on other scanners.

On a generated phantom, in minutes on two cores; or the paper's protocol on real data, on a GPU:

    python examples/acdc_cooperative.py
    python examples/acdc_cooperative.py --acdc DIR --mnms DIR --preset paper

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods standard` here and `--methods cooperative` there; the table shows
all that are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from cardiac.batches import Batch, Timed, TrainingBatches, iterations_per_pass, middle_slices, validation_batches
from cardiac.cache import Cache, user_cache
from cardiac.callbacks import Ramp, SaveOften
from cardiac.cases import Cases
from cardiac.configuration import read_arguments, to_toml
from cardiac.corruptions import PARAMETERS
from cardiac.data import DataError
from cardiac.hardness import dice_of_masked
from cardiac.memory import memory_advice
from cardiac.methods import GROUPS, HARD_LOSSES, METHODS, chosen
from cardiac.metrics import Score, evaluate
from cardiac.models import PAPERS, Network
from cardiac.moments import FOLDER, Moments
from cardiac.outputs import Outputs
from cardiac.page import PAGE, environment, write_page
from cardiac.phantom import cached_phantom
from cardiac.progress import Progress
from cardiac.protocol import PRESETS, Preset
from cardiac.published import read_published
from cardiac.report import AVERAGE, Row, curves_figure, save_figure, write_report
from cardiac.study import Sources, Study
from matplotlib.figure import Figure
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latentaug import Callback, CooperativeModel, CooperativeTrainer, PerStep, tune_allocator
from latentaug.callbacks import default_callbacks
from latentaug.optimization import Precision
from latentaug.visualize import draw_hard_examples

DEFAULTS: dict[str, Any] = {
    "preset": "quick",
    "methods": ["standard", "cooperative"],
    "external": [],
    "model": PAPERS,
    "layers": [],
    "depths": [],
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "seed": 0,
    "resume": False,
    "no_cache": False,
}
"""What settings are that no flag, file or preset says; those that aren't here are None."""
TAKEN = {"ACDC", AVERAGE, *PARAMETERS}
"""Columns of the table that no further test set may be called."""
ROUNDS = 5
"""A run is validated after every pass over its slices, and at least this often."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", sys.argv[0], *arguments])
    try:
        run(parse(arguments), command)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Refuse an argument."""
        raise DataError(f"{message}. See --help.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return all settings: of the command line, else of the file that it names, else of the preset, else defaults."""
    parser = make_parser()
    given = flags(parser, arguments)
    known = [name for name in vars(parser.parse_args([])) if name not in ("config", "resume")]
    read: dict[str, Any] = {}
    if (file := given.get("config")) is not None:
        from_file = read_arguments(file, known)
        try:
            read = flags(parser, from_file)
        except DataError as error:
            raise DataError(f"--config {file}: {error}") from None
    if {"layers", "depths"} & {*given}:  # two ways to say one thing: the command line's counts
        read = {name: value for name, value in read.items() if name not in ("layers", "depths")}
    settings = {**DEFAULTS, **read, **given}
    settings = {**dict.fromkeys(known), **asdict(PRESETS[settings["preset"]]), **settings}
    return argparse.Namespace(**{**settings, "methods": chosen(settings["methods"])})


def flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse arguments, and return only what is in them."""
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def make_parser() -> Parser:
    """Make the parser of the command line; every field of a preset is a flag."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--acdc", type=Path, metavar="DIR", help="ACDC, as released or preprocessed; without it a phantom is generated")
    add("--mnms", type=Path, metavar="DIR", help="M&Ms as released, a further test set")
    add("--external", action="extend", nargs="+", metavar="NAME=DIR", help="further test sets; repeatable")
    add("--split", type=Path, metavar="FILE", help='JSON with "train", "validation" and "test", lists of ACDC patients')
    add("--published", type=Path, metavar="FILE", help="CSV of further rows to show in the table")
    add("--cache", type=Path, metavar="DIR", help="keeps preprocessed volumes (default: the user's cache folder)")
    add("--no-cache", action="store_true", default=None, help="keep none")
    add("--preset", choices=PRESETS, help="what the flags below say unless given (default: quick)")
    add(
        "--methods",
        nargs="+",
        choices=[*METHODS, *GROUPS],
        metavar="METHOD",
        help=f"what to train: {', '.join(METHODS)}; or several, by {', '.join(GROUPS)} (default: standard cooperative)",
    )
    add("--model", metavar="NAME", help="FTN, the paper's, or such as smp:Unet:resnet34 (default: FTN)")
    add("--layers", nargs="+", metavar="NAME", help="layers to mask, such as 'encoder[5]' (default: as found)")
    add("--depths", nargs="+", type=int, metavar="N", help="the same by number: 5 4 means 'encoder[5]' 'encoder[4]'")
    add("--image-code", metavar="NAME", help="layer that images are reconstructed from (default: the deepest masked)")
    add("--encoder-weights", metavar="NAME", help="of a library's encoder, such as imagenet (default: random)")
    add("--config", type=Path, metavar="FILE", help="TOML with any of these settings by name; flags take precedence")
    add("--output", type=Path, metavar="DIR", help="results and checkpoints (default: a folder of its own below runs/)")
    add("--resume", action="store_true", default=None, help="refuse to start anew (default: go on from what is there)")
    add("--device", help=f"where to train (default: {DEFAULTS['device']})")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--seed", type=int, metavar="N", help="of weights, order, augmentation, noise and masks (default: 0)")
    group = parser.add_argument_group("preset")
    for field in fields(Preset):
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        else:
            group.add_argument(flag, type=type(field.default or 0), metavar="N", help=about)
    return parser


def run(options: argparse.Namespace, command: str) -> None:
    """Train what is not trained yet, test it, and write the table of everything in the output folder."""
    preset = Preset(**{field.name: getattr(options, field.name) for field in fields(Preset)})
    device = prepare(options)
    network = choose_network(options)
    sources = find(options)
    published = [] if options.published is None else read_published(options.published)
    configuration = describe(options, preset, network, sources)
    outputs = Outputs(options.output, configuration, defaults={**asdict(Preset()), **Network().settings})
    settings = to_toml(as_flags(options, outputs.folder))
    print(settings, flush=True)
    wanted = [(method, draw) for draw in range(preset.draws) for method in options.methods]
    if options.resume and not any(outputs.is_begun(*each) for each in wanted):
        raise DataError(f"--resume: {outputs.folder} has nothing to go on from. Correct --output, or leave it out.")
    if todo := [each for each in wanted if not outputs.is_done(*each)]:
        network.build(preset, {})  # what can't be built shows before anything is read
        cache = Cache(None if options.no_cache else options.cache or user_cache() / "frames")
        study = Study(sources, preset, options.split, cache)
        study.load(sorted({draw for _, draw in todo}))
        outputs.open(settings)
        for method, draw in todo:
            with memory_advice(preset, device):
                train_and_test(method, draw, study, outputs, device, network, command)
    conclude(outputs, published)


def prepare(options: argparse.Namespace) -> torch.device:
    """Check device, threads and seed, and set them up."""
    if not 0 <= options.seed < 2**32 or (options.threads is not None and options.threads < 1):
        raise DataError("--seed must be in 0..2^32 - 1, and --threads 1 or more. Change it or leave it out.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        device = torch.zeros(1, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--device {options.device} cannot be used ({reason}). Try --device cpu.") from None
    if device.type == "cpu" and tune_allocator():
        print("malloc keeps large blocks from now on: training steps are faster.")
    return device


def choose_network(options: argparse.Namespace) -> Network:
    """Return the network that the flags name, and which of its layers are masked."""
    if options.layers and options.depths:
        raise DataError("--layers and --depths both say what to mask. Leave one of them out.")
    if options.depths and options.model == PAPERS:
        raise DataError(f"--depths counts a library's encoder; the {PAPERS} has none. Pass --model, or --layers.")
    layers = options.layers or [f"encoder[{depth}]" for depth in options.depths]
    return Network(options.model, tuple(layers), options.image_code, options.encoder_weights)


def find(options: argparse.Namespace) -> Sources:
    """Return the data that the flags name, or a phantom of them."""
    if options.acdc is None:
        if options.mnms is not None or options.external or options.split is not None:
            raise DataError("--mnms, --external and --split need --acdc, to train on. Add it, or leave them out.")
        return Sources(*cached_phantom(), external={})
    external = {}
    for pair in options.external:
        name, sign, folder = pair.partition("=")
        if not (name and sign and folder) or not name.replace(" ", "").isalnum() or name in external:
            raise DataError(
                f"--external must be NAME=DIR, letters and digits, each name once; got {pair!r}. Correct it."
            )
        if name in TAKEN:
            raise DataError(f"--external {name}: the table has a column of that name. Call the test set otherwise.")
        external[name] = Path(folder)
    return Sources(options.acdc, options.mnms, external)


def as_flags(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all settings by their flags' names, those left out that say nothing; data folders from the root on."""
    settings = {name: value for name, value in vars(options).items() if name not in ("config", "resume", "output")}
    for name in ("acdc", "mnms", "published", "cache"):
        settings[name] = settings[name] and settings[name].resolve()
    settings["no_cache"] = settings["no_cache"] or None
    pairs = (pair.partition("=") for pair in settings["external"])
    settings["external"] = [f"{name}={Path(there).resolve()}" for name, _, there in pairs]
    return {name: value for name, value in settings.items() if value not in (None, [])} | {"output": folder.resolve()}


def describe(options: argparse.Namespace, preset: Preset, network: Network, sources: Sources) -> dict[str, Any]:
    """Return all that the numbers depend on; the number of draws is left out, as more of them can follow."""
    settings = {name: value for name, value in asdict(preset).items() if name != "draws"}
    folders = {"ACDC": sources.acdc, "M&Ms": sources.mnms, **sources.external}
    data = {name: str(folder.resolve()) for name, folder in folders.items() if folder is not None}
    if options.acdc is None:
        data = {name: f"{sources.acdc.parent.name}/{Path(folder).name}" for name, folder in data.items()}
    split = None if options.split is None else str(options.split)
    return {
        "preset": options.preset,
        **settings,
        **(network.settings if network != Network() else {}),
        "seed": options.seed,
        "data": data,
        "split": split,
    }


def train_and_test(
    method: str,
    draw: int,
    study: Study,
    outputs: Outputs,
    device: torch.device,
    network: Network,
    command: str,
) -> None:
    """Train one method on one draw, or go on with it, and test what validated best."""
    preset, seed, notes = study.preset, outputs.configuration["seed"] + draw, study.notes(draw)
    frames = study.training(draw)
    per_pass = iterations_per_pass(frames, preset.batch_size)
    iterations = preset.iterations or preset.epochs * per_pass
    print(f"\n{method}, draw {draw}: {iterations} iterations", *notes, sep="\n  ", flush=True)
    trainer = build_trainer(method, network, preset, iterations, seed, outputs.place(method, draw), device)
    loader = TrainingBatches(
        frames,
        side=preset.side,
        batch_size=preset.batch_size,
        length=max(1, min(per_pass, iterations // ROUNDS)),
        seed=seed,
        epoch=lambda: trainer.epoch,
        device=device,
    )
    validation = validation_batches(study.validation(draw), preset.side, device)
    refines = METHODS[method].refines
    timed = Timed(loader)
    trainer.callbacks.append(Moments(outputs.place(method, draw) / FOLDER, validation))
    trainer.fit(timed, validation, max_steps=iterations, monitor="refined_iou" if refines else "iou")
    if timed.share is not None:
        print(f"  data: {100 * timed.share:.1f} % of the training time", flush=True)
    try:
        trainer.load_best()
    except (OSError, ValueError) as error:
        raise DataError(f"{error}. Remove {outputs.place(method, draw)}, to start over.") from None
    model, tests = cast(CooperativeModel, trainer.model), study.tests(draw)
    seconds, started = sum(row["seconds"] for row in trainer.history), time.monotonic()
    stages, cases = network.stages if refines else network.stages[:1], Cases()
    with Progress("testing", sum(map(len, tests.values()))) as progress:
        sets = {name: progress.over(frames) for name, frames in tests.items()}
        scores = evaluate(model, sets, device, method=method, draw=draw, side=preset.side, stages=stages, watch=cases)
    cases.save(outputs.place(method, draw))
    print(f"  {iterations} iterations took {seconds:.0f} s, the tests {time.monotonic() - started:.0f} s.", flush=True)
    reconstruction = trainer.evaluate(validation)["reconstruction"] / model.weights["reconstruction"]
    own, hard = dice_of_masked(model, validation)
    print(f"  Validation: reconstruction error {reconstruction:.4f}, Dice {own:.3f}, from masked codes {hard:.3f}.")
    about = {
        "iterations": iterations,
        "seconds": round(seconds, 1),
        "data share": timed.share,
        "best step": trainer.history[trainer.best.epoch - 1]["step"],
        "reconstruction error": reconstruction,
        "validation dice": own,
        "hard dice": hard,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **environment(command),
        "notes": notes,
    }
    figure = hard_examples_figure(model, validation)
    save_figure(outputs.place(method, draw) / "hard_examples.png", figure, outputs.configuration)
    outputs.finish(method, draw, scores, about)


def build_trainer(
    method: str, network: Network, preset: Preset, iterations: int, seed: int, folder: Path, device: torch.device
) -> CooperativeTrainer:
    """Make a network and a trainer for it, alike for every method, where it was left if it was begun."""
    chosen_method = METHODS[method]
    torch.manual_seed(seed)
    model = network.build(preset, chosen_method.options).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate)
    callbacks: list[Callback] = [*default_callbacks(folder), SaveOften(folder / "last.pt")]
    if chosen_method.ramp:
        callbacks.append(Ramp(model, HARD_LOSSES, chosen_method.ramp * iterations))
    trainer = CooperativeTrainer(
        model,
        optimizer,
        scheduler=PerStep(learning_rate_schedule(optimizer, preset, iterations)),
        precision=cast(Precision, preset.precision),
        step=chosen_method.backward,
        seed=seed,
        folder=folder,
        callbacks=callbacks,
    )
    if (folder / "last.pt").exists():
        try:
            trainer.resume(folder / "last.pt")
        except ValueError as error:
            raise DataError(f"{error} Or remove {folder}, to start over.") from None
        print(f"  going on from iteration {trainer.global_step}", flush=True)
    return trainer


def learning_rate_schedule(optimizer: Optimizer, preset: Preset, iterations: int) -> LambdaLR:
    """Let the learning rate rise to its value, if there is a warm-up, and fall to 0 after it, if the preset says so."""
    warm_up = preset.warm_up or 0

    def factor(done: int) -> float:
        if done < warm_up:
            return (done + 1) / (warm_up + 1)
        fallen = (done - warm_up) / max(1, iterations - warm_up)
        return 1.0 if preset.schedule == "constant" else (1 + math.cos(math.pi * fallen)) / 2

    return LambdaLR(optimizer, factor)


def hard_examples_figure(model: CooperativeModel, volumes: Sequence[Batch]) -> Figure:
    """Draw how hard examples come about on the middle slices of the first volumes."""
    images, labels = middle_slices(volumes[:4])
    steps = model.explain(images, labels, generator=torch.Generator(images.device).manual_seed(0))
    return draw_hard_examples(images, labels, **steps._asdict())


def conclude(outputs: Outputs, published: Sequence[Row] = ()) -> None:
    """Write scores, table and curves of every training that is done in the folder, and print the table."""
    scores: list[Score] = []
    notes: list[str] = []
    curves = {}
    finished = [*outputs.finished(METHODS)]
    for name, draw, some, log, about in finished:
        scores += some
        took = f"{name}, draw {draw}: {about['iterations']} iterations in {about['seconds']} s."
        notes += [*about["notes"], METHODS[name].describe(name), took]
        untrained = () if METHODS[name].refines else ("refined", "shape")
        curves[f"{name}, draw {draw}"] = [
            {key: value for key, value in line.items() if not any(word in key for word in untrained)} for line in log
        ]
    if outputs.configuration["preset"] == "quick":
        notes.append("The quick preset is too short to rank methods on real data: it shows that everything works.")
    notes = list(dict.fromkeys(notes))
    table = write_report(outputs.folder, scores, outputs.configuration, notes, published=published)
    save_figure(outputs.folder / "curves.png", curves_figure(curves), outputs.configuration)
    write_page(outputs, finished, notes)
    print(f"\nDice, mean and spread over draws\n\n{table}\n", *notes, sep="\n")
    print(f"\nThe run as one page: {outputs.folder / PAGE}")
    print(f"Results: {outputs.folder / 'table.md'}; beside it scores.csv, figures, and a folder for each method")


if __name__ == "__main__":
    sys.exit(main())
