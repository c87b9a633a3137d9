"""The two losses of the paper: one contrastive function, read along rows (instances) and columns (clusters).

Letters: N images, D instance dimension, K clusters, M vectors of F numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_TEMPERATURE = 0.025  # below this, the contrast is computed in double precision


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Mean over 2M vectors of -log softmax of the positive's cosine among the 2M - 1 others [eqs. 1-3 and 4-5].

    a, b: (M, F), row i of one is the positive of row i of the other; they need not be normalised. Returns a scalar.
    As in the authors' code, a vector is not compared with itself.
    """
    return _Contrast.apply(F.normalize(torch.cat((a, b)), dim=1), temperature)


class _Contrast(torch.autograd.Function):
    """The loss and its gradient in one go: of the (2M, 2M) similarities nothing is kept.

    Let E = exp(S - 1 / t) for the similarities S = X Xᵀ / t, without its diagonal, and w the inverse sums of its rows.
    The gradient of the summed loss by the unit vectors X is ((P + Pᵀ) X - 2 Y) / t with the softmax P = diag(w) E, and
    row i of Y the positive of row i of X. E is symmetric, so P + Pᵀ = E ∘ (w 1ᵀ + 1 wᵀ).
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, temperature: float) -> Tensor:
        # The smallest entry of E is exp(-2 / t), the smallest float32 is near exp(-87).
        rows = vectors.double() if temperature < MIN_TEMPERATURE else vectors
        scaled, positives = rows / temperature, rows.roll(len(rows) // 2, 0)
        largest = rows.new_full((), -1 / temperature)  # filled there: a tensor made here would have to be waited for
        e = torch.addmm(largest, scaled, rows.T).exp_()
        e.fill_diagonal_(0)
        sums = e.sum(1)
        loss = sums.log().sum() + len(rows) / temperature - (scaled * positives).sum()
        weights = 1 / sums
        e *= weights[:, None] + weights
        gradient = torch.addmm(positives, e, rows, beta=-2)
        ctx.save_for_backward((gradient / (temperature * len(rows))).to(vectors.dtype))
        return (loss / len(rows)).to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * upstream, None


def instance_loss(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrast the rows: two views of an image attract, other images repel [eq. 3]. z: (N, D)."""
    return nt_xent(z_a, z_b, temperature)


def cluster_loss(p_a: Tensor, p_b: Tensor, temperature: float = 1.0, entropy_weight: float = 1.0) -> Tensor:
    """Contrast the columns, less the entropy of the mean assignments [eq. 6]. p: (N, K), rows sum to 1.

    The entropies are counted from their maximum, log K - H for each view, as in the authors' code: a constant that
    makes the term 0 for clusters of equal size.
    """
    missing_entropy = sum(math.log(p.shape[1]) - mean_entropy(p) for p in (p_a, p_b))
    return nt_xent(p_a.T, p_b.T, temperature) + entropy_weight * missing_entropy


@torch.no_grad()
def pair_cosines(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of the cosines of the M positive pairs and the 2M (2M - 2) negative ones [Fig. 3].

    a, b: (M, F). No (2M, 2M) matrix is made where F is smaller: the cosines of all pairs sum to the squared length of
    the vectors' sum, and their squares to that of the matrix of inner products, of rows or of columns.
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    rows, m = torch.cat((a, b)), len(a)
    inner = rows.T @ rows if rows.shape[1] < 2 * m else rows @ rows.T
    cosines, n_negative = (a * b).sum(1), 2 * m * (2 * m - 2)
    negative = (rows.sum(0).square().sum() - 2 * m - 2 * cosines.sum()) / n_negative
    squares = (inner.square().sum() - 2 * m - 2 * cosines.square().sum()) / n_negative
    return {
        "positive": cosines.mean(),
        "positive_sd": cosines.std(correction=0),
        "negative": negative,
        "negative_sd": (squares - negative.square()).clamp(min=0).sqrt(),
    }


def mean_entropy(p: Tensor) -> Tensor:
    """Entropy H(Y) of the mean assignment, in nats: (N, K) → scalar in [0, log K].

    The clamp keeps value and gradient finite where a cluster is empty; `torch.special.entr` would not.
    """
    share = p.mean(0)  # (K,)
    return -(share * share.clamp(min=torch.finfo(share.dtype).tiny).log()).sum()
