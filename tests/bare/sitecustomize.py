"""On PYTHONPATH, this makes a Python look like that of a bare machine: PyTorch and the scientific stack, and no more.

What ccrepro can do without is neither found by an import nor by `importlib.metadata`.
"""

import importlib.machinery
import importlib.metadata

ABSENT = (
    *(
        "lightning_fabric",
        "openTSNE",
        "papermill",
        "nbformat",
        "nbclient",
        "ipykernel",
        "ipywidgets",
        "IPython",
        "jupyterlab",
        "psutil",
    ),
    *("pooch", "requests", "tqdm", "seaborn", "matplotlib", "tabulate", "jinja2", "cv2", "tensorboard", "pyarrow"),
)


_find = importlib.machinery.PathFinder.find_spec


def _none_of_absent(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else _find(name, path, target)


importlib.machinery.PathFinder.find_spec = _none_of_absent

_distribution = importlib.metadata.distribution


def _without_absent(name):
    if name.lower() in {absent.lower() for absent in ABSENT}:
        raise importlib.metadata.PackageNotFoundError(name)
    return _distribution(name)


importlib.metadata.distribution = _without_absent
