import json

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ccrepro import online, run
from ccrepro.config import recipe
from ccrepro.errors import DataError
from ccrepro.evaluate import represent
from ccrepro.metrics import scores
from ccrepro.model import build
from ccrepro.train import train


@pytest.fixture
def model(tiny):
    return build(tiny, 1).eval()


def test_images_are_assigned_the_same_alone_and_together(patterns, tiny, model, monkeypatch):
    now = [0.0]

    def in_a_second(*arguments):
        now[0] += 1
        return represent(*arguments)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(online, "represent", in_a_second)
    found = online.assign(tiny, patterns, model)
    assert found["batch_size"] == [1, 8, 64, 512]
    assert found["same"] == [1.0] * 4
    assert found["milliseconds"] == [1000.0] * 4
    assert found["images_per_second"] == [1.0, 8.0, 48.0, 96.0]


def test_an_assignment_that_depends_on_the_batch_is_seen(patterns, tiny, model, monkeypatch):
    def by_batch(model, images, size):
        """Another cluster where eight images come together."""
        return None, np.eye(3)[np.full(len(images), int(len(images) == 8))]

    monkeypatch.setattr(online, "represent", by_batch)
    assert online.assign(tiny, patterns, model)["same"] == [1.0, 0.0, 1.0, 1.0]


def test_following_a_stream_scores_what_came_so_far(patterns, tiny, model):
    found = online.follow(tiny, patterns, model)
    z, p = represent(model, torch.from_numpy(patterns.images), 8)
    assert found["images"][-1] == 96
    assert len(found["images"]) == 10
    half = found["images"][4]
    assert found["nmi"][4] == scores(patterns.labels[:half], p[:half].argmax(1))["nmi"]
    refitted = KMeans(3, n_init=10, random_state=0).fit_predict(z[:half])
    assert found["nmi_kmeans"][4] == scores(patterns.labels[:half], refitted)["nmi"]
    assert found["changed"][0] == 0
    assert all(0 <= share < 1 for share in found["changed"])


def test_training_once_sees_each_batch_and_then_never_again(patterns, tiny, monkeypatch):
    seen = []

    def spy(images, sizes, config, epoch, number):
        seen.append((images.clone(), epoch, number))
        return iter([(torch.rand(len(images), 1, 8, 8), torch.rand(len(images), 1, 8, 8))])

    monkeypatch.setattr(online, "pairs", spy)
    _, curve = online.train_once(tiny, patterns, steps=2)
    assert [at[1:] for at in seen] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert torch.equal(torch.cat([images for images, *_ in seen[::2]]), torch.from_numpy(patterns.images))
    assert curve["images"] == [32, 64, 96]


def test_more_steps_on_each_batch_learn_more(patterns, tiny):
    curves = [online.train_once(tiny, patterns, steps)[1] for steps in (1, 20)]
    assert curves[1]["nmi"][-1] > curves[0]["nmi"][-1] + 0.2


def test_a_finished_run_is_measured(root, patterns, tiny):
    with pytest.raises(DataError, match="no weights of this run"):
        online.measure(tiny, patterns)
    this = run.Run(tiny, patterns)
    this.finish(*train(tiny, patterns, this.report))
    found = online.measure(tiny, patterns)
    assert json.loads((this.folder / "online.json").read_text()) == found
    assert found["commit"]
    assert found["once"].keys() == {"1", "20"}
    assert not (root / "results").exists()  # settings were overridden
    record = json.loads((this.folder / "run.json").read_text())
    assert found["stream"]["nmi"][-1] == pytest.approx(record["scores"]["nmi"])


def test_a_recipe_is_published(root, digits, model, monkeypatch):
    monkeypatch.setattr(online, "_trained", lambda config, data, folder: model)
    monkeypatch.setattr(online, "train_once", lambda *a: (model, {}))
    monkeypatch.setattr(online, "follow", lambda *a: {})
    online.measure(recipe("digits", seed=3), digits)
    assert (root / "results/online/demo/digits/cc-seed3.json").exists()
