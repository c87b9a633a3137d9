"""Reproduce the paper: plan and run what is missing, then tables, figures, claims and notebooks from the records."""
