"""The lesson `notebooks/01_method.ipynb`: figures, trainings, checks. Letters as in the paper: M clusters, not K."""
