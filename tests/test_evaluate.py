import dataclasses

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.testing import assert_close

from ccrepro.augmentations import eval_view
from ccrepro.data import as_tensor
from ccrepro.evaluate import embed, evaluate, score
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runtime.ragged import stacked


@pytest.fixture
def model(tiny):
    return build(tiny, 1)


def test_embedding_does_not_depend_on_the_batch(patterns, tiny, model):
    whole, parts = (embed(model, torch.from_numpy(patterns.images), tiny, batch_size=n) for n in (96, 7))
    for a, b in zip(whole, parts, strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


def test_embedding_is_the_model_in_evaluation_mode(patterns, tiny, model):
    z, p = embed(model.train(), torch.from_numpy(patterns.images), tiny)
    with torch.no_grad():
        expected = model.eval()(eval_view(torch.from_numpy(patterns.images), 8))
    assert_close((torch.from_numpy(z), torch.from_numpy(p)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", ["both", "cluster", "shared"])
def test_the_cluster_head_assigns_by_argmax(patterns, tiny, model, heads):
    found = evaluate(tiny.replace(heads=heads), patterns, model)
    _, p = embed(model, torch.from_numpy(patterns.images), tiny)
    assert np.array_equal(found.labels_pred, p.argmax(1))
    assert np.array_equal(found.confidence, p.max(1))


def test_the_instance_head_alone_is_clustered_by_kmeans(patterns, tiny, model):
    found = evaluate(tiny.replace(heads="instance"), patterns, model)
    z, _ = embed(model, torch.from_numpy(patterns.images), tiny)
    assert np.array_equal(found.labels_pred, KMeans(3, n_init=10, random_state=0).fit_predict(z))
    assert found.confidence is None


def test_a_baseline_works_on_the_pixels(patterns):
    config = recipe("digits", "demo", "kmeans-pixels", n_clusters=3)
    found, pixels = evaluate(config, patterns, None), patterns.images.reshape(96, 64) / 255
    assert_close(found.features, pixels, check_dtype=False)
    assert np.array_equal(found.labels_pred, KMeans(3, n_init=10, random_state=0).fit_predict(pixels))
    assert set(score(config, patterns, found)) == {"scores"}


def test_images_of_different_sizes_are_scored_each_by_itself(patterns, tiny, model):
    images = [patterns.images[0], patterns.images[1][:, :5], patterns.images[2][:, 1:, 2:]]
    data = dataclasses.replace(patterns, images=stacked(images))
    z, _ = embed(model, as_tensor(data.images), tiny)
    alone = [embed(model, torch.from_numpy(image[None]), tiny)[0] for image in images]
    assert_close(z, np.concatenate(alone), rtol=0, atol=1e-6)
    config = recipe("digits", "demo", "kmeans-pixels", n_clusters=2)
    assert evaluate(config, data, None).features.shape == (3, 64)  # resized, so that each has as many pixels


def test_score_adds_kmeans_for_the_full_method_only(patterns, tiny, model):
    both = score(tiny, patterns, evaluate(tiny, patterns, model))
    assert set(both) == {"scores", "scores_kmeans_on_features"}
    alone = tiny.replace(heads="instance")
    assert set(score(alone, patterns, evaluate(alone, patterns, model))) == {"scores"}
