from typing import get_args

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from ccrepro import baselines
from ccrepro.config import Config
from ccrepro.metrics import accuracy, scores
from ccrepro.recipes import VARIANTS


def test_every_baseline_is_a_setting_and_a_variant():
    assert set(get_args(Config.model_fields["baseline"].annotation)) == {"", *baselines.BASELINES}
    assert {v.settings["baseline"] for v in VARIANTS.values() if "baseline" in v.settings} == set(baselines.BASELINES)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_baseline_finds_patterns_and_repeats_with_its_seed(patterns, name):
    pixels = patterns.images.reshape(96, -1).astype(np.float32) / 255
    a, b = (baselines.BASELINES[name](pixels, 3, seed=4) for _ in "ab")
    assert np.array_equal(a, b)
    assert accuracy(patterns.labels, a) > 0.98


@pytest.mark.parametrize(
    ("name", "known", "within"),
    [
        ("kmeans", {"nmi": 0.742, "acc": 0.793, "ari": 0.668}, 0.01),
        ("agglomerative", {"nmi": 0.868, "acc": 0.840, "ari": 0.794}, 0.02),
        ("spectral", {"nmi": 0.854, "acc": 0.809, "ari": 0.757}, 0.02),
        ("nmf", {"nmi": 0.439, "acc": 0.529, "ari": 0.300}, 0.02),
    ],
)
def test_baselines_on_digits_score_what_is_known(digits, name, known, within):
    pixels = digits.images.reshape(1797, -1).astype(np.float32) / 255
    assert scores(digits.labels, baselines.BASELINES[name](pixels, 10, 0)) == pytest.approx(known, abs=within)


def test_agglomerative_is_wards_linkage(patterns):
    pixels = patterns.images.reshape(96, -1) / 255
    ward = AgglomerativeClustering(3, linkage="ward").fit_predict(pixels)
    assert np.array_equal(baselines.agglomerative(pixels, 3, seed=0), ward)
