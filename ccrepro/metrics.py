"""Scores of a clustering against labels: NMI, ACC and ARI (§4.3). Clusters may be empty, or more than the classes."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils.validation import check_consistent_length, column_or_1d


def accuracy(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """ACC: the share of images whose cluster is matched to their class, under the best one-to-one matching.

    Both (n_images,) or (n_images, 1); their values do not matter. Images of a class or a cluster without a match count
    as wrong. Raises `ValueError` where the lengths differ.
    """
    counts = contingency_matrix(*_pair(labels_true, labels_pred))
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def scores(labels_true: ArrayLike, labels_pred: ArrayLike) -> dict[str, float]:
    """``nmi`` (arithmetic mean, scikit-learn's default), ``acc`` and ``ari``. Arguments as of `accuracy`."""
    labels_true, labels_pred = _pair(labels_true, labels_pred)
    return {
        "nmi": float(normalized_mutual_info_score(labels_true, labels_pred)),
        "acc": accuracy(labels_true, labels_pred),
        "ari": float(adjusted_rand_score(labels_true, labels_pred)),
    }


def contingency(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int) -> np.ndarray:
    """(classes, n_clusters) counts. Columns are in the order of their matched classes, those without a match last."""
    counts = _counts(labels_true, labels_pred, n_clusters)
    matched = linear_sum_assignment(counts, maximize=True)[1]
    return counts[:, [*matched, *np.setdiff1d(np.arange(n_clusters), matched)]]


def matched_classes(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int) -> np.ndarray:
    """(n_clusters,) the class that each cluster is matched to, as in `accuracy`; -1 for a cluster without a match."""
    classes, clusters = linear_sum_assignment(_counts(labels_true, labels_pred, n_clusters), maximize=True)
    found = np.full(n_clusters, -1)
    found[clusters] = np.unique(labels_true)[classes]
    return found


def _counts(labels_true: ArrayLike, labels_pred: ArrayLike, n_clusters: int) -> np.ndarray:
    """(classes, n_clusters) how many images fall in each pair."""
    labels_true, labels_pred = _pair(labels_true, labels_pred)
    classes, rows = np.unique(labels_true, return_inverse=True)
    counts = np.zeros((len(classes), n_clusters), dtype=np.int64)
    np.add.at(counts, (rows, labels_pred), 1)
    return counts


def _pair(labels_true: ArrayLike, labels_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as (n_images,). Raises `ValueError` for other shapes, and where their lengths differ."""
    check_consistent_length(labels_true, labels_pred)
    return column_or_1d(labels_true), column_or_1d(labels_pred)


def mean_sd(values: Iterable[float]) -> str:
    """Mean and standard deviation (n - 1), such as 0.972 ± 0.005; the value alone for one; – for none."""
    values = np.asarray(list(values), dtype=float)
    if len(values) == 0:
        return "–"
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")
