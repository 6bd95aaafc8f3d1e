"""What methods gain over the network alone under the same augmentation: a figure, a panel for each kind of images.

Folders of runs or of results, of one kind of images or of both: only their scores and settings are read. A method is
compared with `plain` under its own `--augment`, which one of the folders has.

    python examples/draw_gains.py runs/unet runs/unet-gin
    python examples/draw_gains.py runs/unet-gin runs/nuclei-gin --methods default --output gains.png
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.data.frame import DataError
from study.domains import DOMAINS, domain_of
from study.methods.augmentations import NONE
from study.report.compare_runs import additions, joined, scores_of, settings_of
from study.report.comparison import SHIFTED, Difference, compare, comparison_grid
from study.report.figures import hues
from study.report.tables import markdown
from study.run.scores import AVERAGE, PART, Score

Groups: TypeAlias = dict[tuple[str, str, Any], list[tuple[Path, list[Score]]]]
"""Runs and their Dice, by kind of images, augmentation and how many images train."""
PLAIN = "plain"
TITLES = {SHIFTED: "average\nof shifts"} | {domain.clean: f"{domain.clean}\n(in-domain)" for domain in DOMAINS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the differences and draw them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders of runs or of results")
    about = "draw only these (default: all but plain)"
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=about)
    about = "draw only what was trained for as much time as plain, by --equal-time"
    parser.add_argument("--equal-time", action="store_true", help=about)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to draw them, as a PNG")
    options = parser.parse_args(arguments)
    try:
        groups = _alike(options.runs)
        panels = _gains_in(groups, options.methods, equal_time=options.equal_time)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in _differing_settings(groups):
        print(f"note: {line}", file=sys.stderr)
    for title, differences in panels.items():
        print(f"{title}: Dice, less that of {PLAIN} with the same augmentation\n")
        print(f"{markdown(comparison_grid(differences))}\n")
    if options.output is not None:
        try:
            gains_figure(panels).savefig(options.output, dpi=200, metadata={"Software": ""}, format="png")
        except OSError as error:
            print(f"error: {options.output}: cannot be written to ({error.strerror}).", file=sys.stderr)
            return 2
    return 0


def gains_of(
    runs: Sequence[Path], methods: Sequence[str] | None = None, *, equal_time: bool = False
) -> dict[str, list[Difference]]:
    """Compare each method with `plain` under the same augmentation, for each kind of images.

    Args:
        runs: Folders of runs.
        methods: Which methods, by their names; all but `plain` by default.
        equal_time: Only those of runs by `--equal-time`.

    Returns:
        Differences of Dice, by the name of the kind of images; methods are called "default on gin".

    Raises:
        DataError: A folder cannot be read, an augmentation lacks `plain`, or nothing is left to compare.
    """
    return _gains_in(_alike(runs), methods, equal_time=equal_time)


def _gains_in(groups: Groups, methods: Sequence[str] | None, *, equal_time: bool) -> dict[str, list[Difference]]:
    panels: dict[str, list[Difference]] = {}
    sizes = Counter(domain for domain, _ in {(domain, size) for domain, _, size in groups})
    for (domain, augmentation, size), alike in groups.items():
        scores, added = joined(alike), additions([run for run, _ in alike])
        timed = [(run, its_own) for run, its_own in alike if settings_of(run).get("equal_time")]
        in_equal_time = {score.method + added[run] for run, its_own in timed for score in its_own}
        if PLAIN not in {score.method for score in scores}:
            folders = ", ".join(str(run) for run, _ in alike)
            raise DataError(
                f"{folders}: {PLAIN} under --augment {augmentation} is not there. Pass the folder that has it too."
            )
        found = panels.setdefault(domain, [])
        for difference in compare(scores, PLAIN):
            name = difference.method.partition(",")[0]
            if (methods is None or name in methods) and (not equal_time or difference.method in in_equal_time):
                called = _called(difference.method, augmentation)
                found.append(difference._replace(method=f"{called}, {size} images" if sizes[domain] > 1 else called))
    panels = {name: found for name, found in panels.items() if found}
    if not panels:
        raise DataError(f"nothing to compare with {PLAIN}. Pass folders with other methods, or other --methods.")
    return panels


def gains_figure(panels: Mapping[str, Sequence[Difference]]) -> Figure:
    """Plot mean differences of Dice, in points, with their intervals; a tick for each draw.

    Args:
        panels: Of one metric, by the title of their panel, each method once a column; the stage that comes first is
            plotted. A method has the same colour in all panels.
    """
    methods = list(dict.fromkeys(one.method for differences in panels.values() for one in differences))
    colours = hues(methods)
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.0, 3.1 * len(panels) + 0.3), layout="constrained")
        for axes, (title, differences) in zip(
            figure.subplots(len(panels), squeeze=False).flat, panels.items(), strict=True
        ):
            _draw(axes, differences, methods, colours)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_ylabel(f"points of Dice over {differences[0].reference}")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", frameon=False, ncols=3, fontsize=9)
    return figure


def _draw(axes: Axes, differences: Sequence[Difference], methods: Sequence[str], colours: Mapping[str, str]) -> None:
    """Fill one panel."""
    stage = differences[0].stage
    shown = [one for one in differences if one.stage == stage and one.column != AVERAGE and PART not in one.column]
    columns = list(dict.fromkeys(one.column for one in shown))
    clean = domain_of(columns).clean
    columns.sort(key=lambda name: (name != clean, name == SHIFTED))  # in-domain first, the average last
    step = min(0.22, 0.8 / len(methods))
    axes.axhline(0, color="#444444", linewidth=1)
    for one in shown:
        x = columns.index(one.column) + step * (methods.index(one.method) - (len(methods) - 1) / 2)
        colour = colours[one.method]
        if one.low is not None and one.high is not None:
            axes.plot((x, x), (100 * one.low, 100 * one.high), color=colour, linewidth=2, solid_capstyle="round")
        label = one.method if one.column == columns[0] else None
        axes.plot(x, 100 * one.mean, "o", color=colour, markersize=6, label=label)
        axes.plot([x] * len(one.draws), [100 * value for value in one.draws.values()], "_", color=colour, alpha=0.6)
    axes.set_xticks(range(len(columns)), [TITLES.get(name, name.removeprefix("Rand")) for name in columns])


def _alike(runs: Sequence[Path]) -> Groups:
    """Read the Dice of runs, and sort it by kind of images, augmentation and how many images train, if that is said."""
    found: Groups = {}
    for run in runs:
        scores = [score for score in scores_of(run) if score.metric == "dice"]
        settings, kind = settings_of(run), domain_of(score.column for score in scores).name
        key = kind, str(settings.get("augment", NONE)), settings.get("train_size")
        found.setdefault(key, []).append((run, scores))
    return found


_APART = {"augment", "train_size", "equal_time", "start", "data", "split", "statistics", "preset"}
"""Settings by which runs are told apart, or that change nothing about training."""
_TUNED = {"iterations", "epochs", "learning_rate", "warm_up", "schedule"}
"""Settings that fine-tuning has others of."""


def _differing_settings(groups: Groups) -> list[str]:
    """Say of runs that are compared in which further settings they differ: what a method gains may be theirs."""
    lines = []
    for alike in groups.values():
        first, *others = (run for run, _ in alike)
        expected = settings_of(first)
        for run in others:
            own = settings_of(run)
            passed_over = _APART | (_TUNED if own.get("start") or expected.get("start") else set())
            names = [name for name in {**expected, **own} if name not in passed_over]
            differing = [name for name in names if own.get(name) != expected.get(name)]
            if own and expected and differing:
                told = ", ".join(f"{name} {expected.get(name)} and {own.get(name)}" for name in differing)
                lines.append(f"{first} and {run} differ in {told}, which may be what a method gains.")
    return lines


def _called(method: str, augmentation: str) -> str:
    return method if augmentation == NONE else f"{method} on {augmentation}"
