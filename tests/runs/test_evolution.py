import itertools

import numpy as np
import torch

from ccrepro.batches import pairs
from ccrepro.evaluate import Clustering, embed, evaluate
from ccrepro.model import build
from ccrepro.runs.evolution import COSINE_BINS, cosine_histograms, examples, fixed_rows, tsne


def test_a_map_keeps_neighbours_at_any_scale_of_the_features(generator):
    labels = np.repeat([0, 1, 2], 40)
    features = np.eye(3)[labels] * 5 + 0.1 * torch.randn(120, 3, generator=generator).numpy()
    found = tsne(features)
    points = np.stack([found["x"], found["y"]], 1)
    apart = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(120)
    assert (labels[apart.argmin(1)] == labels).mean() > 0.95
    small = tsne(1e-3 * features)  # an untrained network's features lie close together
    assert np.ptp(small["x"]) > 0.5 * np.ptp(found["x"])
    collapsed = tsne(np.ones((9, 3), np.float32))
    assert np.isfinite(collapsed["x"] + collapsed["y"]).all()


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


def test_margin_is_the_lead_over_the_second_cluster(patterns, tiny):
    model = build(tiny, 1)
    _, p = embed(model, torch.from_numpy(patterns.images), tiny)
    found = evaluate(tiny, patterns, model)
    lead = [row.max() - max(np.delete(row, row.argmax())) for row in p]
    assert np.array_equal(found.margin, np.array(lead))
    assert examples(patterns.labels, evaluate(tiny.replace(heads="instance"), patterns, model), 3) == {}


def test_histograms_count_every_positive_and_negative_pair_of_rows_and_columns(patterns, tiny):
    model = build(tiny, 1)
    counts = cosine_histograms(tiny, patterns, model)
    rows = fixed_rows(96, 32)  # a tenth would not fill a batch
    (views,) = pairs(torch.from_numpy(patterns.images[rows]), tiny, epoch=0)
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
            off = np.cumsum(count - np.histogram(values, COSINE_BINS, (-1, 1))[0])
            assert np.abs(off).max() <= 0.01 * len(values) + 1  # on a bin's edge, a last bit decides
    assert counts == cosine_histograms(tiny, patterns, model)
