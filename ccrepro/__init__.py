"""Contrastive Clustering (Li et al., AAAI 2021), reproduced.

The modules of this folder are the method. The sub-folders are what it runs on and what it is used for.
``ContrastiveClustering``, the scikit-learn estimator, can be imported from here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccrepro.own_images.estimator import ContrastiveClustering

__version__ = "0.2.0"
__all__ = ["ContrastiveClustering"]


def __getattr__(name: str) -> Any:
    """The estimator, when it is asked for: it needs torch, which takes seconds to import."""
    if name == "ContrastiveClustering":
        from ccrepro.own_images.estimator import ContrastiveClustering

        return ContrastiveClustering
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
