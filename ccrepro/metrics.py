"""Scores of a clustering against labels: NMI, ACC and ARI (§4.3), right also where clusters are empty or too many.

All come from one table of counts, so 60,000 labels take a millisecond; the tests hold them against scikit-learn.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.special import entr


def accuracy(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """ACC: share of images whose cluster is matched to their class, under the best one-to-one matching.

    Both (n_images,). Label values do not matter. With more clusters than classes (or fewer), what is left
    unmatched counts as wrong.
    """
    return _accuracy(_counts(labels_true, labels_pred))


def scores(labels_true: ArrayLike, labels_pred: ArrayLike) -> dict[str, float]:
    """``nmi`` (arithmetic mean, as scikit-learn's default), ``acc`` and ``ari``. Both arguments (n_images,)."""
    counts = _counts(labels_true, labels_pred)
    return {"nmi": _nmi(counts), "acc": _accuracy(counts), "ari": _ari(counts)}


def contingency(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int) -> np.ndarray:
    """(classes, n_clusters) counts, columns in the order that matches clusters to classes, unmatched ones last."""
    counts = _counts(labels_true, labels_pred, n_clusters)
    matched = linear_sum_assignment(counts, maximize=True)[1]
    rest = [k for k in range(n_clusters) if k not in matched]
    return counts[:, [*matched, *rest]]


def matched_classes(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int) -> np.ndarray:
    """(n_clusters,) the class that each cluster is matched to, as `accuracy` does it; -1 for a cluster left over."""
    classes, clusters = linear_sum_assignment(_counts(labels_true, labels_pred, n_clusters), maximize=True)
    found = np.full(n_clusters, -1)
    found[clusters] = np.unique(labels_true)[classes]
    return found


def _counts(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int | None = None) -> np.ndarray:
    """(classes, clusters) how many images fall in each pair; with ``n_clusters``, a column for each, else the used."""
    rows, n_rows = _numbered(labels_true)
    columns, n_columns = _numbered(labels_pred) if n_clusters is None else (np.asarray(labels_pred), n_clusters)
    return np.bincount(rows * n_columns + columns, minlength=n_rows * n_columns).reshape(n_rows, n_columns)


def _numbered(labels: ArrayLike) -> tuple[np.ndarray, int]:
    """The labels as 0 … n - 1, and n. Labels that are small numbers already are not sorted for it."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int64, copy=False)
    if labels.dtype != np.int64 or labels.size == 0 or labels.min() < 0 or labels.max() >= len(labels):
        values, numbered = np.unique(labels, return_inverse=True)
        return numbered, len(values)
    used = np.bincount(labels) > 0
    return (labels, len(used)) if used.all() else ((np.cumsum(used) - 1)[labels], int(used.sum()))


def _accuracy(counts: np.ndarray) -> float:
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def _nmi(counts: np.ndarray) -> float:
    """Mutual information over the mean of both entropies; 1 where neither partition divides anything."""
    joint = counts / counts.sum()
    of_classes, of_clusters = entr(joint.sum(1)).sum(), entr(joint.sum(0)).sum()
    mean = (of_classes + of_clusters) / 2
    return float(max(of_classes + of_clusters - entr(joint).sum(), 0) / mean) if mean > 0 else 1.0


def _ari(counts: np.ndarray) -> float:
    """Pairs of images that both partitions agree on, from their expected number (0) to their largest (1)."""
    together, in_class, in_cluster, all_pairs = (
        float((n * (n - 1.0)).sum() / 2) for n in (counts, counts.sum(1), counts.sum(0), counts.sum())
    )
    expected = in_class * in_cluster / all_pairs if all_pairs else 0.0
    largest = (in_class + in_cluster) / 2
    return (together - expected) / (largest - expected) if largest != expected else 1.0
