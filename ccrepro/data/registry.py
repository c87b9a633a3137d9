"""The data sets: one entry each, with all that is known of it before it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ccrepro.data import readers
from ccrepro.data.synsets import IMAGENET10, IMAGENET_DOGS, IMAGENETTE, IMAGEWOOF


class Archive(NamedTuple):
    """Where an archive is, its hash as pooch writes it, and its size."""

    url: str
    known_hash: str
    size: str


class DataSet(NamedTuple):
    """A data set. images, classes, unlabeled: counts that are checked when it is loaded (Table 1 of the paper); split:
    the part that is clustered; folder: below the data root; reader: data root → what is in that folder; archive: where
    to download it; synsets: the classes of ImageNet that it is built from."""

    title: str
    images: int
    classes: int
    split: str
    terms: str
    folder: str = ""
    reader: Callable[[Path], readers.Bundle | readers.Files] | None = None
    archive: Archive | None = None
    synsets: dict[str, str] | None = None
    unlabeled: int = 0

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        if self.synsets:
            return f"from your ImageNet, {len(self.synsets)} classes"
        return f"fetched, {self.archive.size}" if self.archive else "ships with scikit-learn"


TORONTO = "https://www.cs.toronto.edu/~kriz"
COATES = "http://ai.stanford.edu/~acoates/stl10"
FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas"
STANFORD = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CIFAR_TERMS = "none stated; cite Krizhevsky 2009"
IMAGENET_TERMS = "ImageNet: non-commercial research and education, no redistribution"
FAST_AI_TERMS = "Apache 2.0; its images as ImageNet's"

# MD5 sums are those torchvision checks; Imagewoof's is fast.ai's own. Tiny-ImageNet's SHA-256 is the one in wide use.
DATASETS = {
    "digits": DataSet("Digits", 1_797, 10, "all", "UCI, CC BY 4.0"),
    "cifar10": DataSet(
        "CIFAR-10", 60_000, 10, "train + test", CIFAR_TERMS, "cifar-10-batches-py", readers.cifar10,
        Archive(f"{TORONTO}/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", "170 MB"),
    ),
    "cifar100": DataSet(  # its 20 superclasses
        "CIFAR-100", 60_000, 20, "train + test", CIFAR_TERMS, "cifar-100-python", readers.cifar100,
        Archive(f"{TORONTO}/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", "169 MB"),
    ),
    "stl10": DataSet(
        "STL-10", 13_000, 10, "train + test, unlabeled", "as ImageNet's", "stl10_binary", readers.stl10,
        Archive(f"{COATES}/stl10_binary.tar.gz", "md5:91f7769df0f17e558f3565bffb0c7dfb", "2.6 GB"), unlabeled=100_000,
    ),
    "imagenet10": DataSet(
        "ImageNet-10", 13_000, 10, "train", IMAGENET_TERMS, "imagenet-10",
        readers.synsets("imagenet-10", IMAGENET10, per_class=1300), synsets=IMAGENET10,
    ),
    "imagenet-dogs": DataSet(
        "ImageNet-Dogs", 19_500, 15, "train", IMAGENET_TERMS, "imagenet-dogs",
        readers.synsets("imagenet-dogs", IMAGENET_DOGS, per_class=1300), synsets=IMAGENET_DOGS,
    ),
    "tiny-imagenet": DataSet(
        "Tiny-ImageNet", 100_000, 200, "train", "as ImageNet's", "tiny-imagenet-200", readers.tiny_imagenet,
        Archive(STANFORD, "sha256:6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821", "248 MB"),
    ),
    # Free stand-ins for the two ImageNet subsets, of other classes: never shown under the paper's names.
    "imagenette": DataSet(
        "Imagenette (stand-in)", 9_469, 10, "train", FAST_AI_TERMS, "imagenette2",
        readers.synsets("imagenette2", IMAGENETTE),
        Archive(f"{FAST_AI}/imagenette2.tgz", "md5:fe2fc210e6bb7c5664d602c3cd71e612", "1.6 GB"),
    ),
    "imagewoof": DataSet(
        "Imagewoof (stand-in)", 9_025, 10, "train", FAST_AI_TERMS, "imagewoof2",
        readers.synsets("imagewoof2", IMAGEWOOF),
        Archive(f"{FAST_AI}/imagewoof2.tgz", "md5:9aafe18bcdb1632c4249a76c458465ba", "1.3 GB"),
    ),
}  # fmt: skip
