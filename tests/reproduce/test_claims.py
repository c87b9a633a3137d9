import numpy as np
import pytest
from made_records import record, records

from ccrepro.reproduce import claims
from ccrepro.reproduce.claims import FAILS, HOLDS, NOT_RUN, OPEN

IDS = ("best", "views", "heads", "decoupled", "entropy", "backbone", "pairs", "sharpens", "streaming")
BY_ID = dict(zip(IDS, claims.CLAIMS, strict=True))


def line(made, claim, row=0):
    """The verdict under the paper's settings, or, for row 1, the finding of the first other kind of run."""
    verdict, _, others = claims.judged(BY_ID[claim], made)
    return [*others.items()][row - 1][1] if row else claims.Finding(verdict, "")


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ([0.8, 0.81, 0.82], [0.9, 0.91, 0.92], FAILS),
        ([0.9], [0.8, 0.81], OPEN),
        ([0.9, 0.91], [], OPEN),
        ([], 0.5, OPEN),
        ([0.9, 0.9], [0.9, 0.9], OPEN),
        ([0.79, 0.81], 0.779, HOLDS),  # a standard error of .01
        ([0.79, 0.81], 0.781, OPEN),
        ([0.79, 0.81], 0.821, FAILS),
    ],
)
def test_order_is_judged_by_the_rule(high, low, verdict):
    assert claims.compare(high, low) == verdict


def test_order_turns_at_two_standard_errors():
    rng = np.random.default_rng(0)
    high, low = rng.normal(0.8, 0.02, 4), rng.normal(0.7, 0.05, 6)
    low += high.mean() - low.mean() - 2 * np.sqrt(high.var(ddof=1) / 4 + low.var(ddof=1) / 6)
    assert claims.compare(high, low - 1e-6) == HOLDS
    assert claims.compare(high, low + 1e-6) == OPEN


@pytest.mark.parametrize(
    ("claim", "accs", "verdict"),
    [
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8], "views_none": [0.2, 0.2]}, HOLDS),
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8], "views_none": [0.85, 0.85]}, FAILS),
        ("views", {"cc": [0.9, 0.9], "views_one": [0.8, 0.8]}, OPEN),
        ("heads", {"cc": [0.9, 0.9], "instance_only": [0.8, 0.8], "cluster_only": [0.85, 0.85]}, HOLDS),
        ("decoupled", {"cc": [0.9, 0.9], "shared_head": [0.8, 0.8]}, HOLDS),
        ("entropy", {"cc": [0.9, 0.9], "no_entropy": [0.95, 0.95]}, FAILS),
    ],
)
def test_ablations_decide_their_claims_on_the_papers_data_only(claim, accs, verdict):
    part = records("cifar10", "paper", **accs)
    assert line(part + records("imagenet10", "paper", **accs), claim).verdict == verdict
    assert line(part, claim).verdict == (FAILS if verdict == FAILS else OPEN)
    digits, fast = records("digits", "demo", **accs), records("cifar10", "fast", **accs)
    for made, data in ((digits, "Digits (demo)"), (fast, "CIFAR-10 (fast)")):
        assert line(made, claim).verdict == NOT_RUN
        if len(accs) == len(BY_ID[claim].needs):  # else nothing is said
            assert {kind: at.verdict for kind, at in claims.judged(BY_ID[claim], made)[2].items()} == {data: verdict}
        else:
            assert not claims.findings(BY_ID[claim], made)


def test_cc_must_beat_the_best_reported_method_and_the_baselines_we_ran():
    above = records("cifar10", "paper", cc=[0.70, 0.70], kmeans_pixels=[0.2, 0.2])
    found = claims.findings(BY_ID["best"], above)[("paper", "cifar10", "")]
    assert found.verdict == HOLDS
    assert "PICA, reported 0.696" in found.numbers
    assert line(above, "best").verdict == OPEN  # five data sets are missing
    assert line(records("cifar10", "paper", cc=[0.69, 0.69]), "best").verdict == FAILS
    assert line(records("cifar10", "paper", cc=[0.7, 0.7], nmf_pixels=[0.8, 0.8]), "best").verdict == FAILS


def test_small_trainings_do_not_speak_to_reported_numbers_but_must_beat_classical_methods():
    small = line(records("cifar10", "laptop", cc=[0.4, 0.4], kmeans_pixels=[0.2, 0.2]), "best", row=1)
    assert small.verdict == "stays open"
    assert small.numbers.startswith("above the classical methods alone: holds. CC 0.400")
    digits = records(cc=[0.9, 0.9], kmeans_pixels=[0.8, 0.8], nmf_pixels=[0.95, 0.95])
    assert line(digits, "best", row=1).verdict == FAILS
    assert not claims.findings(BY_ID["best"], records("cifar10", "laptop", cc=[0.4, 0.4]))


def test_the_backbones_claim_asks_for_a_resnet34():
    made = records("cifar10", "paper", cc=[0.8, 0.8], resnet18=[0.7, 0.7])
    assert line(made, "backbone").verdict == HOLDS
    assert line([r | {"config": {"backbone": "fast-m"}} for r in made], "backbone").verdict == OPEN


def trained(seed, instance, cluster, nmi):
    """A record whose gaps of cosines and NMI go from the first number to the second."""
    history = {"epoch": [1, 2]}
    for head, ends in (("instance", instance), ("cluster", cluster)):
        history |= {f"{head}_positive": [0.5 + ends[0], 0.5 + ends[1]], f"{head}_negative": [0.5, 0.5]}
    evolution = [{"epoch": e, "scores": {"nmi": value}} for e, value in enumerate(nmi)]
    return record("cc", 0.9, seed, history=history, evolution=evolution)


def test_growth_compares_each_run_with_itself():
    apart = [trained(s, (0.1 * s, 0.1 * s + 0.05), (0, 0.3), (0.2 * s, 0.2 * s + 0.01 * (1 + s))) for s in range(3)]
    one_head = [trained(s, (0.1, 0.2), (0.3, 0.1), (0.5, 0.1 * s)) for s in range(3)]
    for made, verdict in ((apart, HOLDS), (one_head, FAILS)):
        assert [line(made, claim, row=1).verdict for claim in ("pairs", "sharpens")] == [verdict] * 2
    assert "NMI at the start 0.200 ± 0.200 (3)" in line(apart, "sharpens", row=1).numbers


def measured(shares):
    return {"streaming": {"assign": {"same": shares}}}


def test_streaming_needs_every_assignment_equal():
    for same, verdict in (([[1.0, 1.0], [1.0, 1.0]], HOLDS), ([[1.0, 1.0], [0.999, 1.0]], FAILS), ([[1.0], []], OPEN)):
        made = [record("cc", 0.9, s, **(measured(shares) if shares else {})) for s, shares in enumerate(same)]
        assert line(made, "streaming", row=1).verdict == verdict
    assert not claims.findings(BY_ID["streaming"], records(cc=[0.9, 0.9]))


def test_claims_are_told_in_words_and_in_one_line_each():
    accs = {"cc": [0.9, 0.9], "shared_head": [0.8, 0.8], "no_entropy": [0.95, 0.95]}
    made = records("cifar10", "laptop", **accs) + records(**accs)
    text = claims.told(made, "heads")
    assert text.count("Under the paper's own settings: **no run yet**.\n") == 3
    assert "- CIFAR-10 (laptop): **holds**. CC 0.900 ± 0.000 (2), one shared head 0.800 ± 0.000 (2)." in text
    frame = claims.overview(made).set_index("claim")
    assert len(frame) == len(claims.CLAIMS)
    decoupled, entropy = (frame[frame.index.str.startswith(BY_ID[name].sentence)] for name in ("decoupled", "entropy"))
    assert decoupled["other runs"].tolist() == ["**holds**: CIFAR-10 (laptop), Digits (demo)"]
    assert entropy["other runs"].tolist() == ["**fails**: CIFAR-10 (laptop), Digits (demo)"]


def test_every_claim_stands_without_any_run():
    frame = claims.overview([])
    assert frame[["the paper's settings", "other runs"]].to_numpy().tolist() == [[NOT_RUN, "–"]] * len(claims.CLAIMS)
    assert claims.told([], "heads").count("(Table 4)") == 1
