"""What the lesson `notebooks/01_method.ipynb` shows and asks: figures, live trainings, checks of the exercises.

Letters as in the paper: N images, M clusters (K elsewhere), H feature width, D instance dimension, S side of a view."""
