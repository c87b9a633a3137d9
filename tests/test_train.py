import copy
import dataclasses
import doctest
import math
import shutil

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccrepro import augmentations, batches, train
from ccrepro.data import ImageSet, channel_statistics
from ccrepro.errors import NumericalError
from ccrepro.evaluate import evaluate
from ccrepro.loss import cluster_loss, instance_loss
from ccrepro.metrics import accuracy
from ccrepro.model import build
from ccrepro.own_images import own_recipe
from ccrepro.recipes import recipe
from ccrepro.runtime.distributed import ALONE


def trained(config, data):
    """The state after the last step."""
    state = train.start(config, data)
    for _ in train.train(state, data):
        pass
    return state


def untimed(state):
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in state.history]


@pytest.fixture
def views(patterns, tiny):
    """Both views of the first batch."""
    return next(batches.pairs(torch.from_numpy(patterns.images), tiny, epoch=0))


def test_the_loop_of_the_docstring_runs():
    found = doctest.testmod(train)
    assert found.attempted > 3
    assert found.failed == 0


def test_three_easy_classes_are_found(patterns, tiny):
    config = tiny.replace(epochs=30)
    state = trained(config, patterns)
    assert accuracy(patterns.labels, evaluate(config, patterns, state.model).labels_pred) >= 0.95
    assert state.history[-1]["loss"] < state.history[0]["loss"] - 0.5


def test_same_seed_same_history_and_weights(patterns, tiny):
    a, b = trained(tiny, patterns), trained(tiny, patterns)
    assert untimed(a) == untimed(b)
    assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    assert untimed(trained(tiny.replace(seed=1), patterns)) != untimed(a)


def test_labels_are_never_read(patterns, tiny):
    blind = dataclasses.replace(patterns, labels=np.zeros(0, dtype=np.int64))
    assert untimed(trained(tiny, blind)) == untimed(trained(tiny, patterns))


def test_training_yields_after_each_step_and_closes_each_epoch(patterns, tiny):
    state = train.start(tiny, patterns)
    seen = [(state.epoch, len(state.steps), len(state.history)) for _ in train.train(state, patterns)]
    assert seen == [(0, 1, 0), (0, 2, 0), (1, 0, 1), (1, 1, 1), (1, 2, 1), (2, 0, 2)]
    assert [epoch["epoch"] for epoch in state.history] == [1, 2]
    assert set(state.history[0]) == {"epoch", "seconds", *train.METRIC_NAMES}
    assert 0 < state.history[0]["entropy"] <= math.log(3)
    assert 1 / 3 <= state.history[0]["largest_share"] <= 1


def test_a_step_minimises_the_sum_of_both_losses(patterns, tiny, views):
    """Two forward passes with their own batch statistics, both losses, one step of Adam."""
    state = train.start(tiny, patterns)
    by_hand = copy.deepcopy(state.model).train()
    found = dict(zip(train.METRIC_NAMES, train.step(state, *views), strict=True))
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=tiny.lr)
    (z_a, p_a), (z_b, p_b) = map(by_hand, views)
    loss = instance_loss(z_a, z_b, 0.5) + cluster_loss(p_a, p_b, 1.0)
    loss.backward()
    optimizer.step()
    assert found["loss"].item() == loss.item()
    gradients = torch.cat([p.grad.ravel() for p in by_hand.parameters()])
    assert found["gradient_norm"].item() == pytest.approx(gradients.norm().item(), rel=1e-5)
    for name, value in by_hand.state_dict().items():
        # Adam's first step is the gradient's sign times the rate, so a rounded gradient near 0 moves a weight by lr.
        assert_close(state.model.state_dict()[name], value, rtol=1e-4, atol=0.02 * tiny.lr)
    assert state.model.backbone.bn1.num_batches_tracked == 2


@pytest.mark.parametrize(("heads", "frozen"), [("instance", "cluster_head"), ("cluster", "instance_head")])
def test_an_ablated_head_does_not_learn(patterns, tiny, heads, frozen):
    config = tiny.replace(heads=heads)
    after, before = trained(config, patterns).model, build(config, 1)
    for head in ("instance_head", "cluster_head"):
        moved = not torch.equal(getattr(after, head)[0].weight, getattr(before, head)[0].weight)
        assert moved == (head != frozen)


def test_unlabeled_images_train_the_instance_head_only(patterns, tiny, views):
    state = train.start(tiny, patterns)
    train.step(state, *views, both=False)
    assert all(w.grad is None or not w.grad.any() for w in state.model.cluster_head.parameters())
    assert all(w.grad.any() for w in state.model.instance_head.parameters())


def test_a_loss_that_is_not_finite_stops(patterns, tiny):
    with pytest.raises(NumericalError, match=r"loss is nan in epoch 1, step 2\."):
        trained(tiny.replace(lr=1e30), patterns)


def test_bf16_is_near_fp32_and_losses_stay_in_fp32(tiny, views):
    model = build(tiny, 1).train()
    exact, _ = train.losses(model, *views, tiny, "both", ALONE.gather)
    rough, metrics = train.losses(model, *views, tiny.replace(precision="bf16"), "both", ALONE.gather)
    assert rough.dtype == metrics["instance_loss"].dtype == torch.float32
    assert rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), abs=0.05)


def test_diagnostics_count_clusters_by_their_largest_assignment():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])
    found = train.diagnostics(torch.rand(4, 5), torch.rand(4, 5), p, p)
    assert found["clusters_used"] == 2
    assert found["largest_share"] == 0.75


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_optimizers_are_torchs(patterns, tiny, optimizer, kind):
    found = train.start(tiny.replace(optimizer=optimizer, weight_decay=0.01), patterns).optimizer
    assert type(found) is kind
    assert found.param_groups[0]["weight_decay"] == 0.01
    assert found.param_groups[0].get("momentum", 0.9) == 0.9


def test_learning_rate():
    def rates(**settings):
        config = recipe("digits", "demo", lr=0.1, epochs=10, **settings)
        return [train.learning_rate(config, epoch) for epoch in range(10)]

    assert rates(schedule="constant") == [0.1] * 10
    half_a_cosine = [0.05 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(10)]
    assert rates(schedule="cosine") == pytest.approx(half_a_cosine)
    rising = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert rates(warmup=0.4) == pytest.approx(np.multiply(half_a_cosine, rising))


def test_standardised_pixels_have_mean_0_and_standard_deviation_1(patterns, tiny):
    model = train.start(tiny.replace(normalize=True), patterns).model
    x = model.standardize(torch.from_numpy(patterns.images) / 255)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert "standardize.mean" in model.state_dict()  # so that a saved model sees pixels as it did in training


def test_a_channel_without_contrast_is_not_divided_by_zero(generator):
    """As in images of green fluorescence; nor is it by the root of a variance that rounding made negative."""
    images = torch.randint(0, 256, (24, 3, 8, 8), generator=generator).byte().numpy()
    images[:, 0], images[:, 2] = 0, 77
    mean, deviation = channel_statistics(images)
    assert deviation[[0, 2]].tolist() == [1, 1]
    assert mean[2] == pytest.approx(77 / 255)
    data = ImageSet("green", images, None, (), "made here")
    config = own_recipe(3, 24, 8, epochs=1)
    assert np.isfinite(trained(config, data).history[-1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "side", "backend"), [("small", 8, "aot_eager"), ("fast-s", 16, "inductor")])
def test_a_compiled_step_is_one_graph_and_the_same(tiny, patterns, backbone, side, backend):
    """What a GPU runs: without a break in the graph, where the host would wait.

    In double precision: gradients are sums of many terms, which a compiler may add up in another order.
    """
    tiny = tiny.replace(backbone=backbone, image_size=side)
    views = next(batches.pairs(torch.from_numpy(patterns.images), tiny, epoch=0))
    views, model = [view.double() for view in views], build(tiny, 1).train().double()
    compiled = torch.compile(train.losses, backend=backend, fullgraph=True)
    found = []
    for forward in (train.losses, compiled):
        model.zero_grad(set_to_none=True)
        loss, _ = forward(model, *views, tiny, "both", ALONE.gather)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_step_in_bf16_is_as_near_to_fp32_as_an_eager_one(tiny, patterns):
    """A compiler rounds to bf16 elsewhere, so a gradient that looks for equal numbers, as that of amax, finds none."""
    tiny = tiny.replace(backbone="fast-s", image_size=16)
    views, model = next(batches.pairs(torch.from_numpy(patterns.images), tiny, epoch=0)), build(tiny, 1).train()

    def gradient(forward, precision):
        model.zero_grad(set_to_none=True)
        forward(model, *views, tiny.replace(precision=precision), "both", ALONE.gather)[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    exact = gradient(train.losses, "fp32")
    eager, compiled = (gradient(forward, "bf16") - exact for forward in (train.losses, torch.compile(train.losses)))
    assert 0 < compiled.norm() < 1.5 * eager.norm() < 0.5 * exact.norm()


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a GPU: numbers read from it, and tensors moved to or from it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        reads = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if len(devices) > 1 or reads:
            self.found.append(f"{func} {devices}")
        return out


@pytest.mark.parametrize(("dataset", "preset"), [("cifar10", "fast"), ("imagenet10", "paper"), ("digits", "demo")])
def test_no_step_makes_the_host_wait_for_a_gpu(dataset, preset):
    """On made-up tensors of a GPU, which have no memory: views, network, losses and what is watched of a step."""
    config = recipe(dataset, preset, backbone="small", image_size=32, batch_size=8)
    channels = 1 if dataset == "digits" else 3
    generator, sizes = torch.Generator().manual_seed(0), torch.full((8, 2), 40)
    with FakeTensorMode(allow_non_fake_inputs=True):
        drawn = [augmentations.draw(generator, sizes, config).to(torch.device("cuda")) for _ in "ab"]
        with torch.device("cuda"):
            model, images = build(config, channels).train(), torch.empty(8, channels, 40, 40, dtype=torch.uint8)
        with Waits() as waits:
            views = batches._views(images, drawn, config)
            loss, _ = train.losses(model, *views, config, config.heads, ALONE.gather)
    assert (loss.device.type, waits.found) == ("cuda", [])
