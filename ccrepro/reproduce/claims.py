"""The paper's claims, each with the runs that it needs and a test on their records: holds, fails or not enough runs.

A claim is about the paper's data sets under the paper's settings. What other data or other settings say of it is shown
below that verdict and never replaces it.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ccrepro.data.registry import DATASETS
from ccrepro.recipes import RECIPES
from ccrepro.reproduce.records import Record, departs, printed
from ccrepro.reproduce.tables import counted, row_label

HOLDS, FAILS, OPEN = "holds", "fails", "not enough runs"
BEYOND = "stays open"  # more runs of this kind would not decide it
NOT_RUN = "no run yet"
RULE = (
    "Rule, fixed beforehand: one mean ACC is above another when their difference exceeds two standard errors of the "
    "difference, which takes two seeds or more of each; a number that the paper prints counts as exact. Then the claim "
    "*holds*; it *fails* when the difference exceeds them the other way; between these there are *not enough runs* to "
    "tell. A claim about growth compares each run with itself by the same rule. Over several data sets a claim holds "
    "when it holds on all, and fails when it fails on one. Only runs under the paper's own settings decide."
)


class Finding(NamedTuple):
    """What the runs of one data set say of a claim: the verdict, and the numbers that it rests on."""

    verdict: str
    numbers: str


Test = Callable[[list[Record]], Finding | None]  # None: nothing to say


class Claim(NamedTuple):
    """A claim: its sentence, where the paper makes it, the table or notebook that shows it, its test on the records of
    one data set and preset, the paper's data sets that it is about, the variants that the test needs, those that it
    takes into account where they were run, and the backbone that ``cc`` must have ("" for any)."""

    sentence: str
    where: str
    table: str
    test: Test
    datasets: tuple[str, ...]
    needs: tuple[str, ...] = ("cc",)
    also: tuple[str, ...] = ()
    backbone: str = ""


def compare(high: Sequence[float], low: Sequence[float] | float) -> str:
    """The verdict on "high is above low" by `RULE`. A single number is taken as exact."""
    high, low = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    if len(high) < 2 or (low.size < 2 and low.ndim):
        return OPEN
    error = math.sqrt(high.var(ddof=1) / len(high) + (low.var(ddof=1) / len(low) if low.ndim else 0))
    difference = high.mean() - low.mean()
    if abs(difference) <= 2 * error + 1e-12:  # 1e-12: the last bits of equal numbers may differ
        return OPEN
    return HOLDS if difference > 0 else FAILS


def combine(verdicts: Sequence[str]) -> str:
    """The verdict on several parts: it fails if one fails, and holds if all hold."""
    return FAILS if FAILS in verdicts else HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN


def acc(records: list[Record], variant: str) -> np.ndarray:
    """ACC of a variant's records, by seed."""
    return np.array([r["scores"]["acc"] for r in records if r["variant"] == variant])


def _finding(verdict: str, numbers: dict[str, np.ndarray]) -> Finding:
    """A verdict with its numbers, by variant or by what they are of, in words, and why, where there is no verdict."""
    why = ""
    if verdict == OPEN:
        why = "; not told apart" if all(len(values) > 1 for values in numbers.values()) else "; fewer than two seeds"
    return Finding(verdict, ", ".join(f"{row_label(name)} {counted(values)}" for name, values in numbers.items()) + why)


def above(*pairs: tuple[str, str]) -> Test:
    """A test: in each pair of variants, the first one's ACC is above the second one's."""

    def test(records: list[Record]) -> Finding:
        accs = {variant: acc(records, variant) for variant in dict.fromkeys(itertools.chain(*pairs))}
        return _finding(combine([compare(accs[high], accs[low]) for high, low in pairs]), accs)

    return test


CLASSICAL = ("kmeans-pixels", "spectral-pixels", "agglomerative-pixels", "nmf-pixels")


def above_reported(records: list[Record]) -> Finding | None:
    """CC's ACC is above the best that the paper prints for the 17 others, and above the classical methods that we ran.

    The reported numbers are of long trainings of large networks. Under other settings than the paper's, and on data for
    which it prints nothing, the claim stays open, unless a classical method is above CC.
    """
    own, paper = acc(records, "cc"), printed("2", "acc").drop("CC")
    lows = {name: values for name in CLASSICAL if len(values := acc(records, name))}
    verdicts = [compare(own, low) for low in lows.values()]
    if records[0]["preset"] == "paper":
        others = pd.to_numeric(paper[DATASETS[records[0]["dataset"]].title]).dropna()
        found = _finding(combine([*verdicts, *(compare(own, low) for low in others)]), {"cc": own, **lows})
        return found._replace(numbers=f"against {others.idxmax()}, reported {others.max()}: {found.numbers}")
    if not lows:
        return None
    small = _finding(combine(verdicts), {"cc": own, **lows})
    numbers = f"above the classical methods alone: {small.verdict}. {small.numbers}"
    return Finding(FAILS if small.verdict == FAILS else BEYOND, numbers)


def grows(by_epoch: Callable[[Record], dict[str, Sequence[float]]]) -> Test:
    """A test: each of the numbers that ``by_epoch`` finds in a run is larger at its end than at its start."""

    def test(records: list[Record]) -> Finding:
        runs, numbers, verdicts = [by_epoch(r) for r in records], {}, []
        for name in runs[0]:
            first, last = np.array([(run[name][0], run[name][-1]) for run in runs]).T
            verdicts.append(compare(last - first, 0.0))
            numbers |= {f"{name} at the start": first, f"{name} at the end": last}
        return _finding(combine(verdicts), numbers)

    return test


def gaps(record: Record) -> dict[str, np.ndarray]:
    """For each head, by how much its positive pairs are more alike than its negative ones, by epoch."""
    history, heads = record["history"], ("instance", "cluster")
    return {f"gap of the {h} head": np.subtract(history[f"{h}_positive"], history[f"{h}_negative"]) for h in heads}


def streaming(records: list[Record]) -> Finding | None:
    """In all runs whose stream was measured, each image gets the same cluster alone and in a batch."""
    same = np.array([min(r["streaming"]["assign"]["same"]) for r in records if "streaming" in r])
    verdict = OPEN if len(same) < 2 else HOLDS if same.min() == 1 else FAILS
    found = Finding(verdict, f"share of equal assignments at batch sizes from 1: {counted(same)}")
    return found if len(same) else None


ALL, ABLATED, LARGE = tuple(RECIPES["paper"]), ("cifar10", "imagenet10"), ("imagenet10",)
CLAIMS = (
    Claim("CC is above all 17 other methods", "Table 2", "main_results", above_reported, ALL, also=CLASSICAL),
    Claim("Two augmented views are above one, and one is above none", "Table 3", "augmentation",
          above(("cc", "views-one"), ("views-one", "views-none")), ABLATED, ("cc", "views-one", "views-none")),
    Claim("Both heads together are above each alone", "Table 4", "heads",
          above(("cc", "instance-only"), ("cc", "cluster-only")), ABLATED, ("cc", "instance-only", "cluster-only")),
    Claim("Two decoupled heads are above one shared head", "text, no table", "heads",
          above(("cc", "shared-head")), ABLATED, ("cc", "shared-head")),
    Claim("The entropy term is needed: without it assignments may collapse", "text, no table", "heads",
          above(("cc", "no-entropy")), ABLATED, ("cc", "no-entropy")),
    Claim("ResNet34 is above ResNet18", "Table 5", "backbones",
          above(("cc", "resnet18")), ("cifar10",), ("cc", "resnet18"), backbone="resnet34"),
    Claim("Positive pairs part from negative pairs in both spaces as training goes on", "Fig. 3", "evolution",
          grows(gaps), LARGE),
    Claim("The cluster assignment gets better over the epochs", "Fig. 4", "evolution",
          grows(lambda record: {"NMI": [at["scores"]["nmi"] for at in record["evolution"]]}), LARGE),
    Claim("An image's cluster does not depend on the images it comes with", "§3.4", "streaming", streaming, ALL),
)  # fmt: skip


def findings(claim: Claim, records: list[Record]) -> dict[tuple[str, str, str], Finding]:
    """What the runs of each preset, data set and departure from the recipe say, where all that it needs was run: once
    under the paper's own settings, with two seeds or more under others."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if r["variant"] in claim.needs + claim.also and (
            r["variant"] != "cc" or claim.backbone in ("", r["config"]["backbone"])
        ):
            groups.setdefault((r["preset"], r["dataset"], departs(r)), []).append(r)
    found = {}
    for key, own in groups.items():
        runs = Counter(r["variant"] for r in own)
        if min(runs[variant] for variant in claim.needs) >= (1 if key[0] == "paper" else 2):
            found[key] = claim.test(own)
    return {key: finding for key, finding in found.items() if finding}


def judged(claim: Claim, records: list[Record]) -> tuple[str, dict[str, Finding | None], dict[str, Finding]]:
    """The verdict of the runs under the paper's settings, their findings by data set, and those of each other kind of
    run, by its name."""
    found = findings(claim, records)
    own = {DATASETS[d].title: found.pop(("paper", d, ""), None) for d in claim.datasets}
    others = {
        f"{DATASETS[dataset].title} ({preset}{departing and f', {departing}'})": at
        for (preset, dataset, departing), at in found.items()
    }
    run = any(r["preset"] == "paper" and r["dataset"] in claim.datasets for r in records)
    return combine([at.verdict if at else OPEN for at in own.values()]) if run else NOT_RUN, own, others


def told(records: list[Record], about: str) -> str:
    """What the runs say of the claims of one table or figure, as a list in Markdown."""
    lines = []
    for claim in (claim for claim in CLAIMS if claim.table == about):
        verdict, own, others = judged(claim, records)
        lines.append(f"**{claim.sentence}** ({claim.where})\n")
        lines += [
            f"- {kind}: **{at.verdict}**. {at.numbers[:1].upper()}{at.numbers[1:]}." for kind, at in others.items()
        ]
        numbers = "".join(f" {title}: {at.numbers}." for title, at in own.items() if at)
        lines.append(f"- Under the paper's own settings: **{verdict}**.{numbers}\n")
    return "\n".join([*lines, "`docs/results.md` has the rule, which was fixed before any run."])


def overview(records: list[Record]) -> pd.DataFrame:
    """One row for each claim: the verdict under the paper's settings, and those of the other kinds of run."""
    lines = []
    for claim in CLAIMS:
        (verdict, _, others), elsewhere = judged(claim, records), {}
        for kind, at in others.items():
            elsewhere.setdefault(at.verdict, []).append(kind)
        text = "<br>".join(f"**{found}**: {', '.join(kinds)}" for found, kinds in sorted(elsewhere.items()))
        lines.append((f"{claim.sentence} ({claim.where})", verdict, text or "–"))
    return pd.DataFrame(lines, columns=["claim", "the paper's settings", "other runs"])
