"""Features of a pretrained network: those of the right images and views, made once, whatever interrupts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_score

from ccrepro import augmentations
from ccrepro.batches import epoch_generator
from ccrepro.data import as_tensor
from ccrepro.errors import DataError
from ccrepro.own_images import features, own_recipe, photos
from ccrepro.runtime.ragged import sizes_of, stacked

N = 35


@pytest.fixture(scope="module")
def network(weights):
    return photos.Network("test_efficientnet", weights, image_size=64)


@pytest.fixture(scope="module")
def images():
    """Of sizes from 60×70 to 94×70 pixels."""
    rng = np.random.default_rng(0)
    return stacked([rng.integers(0, 256, (3, 60 + i, 70)).astype(np.uint8) for i in range(N)])


@pytest.fixture(scope="module")
def config(network):
    return own_recipe(3, N, 0, network.image_size)


@pytest.fixture(scope="module")
def expected(network, config, images):
    return network.features(config, images, None, "")


def test_they_are_those_of_the_image_and_of_its_views(network, config, images, expected):
    assert expected.shape == (N, 4, 256)
    model, tensors = network.model(config), as_tensor(images)
    for row in (0, 20, 34):
        one = model.standardize(augmentations.eval_view(tensors[row : row + 1], 64, middle=True))
        np.testing.assert_allclose(expected[row, 0], network.encoder(one)[0], rtol=1e-3, atol=1e-5)
    drawn = augmentations.draw(epoch_generator(0, 2), torch.from_numpy(sizes_of(images)), config)
    view = model.standardize(augmentations.apply(tensors, drawn, 64))
    np.testing.assert_allclose(expected[:, 3], network.encoder(view), rtol=1e-3, atol=1e-5)


def test_the_number_of_cores_does_not_matter(network, config, images, expected, monkeypatch):
    monkeypatch.setattr(features, "at_once", lambda: 3)
    assert (network.features(config, images, None, "") == expected).all()


def test_what_was_interrupted_goes_on_and_what_is_done_is_not_done_again(
    network, config, images, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "SAVED_EVERY", 1)
    monkeypatch.setattr(features, "at_once", lambda: 1)
    apply, done = augmentations.apply, []

    def interrupted(x, *arguments, **more):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(len(x))
        return apply(x, *arguments, **more)

    monkeypatch.setattr(augmentations, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network.features(config, images, tmp_path, "these")
    monkeypatch.setattr(augmentations, "apply", lambda x, *a, **m: done.append(len(x)) or apply(x, *a, **m))
    assert (network.features(config, images, tmp_path, "these") == expected).all()
    assert sum(done) == 3 * N + 2 * features.BLOCK, "the block that was interrupted is made again, and no other"
    assert (network.features(config.replace(seed=5, n_clusters=4), images, tmp_path, "these") == expected).all()
    assert sum(done) == 3 * N + 2 * features.BLOCK
    network.features(config.replace(flip=0.0), images, tmp_path, "these")
    network.features(config, images, tmp_path, "others")
    (tmp_path / "index.json").write_text("{")
    assert (network.features(config, images, tmp_path, "others") == expected).all()
    assert sum(done) == 4 * 3 * N + 2 * features.BLOCK


def test_a_full_disk_is_told_before_it_is_written_to(network, config, images, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(DataError, match=r"0.0 GB free, but the features take 0.0 GB"):
        network.features(config, images, tmp_path, "")
    assert not list(tmp_path.iterdir())


def test_the_silhouette_finds_the_number_of_blobs():
    x, _ = make_blobs(200, 5, centers=4, cluster_std=0.5, random_state=0)
    found = features.silhouettes(x, 0)
    assert max(found, key=found.get) == 4
    assert [*found] == [*range(2, 31)]
    assert found[4] == pytest.approx(silhouette_score(x, KMeans(4, n_init=10, random_state=1).fit_predict(x)))
    assert [*features.silhouettes(x[:20], 0)] == [2, 3, 4]


def test_rows_have_unit_length():
    x = np.random.default_rng(0).standard_normal((5, 3, 7)).astype(np.float32)
    np.testing.assert_allclose(
        features.at_unit_length(x), x[:, 0] / np.linalg.norm(x[:, 0], axis=1)[:, None], rtol=1e-6
    )
