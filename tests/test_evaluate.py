import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.testing import assert_close

from ccrepro.augmentations import eval_view
from ccrepro.batches import pairs
from ccrepro.evaluate import (
    COSINE_BINS,
    Clustering,
    cosine_histograms,
    embed,
    evaluate,
    examples,
    fixed_rows,
    score,
    tsne,
)
from ccrepro.model import build
from ccrepro.recipes import recipe


@pytest.fixture
def model(tiny):
    return build(tiny, 1)


def test_embedding_does_not_depend_on_the_batch(patterns, model):
    whole, parts = (embed(model, torch.from_numpy(patterns.images), 8, batch_size=n) for n in (96, 7))
    for a, b in zip(whole, parts, strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


def test_embedding_is_the_model_in_evaluation_mode(patterns, model):
    z, p = embed(model.train(), torch.from_numpy(patterns.images), 8)
    with torch.no_grad():
        expected = model.eval()(eval_view(torch.from_numpy(patterns.images), 8))
    assert_close((torch.from_numpy(z), torch.from_numpy(p)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", ["both", "cluster", "shared"])
def test_the_cluster_head_assigns_by_argmax(patterns, tiny, model, heads):
    found = evaluate(tiny.replace(heads=heads), patterns, model)
    _, p = embed(model, torch.from_numpy(patterns.images), 8)
    assert np.array_equal(found.labels_pred, p.argmax(1))
    assert np.array_equal(found.confidence, p.max(1))


def test_the_instance_head_alone_is_clustered_by_kmeans(patterns, tiny, model):
    found = evaluate(tiny.replace(heads="instance"), patterns, model)
    z, _ = embed(model, torch.from_numpy(patterns.images), 8)
    assert np.array_equal(found.labels_pred, KMeans(3, n_init=10, random_state=0).fit_predict(z))
    assert found.confidence is None


def test_a_baseline_works_on_the_pixels(patterns):
    config = recipe("digits", "demo", "kmeans-pixels", n_clusters=3)
    found, pixels = evaluate(config, patterns, None), patterns.images.reshape(96, 64) / 255
    assert_close(found.features, pixels, check_dtype=False)
    assert np.array_equal(found.labels_pred, KMeans(3, n_init=10, random_state=0).fit_predict(pixels))
    assert set(score(config, patterns, found)) == {"scores"}


def test_score_adds_kmeans_for_the_full_method_only(patterns, tiny, model):
    both = score(tiny, patterns, evaluate(tiny, patterns, model))
    assert set(both) == {"scores", "scores_kmeans_on_features"}
    alone = tiny.replace(heads="instance")
    assert set(score(alone, patterns, evaluate(alone, patterns, model))) == {"scores"}


def test_maps_keep_neighbours_and_place_earlier_features_beside_their_like(generator):
    labels = np.repeat([0, 1, 2], 40)
    last, first = (
        np.eye(3)[labels] * 5 + torch.randn(120, 3, generator=generator).numpy() * noise for noise in (0.1, 0.3)
    )
    maps = tsne([first.astype(np.float32), last.astype(np.float32)])
    before, after = (np.stack([m["x"], m["y"]], 1) for m in maps)
    apart = np.linalg.norm(after[:, None] - after, axis=2) + 1e9 * np.eye(120)
    assert (labels[apart.argmin(1)] == labels).mean() > 0.95
    moved = np.linalg.norm(before[:, None] - after, axis=2)
    assert (labels[moved.argmin(1)] == labels).mean() > 0.95


def test_images_of_a_map_are_drawn_once_and_for_all():
    assert fixed_rows(50, 600).tolist() == list(range(50))
    rows = fixed_rows(60_000, 600)
    assert len(set(rows)) == 600
    assert np.array_equal(rows, fixed_rows(60_000, 600))
    assert (np.diff(rows) > 0).all()
    assert rows.max() > 59_000


def test_examples_are_the_surest_right_the_surest_wrong_and_the_least_decided():
    labels = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95], [0.4, 0.6], [0.55, 0.45]], dtype=np.float32)
    second, first = np.sort(p, axis=1).T
    found = examples(labels, Clustering(p.argmax(1), p, first, first - second), n_clusters=2, n=2)
    assert found["kind"] == ["right", "right", "wrong", "wrong", "between", "between"]
    assert found["image"] == [0, 3, 2, 5, 5, 4]
    assert found["label"] == [0, 1, 0, 1, 1, 1]
    assert found["cluster"] == [0, 1, 1, 0, 0, 1]
    assert found["confidence"] == [0.9, 0.95, 0.7, 0.55, 0.55, 0.6]


def test_margin_is_the_lead_over_the_second_cluster(patterns, tiny, model):
    _, p = embed(model, torch.from_numpy(patterns.images), 8)
    found = evaluate(tiny, patterns, model)
    lead = [row.max() - max(np.delete(row, row.argmax())) for row in p]
    assert np.array_equal(found.margin, np.array(lead))
    assert examples(patterns.labels, evaluate(tiny.replace(heads="instance"), patterns, model), 3) == {}


def test_histograms_count_every_positive_and_negative_pair_of_rows_and_columns(patterns, tiny, model):
    counts = cosine_histograms(tiny, patterns, model)
    rows = fixed_rows(96, 32)  # a tenth would not fill a batch
    (views,) = pairs(torch.from_numpy(patterns.images[rows]), torch.from_numpy(patterns.sizes[rows]), tiny, epoch=0)
    with torch.no_grad():
        (z_a, p_a), (z_b, p_b) = (model.eval()(view) for view in views)
    for head, a, b in (("instance", z_a, z_b), ("cluster", p_a.T, p_b.T)):
        x = torch.cat((a, b)).double().numpy()
        cosines = np.clip((x @ x.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(x, axis=1), -1, 1)
        found = {"positive": [], "negative": []}
        for i, j in itertools.combinations(range(len(x)), 2):
            found["positive" if j == i + len(a) else "negative"] += [cosines[i, j]] * (1 if j == i + len(a) else 2)
        for kind, values in found.items():
            count = counts[f"{head}_{kind}"]
            assert (len(count), sum(count)) == (COSINE_BINS, len(values))
            expected = np.histogram(values, COSINE_BINS, (-1, 1))[0]
            assert (
                np.abs(np.cumsum(count - expected)).max() <= 0.01 * len(values) + 1
            )  # on a bin's edge, a last bit decides
    assert counts == cosine_histograms(tiny, patterns, model)
