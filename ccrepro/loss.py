"""The two losses of the paper: one contrastive function, read along rows (instances) and columns (clusters).

Letters: N images, D instance dimension, K clusters, M vectors of F numbers.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The contrastive loss of eqs. 1-3 and 4-5: each vector's positive is told from the 2M - 2 others by its cosine.

    a, b: (M, F), row i of one is the positive of row i of the other; they need not be normalised. Returns the mean of
    the 2M cross-entropies, a scalar. As in the authors' code, a vector is not compared with itself.
    """
    vectors = torch.cat((a, b))
    vectors = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
    similarities = vectors @ vectors.T / temperature  # (2M, 2M)
    similarities.fill_diagonal_(-torch.inf)
    positives = torch.arange(len(vectors), device=vectors.device).roll(len(a))
    return F.cross_entropy(similarities, positives)


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
