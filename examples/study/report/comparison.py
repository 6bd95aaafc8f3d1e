"""Is one method better than another? Paired differences over patients, with an interval and a test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from study.domains import CARDIAC, Domain, domain_of
from study.run.scores import AVERAGE, DISTANCES, METRICS, PART, Score

SHIFTED = "average (shifted)"
REFERENCES = ("plain", "standard")
"""The methods that others are compared with: the first of these that is there."""
RESAMPLES = 5000
_COMPARED = [name for name in METRICS if name != "confidence"]  # of which neither more nor less is better
_RARE = ("missed", "failed")

ABOUT = (
    "Patients are the unit: a patient's difference is the mean over the structures, phases and draws that both methods "
    "have a value for. Distances count where neither method missed the structure in any repetition, so that both are "
    "of the same volumes. Below are the mean over patients, its 95 % interval (percentile bootstrap over patients, "
    f"{RESAMPLES} resamples, seeded), and the two-sided p of a Wilcoxon signed-rank test. The paper's draws share "
    "their test patients, so more draws are not more patients: neither interval nor p says how training on others "
    "would change a difference, only the differences by draw do. Averages weigh columns alike and resample the "
    'patients of each data set apart; "shifted" are all columns but ACDC. p is not corrected for the number of rows. '
    "With fewer than six patients it cannot fall below 0.05. Where the reference has no shape prior, "
    "its network alone is what the stages of the others are compared with."
)


def about(domain: Domain) -> str:
    """Say what the numbers of a comparison are, to the reader of a report."""
    if domain is CARDIAC:
        return ABOUT
    case = domain.case
    return (
        f"The {case} is the unit: its difference is the mean over the draws, where both methods have a value. "
        "Distances count where neither method missed the structure. "
        f"Below are the mean over {case}s, its 95 % interval (percentile bootstrap over {case}s, {RESAMPLES} "
        "resamples, seeded), and the two-sided p of a Wilcoxon signed-rank test. "
        f"The draws share their test {case}s, so more draws are not more {case}s: neither interval nor p says how "
        "training on others would change a difference, only the differences by draw do. "
        f'Averages weigh columns alike and resample the {case}s of each apart; "shifted" are all columns but '
        f"{domain.clean}. p is not corrected for the number of rows."
    )


class Difference(NamedTuple):
    """One line of `comparison.csv`: how a method differs from the reference, `method - reference`.

    Attributes:
        patients: How many patients have a value of both methods.
        mean: Mean over patients; of several columns, the mean of theirs.
        low, high: The mean's 95 % interval; None with a single patient of a data set.
        p: Of a Wilcoxon signed-rank test over patients; None if no patient differs.
        draws: The difference in each draw that has all columns.
        better: In how many of those the method is better than the reference.
    """

    method: str
    reference: str
    stage: str
    column: str
    metric: str
    patients: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    draws: dict[int, float]
    better: int

    @property
    def clear(self) -> bool:
        """Whether interval and test agree that there is a difference: 0 is outside the one, and p below 0.05."""
        if self.low is None or self.high is None or self.p is None:
            return False
        return not self.low <= 0 <= self.high and self.p < 0.05

    def as_line(self) -> list[object]:
        """Return the fields as CSV has them: draws as "0:0.1 1:-0.2", None as nothing."""
        fields = self._asdict() | {"draws": " ".join(f"{draw}:{value}" for draw, value in self.draws.items())}
        return [*fields.values()]


_Key = tuple[str, int, str, str, str]  # column, draw, patient, phase, structure


class _Pair(NamedTuple):
    """The difference of two scores that agree in everything but the method."""

    column: str
    draw: int
    patient: str
    value: float


def reference_of(scores: Iterable[Score]) -> str:
    """Name the method that others are compared with: the network alone where it was trained, else standard training."""
    methods = {score.method for score in scores}
    return next((name for name in REFERENCES if name in methods), REFERENCES[-1])


def compare(
    scores: Sequence[Score], reference: str | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """Compare every method with the reference, for each metric, stage and column, and over columns.

    What a shape prior corrected is compared with the network alone where the reference has no shape prior. The share of
    structures missed, and that of total failures, are compared only where there is one.

    Args:
        scores: Of all methods; only what both of a pair have is used.
        reference: The method to compare with, `reference_of` them if None; without scores of it there is nothing to
            compare.
        resamples: How often patients are drawn anew for the interval.
        seed: Of these draws; every interval starts from it, so that none depends on what else is compared.
    """
    reference = reference or reference_of(scores)
    domain = domain_of(score.column for score in scores)
    groups: dict[tuple[str, str], dict[str, dict[_Key, float]]] = defaultdict(lambda: defaultdict(dict))
    for s in scores:
        groups[s.metric, s.stage][s.method][s.column, s.draw, s.patient, s.phase, s.structure] = s.value
    for metric, stage in product(DISTANCES, {stage for _, stage in groups}):
        for method, values in groups.get((metric, stage), {}).items():
            missed = groups["missed", stage][method]
            groups[metric, stage][method] = {key: value for key, value in values.items() if not missed.get(key)}
    found = []
    for metric, stage in product(_COMPARED, dict.fromkeys(stage for _, stage in groups)):
        theirs = groups[metric, stage if reference in groups["dice", stage] else _alone(stage)].get(reference, {})
        methods = {name: values for name, values in groups[metric, stage].items() if name != reference}
        if metric in _RARE and not any(any(values.values()) for values in (theirs, *methods.values())):
            continue
        for method, values in methods.items():
            pairs = _pairs(values, theirs)
            tested = dict.fromkeys(column for column, *_ in groups["dice", stage][method])
            for name, columns in _rows(tested, domain).items():
                if all(column in pairs for column in columns):
                    chosen = [pair for column in columns for pair in pairs[column]]
                    numbers = _numbers(chosen, domain, METRICS[metric].higher_is_better, resamples, seed)
                    found.append(Difference(method, reference, stage, name, metric, **numbers))
    return found


def _alone(stage: str) -> str:
    """What the stage of the network alone is called: "Unet" of "Unet+STN"."""
    return stage.partition("+")[0]


def _pairs(ours: Mapping[_Key, float], theirs: Mapping[_Key, float]) -> dict[str, list[_Pair]]:
    """The differences by column, of what both have."""
    pairs = defaultdict(list)
    for key, value in ours.items():
        if key in theirs:
            column, draw, patient, *_ = key
            pairs[column].append(_Pair(column, draw, patient, value - theirs[key]))
    return pairs


def _rows(tested: Collection[str], domain: Domain) -> dict[str, list[str]]:
    """The rows of a comparison and the columns that each is about: single ones, averages, then parts of test sets."""
    whole = [column for column in tested if PART not in column]
    shifted = [column for column in whole if column != domain.clean]
    parts = sorted(column for column in tested if PART in column)
    rows = {column: [column] for column in whole}
    rows |= {SHIFTED: shifted, AVERAGE: whole}
    rows |= {part: [part] for part in parts}
    return {name: columns for name, columns in rows.items() if columns}


def _numbers(
    pairs: Sequence[_Pair], domain: Domain, higher_is_better: bool, resamples: int, seed: int
) -> dict[str, Any]:
    cohorts = _cohorts(pairs, domain)
    per_patient = np.ma.concatenate([cohort.mean(axis=1) for cohort in cohorts]).compressed()
    low, high = _interval(cohorts, resamples, seed)
    draws = _by_draw(pairs, domain)
    return {
        "patients": len(per_patient),
        "mean": _mean(cohorts),
        "low": low,
        "high": high,
        "p": float(wilcoxon(changed).pvalue) if len(changed := per_patient[per_patient != 0]) else None,
        "draws": draws,
        "better": sum(value > 0 if higher_is_better else value < 0 for value in draws.values()),
    }


def _cohorts(pairs: Iterable[_Pair], domain: Domain) -> list[np.ma.MaskedArray[Any, Any]]:
    """The patients' differences [patient, column] of each data set, masked where a patient has none.

    Corrupted columns show the patients of the clean one; every other column has patients of its own, even if they have
    the same names.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for pair in pairs:
        cohort = domain.clean if pair.column in domain.artefacts else pair.column
        found[cohort][pair.patient][pair.column].append(pair.value)
    tables = []
    for patients in found.values():
        columns = dict.fromkeys(column for values in patients.values() for column in values)
        lines = [[fmean(values[c]) if c in values else np.nan for c in columns] for values in patients.values()]
        tables.append(np.ma.masked_invalid(lines))
    return tables


def _mean(cohorts: Sequence[np.ma.MaskedArray[Any, Any]]) -> float:
    """Average over patients within each column, then over columns."""
    return float(np.ma.concatenate([cohort.mean(axis=0) for cohort in cohorts]).mean())


def _interval(
    cohorts: Sequence[np.ma.MaskedArray[Any, Any]], resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % percentile bootstrap interval of `_mean`, patients drawn within each cohort."""
    if min(map(len, cohorts)) < 2:
        return None, None
    random = np.random.default_rng(seed)
    columns = []
    for cohort in cohorts:
        drawn = random.integers(len(cohort), size=(resamples, len(cohort)))
        columns.append(cohort[drawn].mean(axis=1))
    low, high = np.percentile(np.ma.concatenate(columns, axis=1).mean(axis=1).compressed(), (2.5, 97.5))
    return float(low), float(high)


def _by_draw(pairs: Sequence[_Pair], domain: Domain) -> dict[int, float]:
    """The mean difference in every draw that has all columns."""
    columns, draws = {pair.column for pair in pairs}, defaultdict(list)
    for pair in pairs:
        draws[pair.draw].append(pair)
    whole = {draw: chosen for draw, chosen in sorted(draws.items()) if {pair.column for pair in chosen} == columns}
    return {draw: _mean(_cohorts(chosen, domain)) for draw, chosen in whole.items()}


def comparison_grid(differences: Iterable[Difference]) -> list[list[str]]:
    """Lay differences out as text, headings first."""
    head = ["method", "stage", "column", "patients", "difference", "95 % interval", "p", "by draw", "better in"]
    return [head, *map(_line, differences)]


def _line(row: Difference) -> list[str]:
    digits = METRICS[row.metric].digits
    return [
        *(row.method, row.stage, row.column, str(row.patients), f"{row.mean:+.{digits}f}"),
        "-" if row.low is None else f"{row.low:+.{digits}f} to {row.high:+.{digits}f}",
        "-" if row.p is None else f"{row.p:.2g}",
        ", ".join(f"{value:+.{digits}f}" for value in row.draws.values()),
        f"{row.better} of {len(row.draws)} draws",
    ]
