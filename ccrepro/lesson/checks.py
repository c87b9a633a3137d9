"""One check per exercise of the lesson: it says whether an answer is right, and otherwise what is wrong with it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ccrepro import loss

STATES = {None: ("open", "#999"), True: ("right", "#2a7d2a"), False: ("not yet", "#c0392b")}  # word and colour


class Verdict(NamedTuple):
    """What a check says. right: None while the exercise is open."""

    exercise: int
    right: bool | None
    text: str

    def __repr__(self) -> str:
        return f"Exercise {self.exercise}: {STATES[self.right][0]}. {self.text}"

    def _repr_html_(self) -> str:
        word, color = STATES[self.right]
        style = f"border-left: 5px solid {color}; padding: 0.3em 0.8em"
        return f'<div style="{style}"><b>Exercise {self.exercise}: {word}.</b> {self.text}</div>'


def exercise(number: int, right: str) -> Callable[[Callable[..., str]], Callable[..., Verdict]]:
    """Turn a judge, which takes answers and returns what is wrong with them ("" for nothing), into a check. right: what
    the check says of a right answer."""

    def decorate(judge: Callable[..., str]) -> Callable[..., Verdict]:
        @functools.wraps(judge)
        def check(*answers: Any) -> Verdict:
            try:
                wrong = judge(*map(_answered, answers))
            except NotImplementedError:
                return Verdict(number, None, "Replace the ... in the cell above and run both cells again.")
            except Exception as error:  # raised by the student's code: it becomes part of the verdict
                wrong = f"It stopped with {type(error).__name__}: {error}"
            return Verdict(number, not wrong, wrong or right)

        return check

    return decorate


def _answered(value: Any) -> Any:
    """The value, a function wrapped so that its results are checked too. Raises `NotImplementedError` for ``...``."""
    if value is ...:
        raise NotImplementedError
    return (lambda *arguments: _answered(value(*arguments))) if callable(value) else value


def _near(value: Any, truth: float, mistakes: dict[str, float | Tensor], hint: str, tolerance: float = 2e-3) -> str:
    """What is wrong with a number: the mistake that leads to it, or else the hint."""
    value = float(value)
    for text, number in {"": truth, **mistakes}.items():
        if math.isclose(value, number, abs_tol=tolerance):
            return f"{value:.4g} is the result if {text}" if text else ""
    return f"{value:.4g} is not it. {hint}"


@exercise(1, "0.8 · 0.8 = 0.64. The network meets grey pictures in every third pair, so colour alone cannot tell.")
def both_in_color(share: float) -> str:
    """The share of pairs with both views in colour, if each view is made grey with probability 0.2."""
    mistakes = {
        "only one of the two views is looked at.": 0.8,
        "both views are grey: the question is for pairs of which none is.": 0.2**2,
        "at least one view is grey. That is the other pairs.": 1 - 0.8**2,
        "probabilities are added. The draws are independent: multiply.": 1 - 2 * 0.2,
    }
    return _near(share, 0.8**2, mistakes, "In what share is one view in colour? The two draws are independent.")


@exercise(2, "Row i and row i + N are views of one picture; modulo 2N that holds for both halves.")
def positive(function: Callable[[int, int], int]) -> str:
    """The row that holds the other view of row i, for N images: rows 0 … N - 1 are views a, the next N views b."""
    for n in (4, 3, 10):
        for i in range(2 * n):
            got = function(i, n)
            if got == i:
                return f"For i = {i}, N = {n} it returns {i}: a row is not its own positive."
            if got != (i + n) % (2 * n):
                beyond = " There is no such row: they are numbered from 0 to 2N - 1." if not 0 <= got < 2 * n else ""
                return f"For i = {i}, N = {n} it returns {got}; the other view is row {(i + n) % (2 * n)}.{beyond}"
    return ""


@exercise(3, "One positive and 2N - 2 = 6 negatives, all alike: the positive's share is 1 in 7, whatever τ is.")
def know_nothing(value: float) -> str:
    """The instance loss for N = 4 where all similarities are equal."""
    mistakes = {
        "the vector itself is counted too. It is left out: 2N - 1 others remain.": math.log(8),
        "only the negatives are counted. The positive stands in the denominator as well.": math.log(6),
        "the minus of -log is lost.": -math.log(7),
        "the share of the positive is taken; the loss is its -log.": 1 / 7,
    }
    return _near(value, math.log(7), mistakes, "How many others is a vector compared with? One is the positive.")


@exercise(4, "That is ℓ of view a of picture 1; the instance loss is the mean of six such numbers.")
def by_hand(function: Callable[[Tensor, int, int, float], Tensor]) -> str:
    """ℓ of row i from its similarities s (2N,), the number j of its positive, and τ."""
    for row, i, j, tau in (([1.0, 0.2, -0.5, 0.9, 0.3, -0.4], 0, 3, 0.5), ([0.3, -0.1, 1.0, 0.7], 2, 0, 0.2)):
        s = torch.tensor(row)
        e = (s / tau).exp()
        rest = e.sum() - e[i]
        truth = -torch.log(e[j] / rest).item()
        mistakes = {
            "row i itself stays in the denominator.": -torch.log(e[j] / e.sum()),
            "the positive is left out of the denominator.": -torch.log(e[j] / (rest - e[j])),
            "the similarities are not divided by τ.": -torch.log(s.exp()[j] / (s.exp().sum() - s.exp()[i])),
            "the minus of -log is lost.": -truth,
            "the share is returned without its -log.": e[j] / rest,
        }
        hint = f"For s = {row}, i = {i}, j = {j}, τ = {tau} it should be {truth:.4f}."
        if wrong := _near(function(s, i, j, tau), truth, mistakes, hint):
            return wrong
    return ""


@exercise(5, "exp(0.5/τ) = 10. At the paper's τ = 0.5 the ratio is e = 2.7, at τ = 1 only 1.6.")
def ten_times(tau: float) -> str:
    """The temperature at which a negative of cosine 0.8 weighs ten times as much as one of cosine 0.3."""
    if float(tau) <= 0:
        return "A temperature is above zero."
    ratio = math.exp(min(0.5 / float(tau), 700.0))
    mistakes = {
        "0.5 is multiplied by ln 10; solve exp(0.5/τ) = 10 for τ.": 0.5 * math.log(10),
        "the cosines are divided by each other; their difference counts.": 0.8 / 0.3 / 10,
    }
    return _near(tau, 0.5 / math.log(10), mistakes, f"At this temperature the ratio is {ratio:.3g}.")


@exercise(6, "Columns 0 and 2: the largest cosine of two different clusters. Minimising the loss will pull them apart.")
def mixed_up(pair: Sequence[int], p_a: Tensor, p_b: Tensor) -> str:
    """The two different clusters whose columns are most alike, read from the matrix of columns."""
    first, second = map(int, pair)
    m = p_a.shape[1]
    if first == second:
        return "These are two views of the same cluster, a positive pair. Look off the outlined diagonals."
    if not (0 <= first < m and 0 <= second < m):
        return f"Clusters are numbered from 0 to {m - 1}; what lies beyond is the second view of the same clusters."
    columns = F.normalize(torch.cat((p_a.T, p_b.T)), dim=1)
    cosine = (columns @ columns.T).view(2, m, 2, m).amax((0, 2)).fill_diagonal_(-1)
    if {first, second} == set(divmod(int(cosine.argmax()), m)):
        return ""
    here, most = cosine[first, second], cosine.max()
    return f"Clusters {first} and {second} have a cosine of at most {here:.2f}; another pair has {most:.2f}."


@exercise(7, "The cosine is blind to a column's length: a cluster may starve without the contrast noticing.")
def starved(answer: str) -> str:
    """How the contrastive part of the cluster loss changes if a column is scaled: 'smaller', 'larger' or 'same'."""
    if answer not in ("smaller", "larger", "same"):
        return f"{answer!r} is none of 'smaller', 'larger', 'same'."
    p_a, p_b = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(0))
    before, after = (loss.nt_xent((p_a * c).T, (p_b * c).T, 1.0).item() for c in (1, torch.tensor([0.01, 1, 1, 1])))
    tried = f"Tried with a random Y of 50 rows and 4 columns: {before:.4f} before, {after:.4f} after."
    return "" if answer == "same" else f"{tried} What does a cosine do with the length of a vector?"


@exercise(8, "Five used in equal parts have the entropy of five, log 5; so log 10 - log 5 = log 2 per view is lost.")
def half_dead(value: float) -> str:
    """H of one view's mean assignment, if 5 of 10 clusters have 0.2 each and the others nothing."""
    mistakes = {
        "all ten clusters are used alike. Five of them are empty.": math.log(10),
        "the minus before the sum is lost.": -math.log(5),
        "the logarithm is to base 2; the paper's is the natural one.": math.log2(5),
        "what is missing to log 10 is taken; the question is for H itself.": math.log(2),
    }
    return _near(value, math.log(5), mistakes, "Sum -P log P over the clusters; an empty one adds 0.")


@exercise(9, "Value and gradient equal the package's `cluster_loss`. It is the loss of exercise 4, on columns, and H.")
def cluster_loss(function: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """Eq. 6 from y_a, y_b (N, M) and τ, with log M - H in place of -H, as in the package; value and gradient."""
    generator = torch.Generator().manual_seed(0)
    for n, m, tau in ((7, 3, 1.0), (12, 5, 0.5)):
        y_a, y_b = (3 * torch.randn(2, n, m, generator=generator)).softmax(2)
        y_a.requires_grad_()
        got, truth = function(y_a, y_b, tau), loss.cluster_loss(y_a, y_b, tau)
        if not isinstance(got, Tensor) or got.shape != ():
            return f"It should return a tensor of one number, and returns {type(got).__name__} {tuple(np.shape(got))}."
        hint = f"For a random Y ({n}, {m}), τ = {tau}, the package has {truth:.4f}."
        if wrong := _near(got.item(), truth.item(), _cluster_mistakes(y_a.detach(), y_b, tau), hint, tolerance=1e-4):
            return wrong
        if not got.requires_grad:
            return "The value is right, but no gradient reaches Y: leave out detach, item and NumPy."
        if not torch.allclose(*(torch.autograd.grad(x, y_a)[0] for x in (got, truth)), atol=1e-5):
            return "The value is right, the gradient is not: part of Y was cut off from it."
    return ""


def _cluster_mistakes(y_a: Tensor, y_b: Tensor, tau: float) -> dict[str, Tensor]:
    """The loss that each common mistake of exercise 9 leads to."""
    contrast, rows = loss.nt_xent(y_a.T, y_b.T, tau), loss.nt_xent(y_a, y_b, tau)
    log_m, h_a, h_b = math.log(y_a.shape[1]), loss.mean_entropy(y_a), loss.mean_entropy(y_b)
    missing = 2 * log_m - h_a - h_b
    columns = torch.cat((y_a.T, y_b.T))
    unit, other = F.normalize(columns, dim=1), torch.arange(len(columns)).roll(y_a.shape[1])
    without_cosine = (columns @ columns.T / tau).fill_diagonal_(-math.inf)
    return {
        "rows are contrasted. Transpose: a cluster is a column.": rows + missing,
        "the entropy term is missing.": contrast,
        "H is subtracted but not counted from log M, as eq. 6 prints it. Add log M per view.": contrast - h_a - h_b,
        "the sign of the entropy is wrong: even clusters must cost less, not more.": contrast + h_a + h_b,
        "the missing entropy is subtracted: dead clusters would be rewarded.": contrast - missing,
        "only view a's entropy is counted.": contrast + log_m - h_a,
        "a column is compared with itself too.": F.cross_entropy(unit @ unit.T / tau, other) + missing,
        "columns are not scaled to unit length.": F.cross_entropy(without_cosine, other) + missing,
        "τ is left out.": loss.nt_xent(y_a.T, y_b.T, 1.0) + missing,
    }


@exercise(10, "Clusters 0 and 1 both hold class 0 most often; one of them has to give way, at the smallest loss.")
def matched(classes: Sequence[int], counts: np.ndarray) -> str:
    """The class of each cluster, one to one, so that most images are right. counts: images (classes, clusters)."""
    counts, classes = np.asarray(counts), [int(c) for c in classes]
    if len(classes) != counts.shape[1]:
        return f"There are {counts.shape[1]} clusters, so {counts.shape[1]} classes are to be named."
    if twice := [c for c in classes if classes.count(c) > 1]:
        return f"Class {twice[0]} is given to two clusters. Each class may be used once."
    if not all(0 <= c < len(counts) for c in classes):
        return f"Classes are numbered from 0 to {len(counts) - 1}."
    right, best = counts[classes, range(len(classes))].sum(), counts[linear_sum_assignment(counts, maximize=True)].sum()
    return "" if right == best else f"With this match {right} of {counts.sum()} images are right; {best} are possible."


@exercise(11, "The same rule decides the claims in results/README.md. With one seed there is no such rule.")
def told_apart(function: Callable[[float, float, float, float, int], bool]) -> str:
    """Whether two means, each of n seeds, differ by more than two standard errors of the difference."""
    cases = [(0.967, 0.006, 0.955, 0.006, 3), (0.967, 0.006, 0.968, 0.004, 3), (0.955, 0.006, 0.967, 0.006, 3)]
    cases += [(0.90, 0.02, 0.87, 0.02, 2), (0.90, 0.02, 0.87, 0.02, 8)]
    for mean_a, sd_a, mean_b, sd_b, n in cases:
        difference, error = abs(mean_a - mean_b), math.sqrt((sd_a**2 + sd_b**2) / n)
        if bool(function(mean_a, sd_a, mean_b, sd_b, n)) != (difference > 2 * error):
            shown = f"{mean_a} ± {sd_a} and {mean_b} ± {sd_b}, n = {n}"
            return f"{shown}: they differ by {difference:.3f}, two standard errors are {2 * error:.3f}."
    return ""
