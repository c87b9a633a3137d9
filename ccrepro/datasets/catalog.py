"""The list of data sets: where each comes from, on what terms, and whether it is here."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ccrepro.config import DATASETS
from ccrepro.datasets import data_root, find_source, pack


class Origin(NamedTuple):
    """split: what of it is clustered. place: below the data root. how: to get it. terms: of use."""

    split: str
    place: str
    how: str
    terms: str


IMAGENET_TERMS = "ImageNet: non-commercial research and education, no redistribution"
FAST_AI_TERMS = "Apache 2.0; its pictures as ImageNet's"
ORIGINS = {
    "digits": Origin("all", "–", "ships with scikit-learn", "UCI, CC BY 4.0"),
    "cifar10": Origin("train + test", "cifar-10-batches-py", "fetched, 170 MB", "none stated; cite Krizhevsky 2009"),
    "cifar100": Origin("train + test", "cifar-100-python", "fetched, 169 MB", "none stated; cite Krizhevsky 2009"),
    "stl10": Origin("train + test, unlabeled", "stl10_binary", "fetched, 2.6 GB", "as ImageNet's"),
    "imagenet10": Origin("train", "imagenet-10", "from your ImageNet, 10 classes", IMAGENET_TERMS),
    "imagenet-dogs": Origin("train", "imagenet-dogs", "from your ImageNet, 15 classes", IMAGENET_TERMS),
    "tiny-imagenet": Origin("train", "tiny-imagenet-200", "fetched, 248 MB", "as ImageNet's"),
    "imagenette": Origin("train", "imagenette2", "fetched, 1.6 GB", FAST_AI_TERMS),
    "imagewoof": Origin("train", "imagewoof2", "fetched, 1.3 GB", FAST_AI_TERMS),
}


def catalog(root: str | Path | None = None) -> pd.DataFrame:
    """One row per data set: name, images, classes, split, place, how, terms, and its state below the data root."""
    return _known().assign(state=[_state(name, data_root(root)) for name in DATASETS])


def markdown() -> str:
    """The catalog for the documentation: without the state, which is of one machine."""
    return _known().to_markdown(index=False)


def _known() -> pd.DataFrame:
    rows = [
        {
            "name": name,
            "images": f"{facts.images:,}" + (f" + {facts.unlabeled:,}" if facts.unlabeled else ""),
            "classes": str(facts.classes),
            **ORIGINS[name]._asdict(),
        }
        for name, facts in DATASETS.items()
    ]
    return pd.DataFrame(rows)


def _state(name: str, root: Path) -> str:
    if name == "digits":
        return "ships with scikit-learn"
    place, source = root / "packed" / name, find_source(name, root)
    if (place / "index.json").exists():
        sound = pack.read(place, pack.fingerprint(source) if source else None)
        return f"packed, verified: {len(sound.images):,} images" if sound else "packed, but stale or damaged"
    return f"present, not packed: {len(source.paths):,} files" if source else "absent"
