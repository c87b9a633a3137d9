import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sk

from ccrepro.metrics import accuracy, contingency, matched_classes, mean_sd, scores

# labels_true, labels_pred, ACC by hand
BY_HAND = [
    ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
    ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
    ([0, 0, 1, 1], [7, 7, 3, 3], 1.0),  # gaps between cluster numbers
    ([2, 2, 5, 5], [0, 0, 1, 1], 1.0),  # gaps between labels
    ([0, 0, 1, 1], [0, 0, 0, 0], 0.5),  # everything in one cluster
    ([0, 0, 1, 1], [0, 1, 2, 3], 0.5),  # more clusters than classes
    ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], 4 / 6),
    ([0, 1, 2, 0, 1, 2], [1, 1, 1, 1, 2, 2], 3 / 6),  # cluster 0 empty, fewer clusters than classes
    ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], 4 / 6),
]


@pytest.mark.parametrize(("true", "pred", "expected"), BY_HAND)
def test_accuracy_by_hand(true, pred, expected):
    assert accuracy(true, pred) == pytest.approx(expected)


def test_accuracy_with_cluster_0_empty_where_the_authors_code_fails():
    """Their code shifts cluster numbers by the smallest used one after matching; the right value is unchanged."""
    true = np.repeat(np.arange(10), 50)
    pred = np.where(true == 0, 1, true)
    assert accuracy(true, pred) == pytest.approx(0.9)


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 6, 500)
    return true, np.where(rng.random(500) < 0.6, (true * 5) % 6, rng.integers(0, 6, 500))


def test_scores_do_not_depend_on_the_names_of_clusters(labels):
    true, pred = labels
    renamed = np.array([30, 4, 17, 2, 9, 11])[pred]
    assert scores(true, renamed) == pytest.approx(scores(true, pred))


RNG = np.random.default_rng(5)
PARTITIONS = {
    **{f"by hand {i}": (true, pred) for i, (true, pred, _) in enumerate(BY_HAND)},
    "one class, one cluster": ([3, 3, 3], [1, 1, 1]),
    "one class": ([0, 0, 0], [0, 1, 2]),
    "each image alone": ([0, 1, 2], [2, 0, 1]),
    "one image": ([0], [0]),
    "independent": ([0, 0, 1, 1], [0, 1, 0, 1]),
    "negative and text": ([-1, -1, 4, 4, 4], ["b", "b", "a", "b", "a"]),
    "small integers": (RNG.integers(0, 200, 3000).astype(np.uint8), RNG.integers(0, 200, 3000).astype(np.int8)),
    "large numbers": (RNG.integers(0, 5, 400) * 10**9, RNG.integers(0, 7, 400) * 10**7),
    "wide": (RNG.integers(0, 100, 2000), RNG.integers(0, 300, 2000)),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_nmi_and_ari_are_scikit_learns(name):
    true, pred = PARTITIONS[name]
    found = scores(true, pred)
    assert found["nmi"] == pytest.approx(sk.normalized_mutual_info_score(true, pred), abs=1e-12)
    assert found["ari"] == pytest.approx(sk.adjusted_rand_score(true, pred), abs=1e-12)


def test_accuracy_is_the_trace_of_the_matched_contingency(labels):
    counts = contingency(*labels, 6)
    assert counts.sum() == 500
    assert np.trace(counts) / 500 == pytest.approx(accuracy(*labels))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    assert np.array_equal(rows, columns)


def test_contingency_keeps_unmatched_and_empty_clusters_last():
    counts = contingency([0, 0, 0, 1, 1, 1], [3, 3, 1, 0, 0, 1], 5)
    assert counts.tolist() == [[2, 0, 1, 0, 0], [0, 2, 1, 0, 0]]


def test_contingency_with_fewer_clusters_than_classes():
    assert contingency([0, 1, 2, 2], [0, 1, 1, 1], 2).sum() == 4


def test_random_labels_score_zero():
    rng = np.random.default_rng(1)
    found = scores(rng.integers(0, 10, 20_000), rng.integers(0, 10, 20_000))
    assert found["ari"] == pytest.approx(0, abs=2e-3)
    assert found["nmi"] == pytest.approx(0, abs=2e-3)
    assert found["acc"] == pytest.approx(0.1, abs=0.02)


def test_matched_classes_are_those_of_the_accuracy():
    labels_true = [5, 5, 5, 7, 7, 9, 9, 9]
    labels_pred = [2, 2, 0, 3, 3, 0, 0, 2]
    assert matched_classes(labels_true, labels_pred, 5).tolist() == [9, -1, 5, 7, -1]
    right = matched_classes(labels_true, labels_pred, 5)[labels_pred] == np.array(labels_true)
    assert right.mean() == accuracy(labels_true, labels_pred)


@pytest.mark.parametrize(("values", "text"), [([], "–"), ([0.97], "0.970"), ([0.967, 0.972, 0.977], "0.972 ± 0.005")])
def test_standard_deviation_is_that_of_a_sample(values, text):
    assert mean_sd(values) == text


@pytest.mark.parametrize(
    "call", [accuracy, scores, lambda *both: contingency(*both, 3), lambda *both: matched_classes(*both, 3)]
)
def test_labels_may_be_a_column_but_not_more_or_fewer_than_images(call):
    true, pred = np.array([0, 1, 2, 1]), np.array([1, 0, 2, 0])
    assert np.array_equal(call(true[:, None], pred[:, None]), call(true, pred))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        call(true, pred[:3])
    with pytest.raises(ValueError, match="1d"):
        call(np.stack([true, true], 1), pred)
