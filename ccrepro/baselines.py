"""Classical clustering of raw pixels, re-run by us (the upper rows of Table 2)."""

import numpy as np
from sklearn.cluster import KMeans


def kmeans(vectors: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """k-means with ten starts, the best kept: float (N, F) → int (N,). Also what clusters features in Table 4."""
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(vectors)


BASELINES = {"kmeans": kmeans}
