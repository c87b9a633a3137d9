import numpy as np
import pytest
from records import record, records

from ccrepro import claims
from ccrepro.claims import FAILS, HOLDS, OPEN

BY_ID = {claim.id: claim for claim in claims.CLAIMS}


def line(made, claim, row=0):
    frame = claims.table(made)
    start = frame.index[frame.claim == BY_ID[claim].sentence][0]
    return frame.loc[start + row]


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], HOLDS),
        ([0.8, 0.81, 0.82], [0.9, 0.91, 0.92], FAILS),
        ([0.7, 0.9, 0.8], [0.75, 0.85, 0.79], OPEN),
        ([0.9], [0.8, 0.81], OPEN),
        ([0.9, 0.91], [], OPEN),
        ([], 0.5, OPEN),
        ([0.9, 0.9], [0.8, 0.8], HOLDS),
        ([0.9, 0.9], [0.9, 0.9], OPEN),
        ([0.79, 0.81], 0.75, HOLDS),  # a standard error of .01
        ([0.79, 0.81], 0.781, OPEN),
        ([0.79, 0.81], 0.83, FAILS),
    ],
)
def test_order_is_judged_by_the_rule(high, low, verdict):
    assert claims.compare(high, low) == verdict


def test_order_turns_at_two_standard_errors():
    rng = np.random.default_rng(0)
    high, low = rng.normal(0.8, 0.02, 4), rng.normal(0.7, 0.05, 6)
    error = np.sqrt(high.var(ddof=1) / 4 + low.var(ddof=1) / 6)
    low += high.mean() - low.mean() - 2 * error
    assert claims.compare(high, low - 1e-6) == HOLDS
    assert claims.compare(high, low + 1e-6) == OPEN


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [([HOLDS, HOLDS], HOLDS), ([HOLDS, OPEN], OPEN), ([OPEN, FAILS, HOLDS], FAILS), ([], OPEN)],
)
def test_parts_make_a_whole(verdicts, whole):
    assert claims.combine(verdicts) == whole


@pytest.mark.parametrize(
    ("claim", "accs", "verdict"),
    [
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8], "views_none": [0.2, 0.2]}, HOLDS),
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8], "views_none": [0.85, 0.85]}, FAILS),
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8]}, OPEN),
        ("heads", {"cc": [0.9, 0.9], "instance_only": [0.8, 0.8], "cluster_only": [0.85, 0.85]}, HOLDS),
        ("heads", {"cc": [0.9, 0.9], "instance_only": [0.95, 0.95], "cluster_only": [0.85, 0.85]}, FAILS),
        ("decoupled", {"cc": [0.9, 0.9], "shared_head": [0.8, 0.8]}, HOLDS),
        ("entropy", {"cc": [0.9, 0.9], "no_entropy": [0.95, 0.95]}, FAILS),
    ],
)
def test_ablations_decide_their_claims_on_the_papers_data_only(claim, accs, verdict):
    paper = [r for d in ("cifar10", "imagenet10") for r in records(d, "paper", **accs)]
    assert line(paper, claim).verdict == verdict
    part = records("cifar10", "paper", **accs)
    assert line(part, claim).verdict == (FAILS if verdict == FAILS else OPEN)
    digits = records("digits", "demo", **accs)
    assert line(digits, claim).verdict == OPEN
    beside = line(digits, claim, row=1)
    assert (beside["data"], beside.verdict) == ("Digits (not of the paper)", verdict)
    fast = records("cifar10", "fast", **accs)
    assert line(fast, claim).verdict == OPEN
    assert line(fast, claim, row=1)["data"] == "CIFAR-10 (profile fast)"


def test_cc_must_beat_the_best_reported_method_and_the_baselines_we_ran():
    above = records("cifar10", "paper", cc=[0.70, 0.70], kmeans_pixels=[0.2, 0.2])
    found = claims.findings(BY_ID["best"], above)[("paper", "cifar10")]
    assert found.verdict == HOLDS
    assert "best reported PICA 0.696" in found.numbers
    assert "kmeans-pixels 0.200" in found.numbers
    assert line(above, "best").verdict == OPEN  # five data sets are missing
    below_pica = records("cifar10", "paper", cc=[0.69, 0.69])
    assert line(below_pica, "best").verdict == FAILS
    below_ours = records("cifar10", "paper", cc=[0.70, 0.70], nmf_pixels=[0.8, 0.8])
    assert line(below_ours, "best").verdict == FAILS


def test_on_other_data_cc_is_held_against_all_classical_methods():
    accs = {name.replace("-", "_"): [0.5, 0.5] for name in claims.CLASSICAL}
    assert line(records(cc=[0.9, 0.9], **accs), "best", row=1).verdict == HOLDS
    accs.pop("nmf_pixels")
    assert line(records(cc=[0.9, 0.9], **accs), "best", row=1).verdict == OPEN


def test_the_backbones_claim_asks_for_a_resnet34():
    made = records("cifar10", "paper", cc=[0.8, 0.8], resnet18=[0.7, 0.7])
    assert line(made, "backbone").verdict == OPEN
    for r in made:
        r["config"] = {"backbone": {"cc": "resnet34"}.get(r["variant"], r["variant"])}
    assert line(made, "backbone").verdict == HOLDS


def trained(seed, instance, cluster, nmi):
    """A record whose gaps of cosines and NMI go from the first number to the second."""
    history = {"epoch": [1, 2]}
    for head, ends in (("instance", instance), ("cluster", cluster)):
        history |= {f"{head}_positive": [0.5 + ends[0], 0.5 + ends[1]], f"{head}_negative": [0.5, 0.5]}
    evolution = [{"epoch": e, "scores": {"nmi": value}} for e, value in enumerate(nmi)]
    return record("cc", 0.9, seed, history=history, evolution=evolution)


def test_growth_compares_each_run_with_itself():
    apart = [trained(s, (0.1 * s, 0.1 * s + 0.05), (0, 0.3), (0.2 * s, 0.2 * s + 0.01 * (1 + s))) for s in range(3)]
    assert line(apart, "pairs", row=1).verdict == HOLDS
    assert line(apart, "sharpens", row=1).verdict == HOLDS
    assert "NMI first 0.200 ± 0.200 (3)" in line(apart, "sharpens", row=1).numbers
    one_head = [trained(s, (0.1, 0.2), (0.3, 0.1), (0.5, 0.1 * s)) for s in range(3)]
    assert line(one_head, "pairs", row=1).verdict == FAILS
    assert line(one_head, "sharpens", row=1).verdict == FAILS


@pytest.mark.parametrize(
    ("same", "verdict"), [([[1.0, 1.0], [1.0, 1.0]], HOLDS), ([[1.0, 1.0], [0.999, 1.0]], FAILS), ([[1.0]], OPEN)]
)
def test_online_needs_every_assignment_equal(same, verdict):
    made = [record("cc", 0.9, s, online={"assign": {"same": shares}}) for s, shares in enumerate(same)]
    assert line(made, "online", row=1).verdict == verdict


def test_every_claim_stands_without_any_run():
    frame = claims.table([])
    assert len(frame) == len(claims.CLAIMS)
    assert set(frame.verdict) == {OPEN}
    assert set(frame.numbers) == {"not run"}
    assert claims.table([], "heads").claim.tolist() == [c.sentence for c in claims.CLAIMS if c.table == "heads"]
