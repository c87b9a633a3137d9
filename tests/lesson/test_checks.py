"""Each exercise's check takes the right answer, and says of a plausible wrong one what is wrong with it."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ccrepro import loss
from ccrepro.lesson import checks, demos

LESSON = Path(__file__).parents[2] / "notebooks/01_method.ipynb"


def test_check_of_an_open_exercise_is_neither_right_nor_wrong():
    verdict = checks.both_in_color(...)
    assert verdict.right is None
    assert repr(verdict) == "Exercise 1: open. Replace the ... in the cell above and run both cells again."
    assert checks.positive(lambda i, n: ...).right is None


def test_check_shows_what_the_students_code_raises():
    verdict = checks.by_hand(lambda s, i, j: s[i])
    assert verdict.right is False
    assert "It stopped with TypeError" in verdict.text
    assert "#c0392b" in verdict._repr_html_()


def shares(s, i, j, tau):
    e = (s / tau).exp()
    return e[j] / (e.sum() - e[i])


def my_cluster_loss(
    y_a, y_b, tau, columns=True, itself=False, unit=True, missing=lambda y: math.log(y.shape[1]), sign=1
):
    c = torch.cat((y_a.T, y_b.T) if columns else (y_a, y_b))
    c = F.normalize(c, dim=1) if unit else c
    s = c @ c.T / tau
    s = s if itself else s.fill_diagonal_(-math.inf)
    lost = sum(missing(y) + torch.xlogy(y.mean(0), y.mean(0)).sum() for y in (y_a, y_b))
    return F.cross_entropy(s, torch.arange(len(s)).roll(len(s) // 2)) + sign * lost


EXAMPLE_COUNTS = [[10, 9, 0], [8, 1, 2], [0, 3, 5]]
WRONG = [
    (checks.both_in_color, (0.8,), "only one of the two views"),
    (checks.both_in_color, (0.6,), "multiply"),
    (checks.both_in_color, (0.5,), "0.5 is not it. In what share is one view in colour?"),
    (checks.positive, (lambda i, n: i + n,), "There is no such row"),
    (checks.positive, (lambda i, n: i,), "not its own positive"),
    (checks.positive, (lambda i, n: (i + 5) % 10,), "For i = 0, N = 4 it returns 5; the other view is row 4"),
    (checks.know_nothing, (math.log(8),), "itself is counted"),
    (checks.know_nothing, (math.log(6),), "only the negatives"),
    (checks.know_nothing, (2,), "2 is not it"),
    (checks.by_hand, (lambda s, i, j, tau: -torch.log(shares(s, i, j, 1.0)),), "not divided by τ"),
    (checks.by_hand, (lambda s, i, j, tau: -F.log_softmax(s / tau, 0)[j],), "stays in the denominator"),
    (checks.by_hand, (lambda s, i, j, tau: torch.log(shares(s, i, j, tau)),), "minus of -log is lost"),
    (checks.by_hand, (shares,), "without its -log"),
    (checks.by_hand, (lambda s, i, j, tau: -torch.log(shares(s, i, j, 0.5)),), "For s = [0.3"),
    (checks.ten_times, (0.5,), "the ratio is 2.72"),
    (checks.ten_times, (0.5 * math.log(10),), "solve exp(0.5/τ) = 10"),
    (checks.ten_times, (-0.2,), "above zero"),
    (checks.mixed_up, ((0, 1), *demos.EXAMPLE), "another pair has 0.71"),
    (checks.mixed_up, ((1, 1), *demos.EXAMPLE), "positive pair"),
    (checks.mixed_up, ((0, 5), *demos.EXAMPLE), "numbered from 0 to 2"),
    (checks.starved, ("smaller",), "What does a cosine do"),
    (checks.starved, ("none",), "none of"),
    (checks.half_dead, (math.log(10),), "Five of them are empty"),
    (checks.half_dead, (math.log2(5),), "base 2"),
    (checks.half_dead, (0.1,), "an empty one adds 0"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, columns=False),), "Transpose"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, itself=True),), "compared with itself"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, unit=False),), "unit length"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, 1.0),), "τ is left out"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, sign=-1),), "dead clusters would be rewarded"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, sign=0),), "entropy term is missing"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, missing=lambda y: 0),), "as eq. 6 prints it"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a.detach(), b, t),), "no gradient reaches Y"),
    (checks.cluster_loss, (lambda a, b, t: loss.cluster_loss(a, b, t).item(),), "returns float"),
    (checks.matched, ([0, 1, 2], EXAMPLE_COUNTS), "16 of 38 images are right; 22"),
    (checks.matched, ([0, 0, 2], EXAMPLE_COUNTS), "Class 0 is given to two"),
    (checks.matched, ([0, 1], EXAMPLE_COUNTS), "3 classes are to be named"),
    (checks.told_apart, (lambda a, sa, b, sb, n: abs(a - b) > 2 * (sa + sb),), "two standard errors are"),
    (
        checks.told_apart,
        (lambda a, sa, b, sb, n: a - b > 2 * math.sqrt((sa**2 + sb**2) / n),),
        "0.955 ± 0.006 and 0.967",
    ),
    (checks.told_apart, (lambda a, sa, b, sb, n: True,), "0.967 ± 0.006 and 0.968 ± 0.004"),
]


@pytest.mark.parametrize(("check", "given", "says"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_check_rejects_a_plausible_wrong_answer_and_says_what_is_wrong(check, given, says):
    verdict = check(*given)
    assert verdict.right is False
    assert says in verdict.text


def test_every_check_has_a_wrong_answer_tried_on_it():
    asked = set(re.findall(r"checks\.(\w+)\(", LESSON.read_text()))
    assert {check.__name__ for check, _, _ in WRONG} == asked


def test_a_cut_gradient_is_noticed():
    verdict = checks.cluster_loss(lambda a, b, t: loss.cluster_loss(a, b, t, 0.0) + loss.cluster_loss(a, b, t).detach()
                                  - loss.cluster_loss(a, b, t, 0.0).detach())  # fmt: skip
    assert verdict.text == "The value is right, the gradient is not: part of Y was cut off from it."
