import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from ccrepro import baselines, config, datasets
from ccrepro.metrics import accuracy, scores


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_baseline_finds_patterns_and_repeats_with_its_seed(patterns, name):
    pixels = patterns.images.reshape(96, -1).astype(np.float32) / 255
    a, b = (baselines.BASELINES[name](pixels, 3, seed=4) for _ in "ab")
    assert np.array_equal(a, b)
    assert accuracy(patterns.labels, a) > 0.98


def test_every_baseline_may_be_asked_for():
    assert tuple(baselines.BASELINES) == config.BASELINES
    assert {v["baseline"] for v in config.VARIANTS.values() if "baseline" in v} == set(config.BASELINES)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("agglomerative", {"nmi": 0.868, "acc": 0.840, "ari": 0.794}),
        ("spectral", {"nmi": 0.854, "acc": 0.809, "ari": 0.757}),
        ("nmf", {"nmi": 0.439, "acc": 0.529, "ari": 0.300}),
    ],
)
def test_baselines_on_digits_score_what_they_did(digits, name, known):
    pixels = digits.images.reshape(1797, -1).astype(np.float32) / 255
    assert scores(digits.labels, baselines.BASELINES[name](pixels, 10, 0)) == pytest.approx(known, abs=0.02)


def test_agglomerative_is_wards_linkage(patterns):
    pixels = patterns.images.reshape(96, -1) / 255
    ward = AgglomerativeClustering(3, linkage="ward").fit_predict(pixels)
    assert np.array_equal(baselines.agglomerative(pixels, 3, seed=0), ward)


def test_a_sample_keeps_images_with_their_labels(patterns):
    part = datasets.sample(patterns, 20, seed=1)
    assert len(part.images) == len(part.labels) == len(part.sizes) == 20
    whole = {image.tobytes(): label for image, label in zip(patterns.images, patterns.labels, strict=True)}
    assert [whole[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert np.array_equal(part.images, datasets.sample(patterns, 20, seed=1).images)
    assert not np.array_equal(part.images, datasets.sample(patterns, 20, seed=2).images)


@pytest.mark.parametrize("n", [0, 96, 10_000])
def test_a_sample_of_all_is_the_set_itself(patterns, n):
    assert datasets.sample(patterns, n, seed=0) is patterns
