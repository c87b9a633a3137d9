"""What the lesson `notebooks/01_method.ipynb` shows and asks: figures, trainings, and checks of the exercises."""
