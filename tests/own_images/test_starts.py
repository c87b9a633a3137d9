"""Several starts on features: the paper's losses, the lowest kept, nothing trained twice."""

import itertools

import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from ccrepro import train
from ccrepro.loss import cluster_loss
from ccrepro.own_images import own_recipe, starts
from ccrepro.runs import pretrained

F = 20
EPOCHS = 25


@pytest.fixture(scope="module")
def features():
    """Three kinds of 30 images, four views of each: float32 (90, 4, F); and their kinds."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    centres = rng.standard_normal((3, F))
    images = centres[labels] + 0.3 * rng.standard_normal((90, F))
    return (images[:, None] + 0.2 * rng.standard_normal((90, 4, F))).astype(np.float32), labels


@pytest.fixture(scope="module")
def config():
    return own_recipe(3, 90, 0, 160, epochs=EPOCHS, batch_size=30, lr=3e-3, seed=1)


@pytest.fixture(scope="module")
def found(features, config):
    return starts.fit(config, features[0], 4)


def trained(start):
    model = pretrained.without_encoder(start.config, F)
    model.load_state_dict(start.weights)
    return model.eval()


def test_the_kinds_are_found_and_the_lowest_loss_comes_first(found, features):
    losses = [start.loss for start in found]
    assert losses == sorted(losses)
    assert adjusted_rand_score(features[1], found[0].clusters) > 0.95
    assert len({start.loss for start in found}) == 4, "each start has its own seed"
    assert [epoch["epoch"] for epoch in found[0].history] == [*range(1, EPOCHS + 1)]
    model = trained(found[0])
    z, p = starts.outputs(model, features[0])
    assert (z.shape, p.shape) == ((90, 128), (4, 90, 3))
    assert (p[0].argmax(1) == found[0].clusters).all()
    for view in range(4):
        given = pretrained.OnFeatures(model)(torch.from_numpy(features[0][:, view]))
        np.testing.assert_allclose(given[1].detach(), p[view], atol=1e-6)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(found, features, config, monkeypatch):
    monkeypatch.setattr(starts, "at_once", lambda: 2)
    again = starts.fit(config, features[0], 4)
    assert all((a.p == b.p).all() for a, b in zip(found, again, strict=True))


def test_another_seed_gives_other_starts(found, features, config):
    assert starts.fit(config.replace(seed=2), features[0], 1)[0].loss != found[0].loss


def test_the_loss_is_that_of_all_pairs_of_views(found, config):
    p = torch.from_numpy(found[0].p)
    slow = [reference.cluster_loss(a.double(), b.double(), 1.0) for a, b in itertools.combinations(p, 2)]
    assert starts.loss_of(p, config) == pytest.approx(float(np.mean([float(v) for v in slow])), rel=1e-5)
    assert found[0].loss == starts.loss_of(p, config)
    assert starts.loss_of(p[:2], config) == pytest.approx(cluster_loss(p[0], p[1]).item())


def test_both_losses_train_the_trunk_that_the_heads_share(features, config):
    """Without the instance head, the same seed ends elsewhere: on frozen features without a trunk, it would not."""
    both, alone = (starts.fit(config.replace(heads=h), features[0], 1)[0] for h in ("both", "cluster"))
    assert (both.weights["backbone.trunk.0.weight"] != alone.weights["backbone.trunk.0.weight"]).any()
    assert (both.p != alone.p).any()


def test_a_finished_start_is_not_trained_again(found, features, config, tmp_path, monkeypatch):
    starts.fit(config, features[0], 3, tmp_path, "these")
    step = train.step
    steps = []
    monkeypatch.setattr(train, "step", lambda *a: steps.append(1) or step(*a))
    again = starts.fit(config, features[0], 4, tmp_path, "these")
    assert len(steps) == 3 * EPOCHS, "only the fourth"
    assert all((a.p == b.p).all() and a.history == b.history for a, b in zip(found, again, strict=True))
    starts.fit(config, features[0], 1, tmp_path, "others")
    starts.fit(config.replace(epochs=EPOCHS - 1), features[0], 1, tmp_path, "others")
    file = tmp_path / "start-1.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    starts.fit(config, features[0], 2, tmp_path, "these")
    assert len(steps) == 3 * (EPOCHS + EPOCHS + EPOCHS - 1 + 2 * EPOCHS)


def test_agreement_is_the_mean_of_all_pairs(features):
    labels = features[1]
    other, third = np.where(labels == 2, 0, labels), np.roll(labels, 7)
    pairs = itertools.combinations((labels, other, third), 2)
    expected = np.mean([adjusted_mutual_info_score(a, b) for a, b in pairs])
    assert starts.agreement([labels, other, third]) == pytest.approx(expected)
    assert starts.agreement([labels, (labels + 1) % 3]) == pytest.approx(1)
    assert starts.agreement([labels * 0, labels * 0]) == 0, "all is one cluster"
