"""Contrastive Clustering (Li et al., AAAI 2021), reproduced.

The modules in the order in which data flows; each imports only from those before it:
errors, config, files, datasets, augmentations, model, loss, train, checkpoint, metrics, baselines, evaluate, run,
online, results, tables, claims, plots, report, plan, lesson, parameters, notebook, cli.
"""

__version__ = "0.1.0"
