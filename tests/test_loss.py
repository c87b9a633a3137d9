import math

import numpy as np
import pytest
import reference
import torch
from scipy.special import logsumexp
from torch.testing import assert_close

from ccrepro.loss import cluster_loss, instance_loss, mean_entropy, nt_xent, pair_cosines

N, D, K = 7, 5, 4


@pytest.fixture
def z(generator):
    return [torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "ab"]


@pytest.fixture
def p(generator):
    logits = [torch.randn(N, K, generator=generator, dtype=torch.float64) for _ in "ab"]
    return [x.softmax(1).requires_grad_() for x in logits]


def value_and_gradients(loss, inputs):
    value = loss(*inputs)
    return value, *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_instance_loss_equals_the_equations_in_value_and_gradient(z, temperature):
    ours = value_and_gradients(lambda a, b: instance_loss(a, b, temperature), z)
    slow = value_and_gradients(lambda a, b: reference.instance_loss(a, b, temperature), z)
    assert_close(ours, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("entropy_weight", [0.0, 1.0, 2.5])
def test_cluster_loss_equals_the_equations_in_value_and_gradient(p, entropy_weight):
    ours = value_and_gradients(lambda a, b: cluster_loss(a, b, 0.7, entropy_weight), p)
    slow = value_and_gradients(lambda a, b: reference.cluster_loss(a, b, 0.7, entropy_weight), p)
    # The reference divides by the sum of all entries, ours by N; their gradients differ by what moves a row's sum
    # off 1, which no softmax can do. So compare the gradients along the rows' differences.
    assert_close(ours[0], slow[0], rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(ours[1:], slow[1:], strict=True):
        assert_close(*(g - g.mean(1, keepdim=True) for g in (mine, theirs)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.001, 0.003, 0.02, 0.1, 1.0, 10.0])
def test_single_precision_is_enough_at_low_temperatures(generator, temperature):
    """Opposite vectors are the hard case: their similarities differ by 2 / t, some 670 at the lowest."""
    x = torch.nn.functional.normalize(torch.randn(8, 2, generator=generator, dtype=torch.float64))
    pair = [torch.cat((x[:1], -x[:1], x)), torch.cat((x[:1], -x[:1], x.flip(0)))]
    single, double = [v.float().requires_grad_() for v in pair], [v.requires_grad_() for v in pair]
    value, *gradients = value_and_gradients(lambda a, b: nt_xent(a, b, temperature), single)
    exact = value_and_gradients(lambda a, b: reference.instance_loss(a, b, temperature), double)
    assert value.dtype == torch.float32
    assert_close(value.double(), exact[0], rtol=1e-5, atol=1e-5)
    for ours, slow in zip(gradients, exact[1:], strict=True):
        assert ours.isfinite().all()
        # Rounded unit vectors shift a similarity by 1e-7 / t, and the gradient as much again.
        assert (ours.double() - slow).norm() <= (1e-6 + 1e-7 / temperature**2) * slow.norm()


@pytest.mark.parametrize("m", [2, 3, 128, 2048])
def test_loss_of_many_vectors_equals_scipys_log_sum_exp(generator, m):
    a, b = (torch.randn(m, 16, generator=generator, dtype=torch.float64) for _ in "ab")
    x = np.concatenate([(v / v.norm(dim=1, keepdim=True)).numpy() for v in (a, b)])
    similarities = x @ x.T / 0.3
    positives = np.concatenate([np.diag(similarities, m), np.diag(similarities, -m)])
    np.fill_diagonal(similarities, -np.inf)
    assert nt_xent(a, b, 0.3).item() == pytest.approx((logsumexp(similarities, axis=1) - positives).mean(), rel=1e-12)


def test_half_precision_is_raised_to_single_and_double_stays(generator):
    a, b = (torch.randn(8, 4, generator=generator) for _ in "ab")
    assert nt_xent(a.bfloat16(), b.bfloat16(), 0.5).dtype == nt_xent(a, b, 0.5).dtype == torch.float32
    assert nt_xent(a.double(), b.double(), 0.5).dtype == torch.float64


def test_gradients_equal_finite_differences(z, p):
    assert torch.autograd.gradcheck(instance_loss, z)
    assert torch.autograd.gradcheck(cluster_loss, p)


@pytest.mark.parametrize(("n", "start", "end"), [(64, 4.844, 2.893), (128, 5.541, 3.566), (256, 6.236, 4.249)])
def test_instance_loss_starts_and_ends_at_the_known_values(n, start, end):
    equal = torch.ones(n, 8)
    assert instance_loss(equal, equal).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    assert instance_loss(equal, equal).item() == pytest.approx(start, abs=5e-4)
    perfect = torch.eye(n)
    assert instance_loss(perfect, perfect).item() == pytest.approx(end, abs=5e-4)


@pytest.mark.parametrize(("k", "start", "end"), [(10, 2.944, 2.031), (20, 3.664, 2.707), (200, 5.989, 4.993)])
def test_cluster_loss_starts_and_ends_at_the_known_values(k, start, end):
    uniform = torch.full((2 * k, k), 1 / k)
    assert cluster_loss(uniform, uniform).item() == pytest.approx(start, abs=5e-4)
    perfect = torch.eye(k).repeat(2, 1)
    assert cluster_loss(perfect, perfect).item() == pytest.approx(end, abs=5e-4)


def test_entropy_is_log_k_for_equal_clusters_and_zero_for_one():
    assert mean_entropy(torch.eye(6)).item() == pytest.approx(math.log(6), abs=1e-6)
    assert mean_entropy(torch.eye(6)[[2, 2, 2]]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("gap", [0.0, 50.0, 104.0, 1e4])
def test_an_empty_cluster_leaves_value_and_gradient_finite(generator, gap):
    logits = torch.randn(N, K, generator=generator)
    logits[:, 1] -= gap
    logits.requires_grad_()
    loss = cluster_loss(logits.softmax(1), logits.flip(0).softmax(1))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0


def test_an_empty_cluster_costs_more_than_equal_ones():
    collapsed, equal = torch.eye(K)[[0] * 8], torch.eye(K).repeat(2, 1)
    assert cluster_loss(collapsed, collapsed) > cluster_loss(equal, equal)


def test_views_may_be_swapped(z, p):
    assert_close(instance_loss(*z), instance_loss(*z[::-1]))
    assert_close(cluster_loss(*p), cluster_loss(*p[::-1]))


def test_images_may_be_permuted(z, p, generator):
    order = torch.randperm(N, generator=generator)
    assert_close(instance_loss(*z), instance_loss(*(x[order] for x in z)))
    assert_close(cluster_loss(*p), cluster_loss(*(x[order] for x in p)))


def test_clusters_may_be_permuted(p, generator):
    order = torch.randperm(K, generator=generator)
    assert_close(cluster_loss(*p), cluster_loss(*(x[:, order] for x in p)))


def test_length_of_z_does_not_matter(z):
    assert_close(instance_loss(*z), instance_loss(3 * z[0], z[1] / 5))


def test_mispaired_views_change_the_loss(z, p):
    """Views that agree give less than the same views with their pairs shifted by one."""
    assert instance_loss(z[0], z[0]) < instance_loss(z[0], z[0].roll(1, 0)) - 0.1
    assert cluster_loss(p[0], p[0]) < cluster_loss(p[0], p[0].roll(1, 1)) - 0.01


def test_rows_and_columns_go_through_the_same_contrast(p):
    assert_close(cluster_loss(*p, 0.5, 0.0), nt_xent(p[0].T, p[1].T, 0.5))


@pytest.mark.parametrize("shape", [(9, 4), (3, 20)])  # more vectors than numbers in each, and fewer
def test_cosines_of_pairs_equal_those_counted_one_by_one(generator, shape):
    a, b = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    vectors, m = [*a, *b], shape[0]
    cosine = [[reference.cosine(u, v).item() for v in vectors] for u in vectors]
    positive = [cosine[i][i + m] for i in range(m)]
    negative = [cosine[i][j] for i in range(2 * m) for j in range(2 * m) if i % m != j % m]
    expected = {"positive": np.mean(positive), "positive_sd": np.std(positive)}
    expected |= {"negative": np.mean(negative), "negative_sd": np.std(negative)}
    assert {name: value.item() for name, value in pair_cosines(a, b).items()} == pytest.approx(expected, abs=1e-5)
