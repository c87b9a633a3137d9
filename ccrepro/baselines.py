"""Classical clustering of raw pixels, re-run by us through scikit-learn (the upper rows of Table 2).

The paper copies its rows from earlier papers and gives no settings; ours stand here. All functions take float (N, F)
and return int (N,) in 0 … K - 1.
"""

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.decomposition import NMF


def kmeans(vectors: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """k-means, the best of ten starts. It also clusters the features in Table 4."""
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(vectors)


def spectral(vectors: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Spectral clustering (SC): k-means on the eigenvectors of the graph of ten nearest neighbours."""
    graph = SpectralClustering(n_clusters, affinity="nearest_neighbors", n_neighbors=10, random_state=seed)
    return graph.fit_predict(vectors)


def agglomerative(vectors: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Agglomerative clustering with Ward's linkage (AC). Nothing in it is random."""
    return AgglomerativeClustering(n_clusters).fit_predict(vectors)


def nmf(vectors: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """k-means on the weights of a non-negative matrix factorisation of rank K, of vectors that are not negative."""
    parts = NMF(n_clusters, init="nndsvda", max_iter=500, tol=1e-3, random_state=seed)
    return kmeans(parts.fit_transform(vectors), n_clusters, seed)


BASELINES = {"kmeans": kmeans, "spectral": spectral, "agglomerative": agglomerative, "nmf": nmf}
