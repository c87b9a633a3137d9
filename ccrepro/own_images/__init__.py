"""Cluster your own images: the scikit-learn estimator, and a folder from the command line."""
