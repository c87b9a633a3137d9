"""What a pretrained network sees in your images, worked out once: in each image as it is, and in augmented views of it.

Letters: N images, V views, F width of the frozen features, K clusters.
"""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize
from tqdm.std import tqdm

from ccrepro import augmentations
from ccrepro.batches import epoch_generator
from ccrepro.config import Config
from ccrepro.data import as_tensor
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runtime import storage
from ccrepro.runtime.device import at_once
from ccrepro.runtime.ragged import Ragged, sizes_of

N_VIEWS = 3  # V: six did no better, see docs/own_images.md
VIEWS_SEED = 0  # the views are the same whatever the seed, so that another seed finds them made
BLOCK = 16  # images at once: with more, a CPU waits for its memory. Fixed, since last bits depend on it
SAVED_EVERY = 16  # blocks
SETTINGS = (  # that say what the network sees
    *("image_size", "crop_scale", "flip", "rotation", "translation", "shear", "jitter", "brightness", "contrast"),
    *("saturation", "hue", "grayscale", "blur"),
)
FEWEST, EACH = 10, 5  # images that silhouettes need, in all and for each cluster that is tried
SAMPLE = 2_000  # images at most that a silhouette is measured on


def extract(
    model: ContrastiveClusteringModel,
    config: Config,
    images: np.ndarray | Ragged,
    kept: Path | None = None,
    of: str = "",
) -> np.ndarray:
    """The frozen features of N uint8 images of three channels: float32 (N, V + 1, F); the first are those of the images
    as they are. They do not depend on the number of cores.

    kept: a folder that keeps them, also of a part of the images when this is interrupted; the features are mapped from
    there. of: what tells apart the images and networks whose features it may keep. Raises `DataError` where
    the disk has too little space.
    """
    encoder = model.backbone.encoder
    images, sizes, device = as_tensor(images), torch.from_numpy(sizes_of(images)), model.standardize.mean.device
    drawn = [augmentations.draw(epoch_generator(VIEWS_SEED, view), sizes, config) for view in range(N_VIEWS)]
    found, done = _begun(kept, of, (len(images), N_VIEWS + 1, model.backbone.trunk[0].in_features))

    @torch.inference_mode()
    def block(first: int) -> np.ndarray:
        rows = slice(first, first + BLOCK)
        batch = images[rows].to(device)
        seen = [augmentations.eval_view(batch, config.image_size, middle=True)]
        seen += [augmentations.apply(batch, parameters[rows], config.image_size) for parameters in drawn]
        return torch.stack([encoder(model.standardize(view)) for view in seen], 1).float().cpu().numpy()

    starts = range(done, len(images), BLOCK)
    with (
        ThreadPoolExecutor(at_once(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        contextlib.closing(pool.map(block, starts)) as blocks,  # closed, it makes no more of them
        tqdm(None, "features", len(images), initial=done, unit=" images", mininterval=1) as bar,
    ):
        for first, values in zip(starts, blocks, strict=True):
            found[first : first + BLOCK] = values
            bar.update(len(values))
            if kept and (first // BLOCK % SAVED_EVERY == SAVED_EVERY - 1 or first == starts[-1]):
                found.flush()
                storage.atomic_write(kept / "index.json", json.dumps({"of": of, "done": first + len(values)}))
    return found


def _begun(kept: Path | None, of: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """The array to fill, and how many of its rows are filled."""
    if kept is None:
        return np.empty(shape, np.float32), 0
    kept.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, ValueError, KeyError):  # absent, or damaged
        index, found = json.loads((kept / "index.json").read_text()), np.load(kept / "features.npy", mmap_mode="r+")
        if index["of"] == of and found.shape == shape:
            return found, index["done"]
    (kept / "index.json").unlink(missing_ok=True)
    return storage.make_array(kept / "features.npy", "features", np.float32, shape, "folder"), 0


def at_unit_length(features: np.ndarray) -> np.ndarray:
    """The features of the images as they are, rows of unit length: (N, V + 1, F) → (N, F)."""
    return normalize(features[:, 0])


def silhouettes(unit: np.ndarray, seed: int, most: int = 30) -> dict[int, float]:
    """For each K, how much nearer the images are to their own cluster than to the next, for k-means on (N, F)."""
    found, most = {}, min(most, len(unit) // EACH)
    for k in tqdm(range(2, most + 1), "numbers of clusters", mininterval=1):
        clusters = KMeans(k, n_init=3, random_state=seed).fit_predict(unit)
        found[k] = float(silhouette_score(unit, clusters, sample_size=min(len(unit), SAMPLE), random_state=seed))
    return found
