"""One figure of what methods gain over a reference, column by column."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from study.domains import DOMAINS, domain_of
from study.report.comparison import SHIFTED, Difference
from study.report.figures import hues
from study.run.scores import AVERAGE, PART

TITLES = {SHIFTED: "average\nof shifts"} | {domain.clean: f"{domain.clean}\n(in-domain)" for domain in DOMAINS}


def gains_figure(differences: Sequence[Difference], title: str = "") -> Figure:
    """Plot mean differences of Dice, in points, with their intervals; a small dot for each draw.

    Args:
        differences: Of one metric, each method once a column; the stage that comes first is plotted.
        title: What was trained and tested.
    """
    stage = differences[0].stage
    shown = [one for one in differences if one.stage == stage and one.column != AVERAGE and PART not in one.column]
    columns = list(dict.fromkeys(one.column for one in shown))
    domain = domain_of(columns)
    columns.sort(key=lambda name: (name != domain.clean, name == SHIFTED))  # in-domain first, the average last
    methods = list(dict.fromkeys(one.method for one in shown))
    colours = hues(methods)
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="#444444", linewidth=1)
        for one in shown:
            offset = 0.22 * (methods.index(one.method) - (len(methods) - 1) / 2)
            x = columns.index(one.column) + offset
            colour = colours[one.method]
            if one.low is not None and one.high is not None:
                axes.plot((x, x), (100 * one.low, 100 * one.high), color=colour, linewidth=2, solid_capstyle="round")
            label = one.method if one.column == columns[0] else None
            axes.plot(x, 100 * one.mean, "o", color=colour, markersize=7, label=label)
            axes.plot([x] * len(one.draws), [100 * value for value in one.draws.values()], "_", color=colour, alpha=0.6)
        axes.set_xticks(range(len(columns)), [TITLES.get(name, name.removeprefix("Rand")) for name in columns])
        axes.set_ylabel(f"points of Dice over {shown[0].reference}")
        axes.set_title(title or f"{stage}: mean and 95 % interval over {domain.case}s; ticks are draws", fontsize=9)
        axes.legend(frameon=False, ncols=len(methods), fontsize=9)
    return figure
