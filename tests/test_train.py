import copy
import dataclasses
import math
import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccrepro import augmentations
from ccrepro import train as train_module
from ccrepro.config import own_recipe, recipe
from ccrepro.datasets import ImageSet
from ccrepro.errors import ConfigError, NumericalError
from ccrepro.evaluate import evaluate
from ccrepro.loss import cluster_loss, instance_loss
from ccrepro.machine import choose_device
from ccrepro.metrics import accuracy
from ccrepro.model import build
from ccrepro.ranks import ALONE
from ccrepro.train import epoch_generator, learning_rate, pairs, step, train

TIMES = {"seconds"}


def tensors(data):
    return torch.from_numpy(data.images), torch.from_numpy(data.sizes)


def untimed(history):
    return [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in history]


def test_three_easy_classes_are_found(patterns, tiny):
    config = dataclasses.replace(tiny, epochs=30)
    model, history = train(config, patterns)
    assert accuracy(patterns.labels, evaluate(config, patterns, model).labels_pred) >= 0.95
    assert history[-1]["loss"] < history[0]["loss"] - 0.5


def test_same_seed_same_history_and_weights(patterns, tiny):
    (a, history_a), (b, history_b) = train(tiny, patterns), train(tiny, patterns)
    assert untimed(history_a) == untimed(history_b)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_another_seed_another_history(patterns, tiny):
    other = dataclasses.replace(tiny, seed=1)
    assert untimed(train(tiny, patterns)[1]) != untimed(train(other, patterns)[1])


def test_labels_are_never_read(patterns, tiny):
    blind = dataclasses.replace(patterns, labels=np.zeros(0, dtype=np.int64))
    assert untimed(train(tiny, blind)[1]) == untimed(train(tiny, patterns)[1])


def test_history_reports_every_epoch(patterns, tiny):
    seen = []
    model, history = train(tiny, patterns, report=lambda *args: seen.append(args))
    assert seen == [({"epoch": 0}, model), *((epoch, model) for epoch in history)]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert 0 < history[0]["entropy"] <= math.log(3)
    assert 1 / 3 <= history[0]["largest_share"] <= 1


def test_a_step_minimises_the_sum_of_both_losses(patterns, tiny):
    """One step equals: two forwards with their own batch statistics, both losses, one step of Adam; up to the rounding
    of a gradient that is summed over both views at once. The loss is the same to the last bit."""
    view_a, view_b = next(pairs(*tensors(patterns), tiny, epoch=0))
    model = build(tiny, 1)
    by_hand = copy.deepcopy(model)
    numbers = step(model, torch.optim.Adam(model.parameters(), lr=tiny.lr), view_a, view_b, tiny)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=tiny.lr)
    (z_a, p_a), (z_b, p_b) = by_hand(view_a), by_hand(view_b)
    loss = instance_loss(z_a, z_b, 0.5) + cluster_loss(p_a, p_b, 1.0)
    loss.backward()
    optimizer.step()
    assert numbers["loss"].item() == loss.item()
    for name, value in by_hand.state_dict().items():
        # Adam's first step is the gradient's sign times the rate, so a rounded gradient near 0 moves a weight by lr.
        assert_close(model.state_dict()[name], value, rtol=1e-4, atol=0.02 * tiny.lr)
    assert model.backbone.bn1.num_batches_tracked == 2


@pytest.mark.parametrize(("heads", "frozen"), [("instance", "cluster_head"), ("cluster", "instance_head")])
def test_an_ablated_head_does_not_learn(patterns, tiny, heads, frozen):
    config = dataclasses.replace(tiny, heads=heads)
    trained, start = train(config, patterns)[0], build(config, 1)
    for head in ("instance_head", "cluster_head"):
        moved = not torch.equal(getattr(trained, head)[0].weight, getattr(start, head)[0].weight)
        assert moved == (head != frozen)


def test_unlabeled_images_train_the_instance_head_only(patterns):
    config = recipe("stl10", profile="paper", backbone="small", image_size=8, batch_size=32, n_clusters=3)
    model = build(config, 1)
    gray = dataclasses.replace(config, jitter=0, grayscale=0)
    step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), *next(pairs(*tensors(patterns), gray, 0)), gray, both=False
    )
    assert all(w.grad is None or not w.grad.any() for w in model.cluster_head.parameters())
    assert all(w.grad.any() for w in model.instance_head.parameters())


def test_an_epoch_with_unlabeled_images_is_two_passes(patterns, monkeypatch):
    config = recipe("stl10", profile="paper", backbone="small", image_size=8, batch_size=32, epochs=1)
    data = dataclasses.replace(patterns, unlabeled=patterns.images.repeat(2, 0))
    calls = []
    real = step
    monkeypatch.setattr("ccrepro.train.step", lambda *args: calls.append(args[5]) or real(*args))
    train(config, data)
    assert calls == [False] * 6 + [True] * 3


class TestPairs:
    def test_every_image_comes_once_and_the_rest_is_left_out(self, tiny):
        images = torch.arange(70, dtype=torch.uint8).view(70, 1, 1, 1).expand(70, 1, 8, 8)
        plain = dataclasses.replace(tiny, views="none")
        batches = [
            (a[:, 0, 0, 0] * 255).round().int().tolist()
            for a, _ in pairs(images, torch.full((70, 2), 8), plain, epoch=0)
        ]
        assert [len(b) for b in batches] == [32, 32]
        assert len({image for batch in batches for image in batch}) == 64

    def test_each_epoch_has_its_own_order_and_draws(self, patterns, tiny):
        first, second, again = (next(pairs(*tensors(patterns), tiny, epoch=e))[0] for e in (0, 1, 0))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)

    @pytest.mark.parametrize(("views", "equal"), [("both", False), ("one", False), ("none", True)])
    def test_views_are_augmented_as_table_3_says(self, patterns, tiny, views, equal):
        config = dataclasses.replace(tiny, views=views)
        a, b = next(pairs(*tensors(patterns), config, epoch=0))
        order = torch.randperm(96, generator=epoch_generator(tiny.seed, 0))[:32]
        plain = augmentations.plain(torch.from_numpy(patterns.images)[order], 8)
        assert torch.equal(a, b) == equal
        assert torch.equal(b, plain) == (views != "both")
        assert torch.equal(a, plain) == (views == "none")


def test_generators_differ_by_seed_epoch_and_pass():
    streams = {
        tuple(torch.rand(3, generator=epoch_generator(s, e, n)).tolist())
        for s in range(3)
        for e in range(3)
        for n in range(2)
    }
    assert len(streams) == 18


def test_learning_rate():
    constant = recipe("digits", lr=0.1, schedule="constant", epochs=10)
    assert [learning_rate(constant, e) for e in (0, 9)] == [0.1, 0.1]
    cosine = recipe("digits", lr=0.1, schedule="cosine", epochs=10)
    assert [learning_rate(cosine, e) for e in (0, 5)] == pytest.approx([0.1, 0.05])
    assert 0 < learning_rate(cosine, 9) < 0.005


def test_a_loss_that_is_not_finite_stops(patterns, tiny):
    with pytest.raises(NumericalError, match="epoch 1") as caught:
        train(dataclasses.replace(tiny, lr=1e30), patterns)
    assert caught.value.exit_code == 5


def test_a_gpu_whose_memory_is_too_small(patterns, tiny, monkeypatch):
    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB. See more. And more."
    )

    def full(*args):
        raise torch.OutOfMemoryError(said)

    monkeypatch.setattr(train_module, "step", full)
    with pytest.raises(ConfigError) as caught:
        train(tiny, patterns)
    assert str(caught.value) == (
        "the GPU's memory is full (batch_size 32, image_size 8). Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 79.10 GiB. Lower batch_size, or end what else runs there."
    )


def test_a_training_keeps_nothing_that_others_compiled(patterns, tiny, monkeypatch):
    """Torch keeps eight shapes of a function compiled, and runs others as they are: nineteen K's would not be."""
    calls = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(train_module, "_compiled_losses", lambda mode: calls.append(mode) or train_module.losses)
    monkeypatch.setattr(augmentations, "_compiled_sharp", lambda: augmentations.sharp)
    train(dataclasses.replace(tiny, epochs=1, compile="default"), patterns)
    assert calls == ["reset", *["default"] * 3]


def test_a_batch_larger_than_the_data(patterns):
    with pytest.raises(ConfigError, match="batch_size is 128, but digits has 96 images"):
        train(recipe("digits", n_clusters=3), patterns)


def test_a_baseline_trains_nothing(patterns):
    assert train(recipe("digits", variant="kmeans-pixels"), patterns) == (None, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_gpu():
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device(recipe("digits", device="cuda"))


def test_streamed_batches_are_the_indexed_ones(patterns):
    images, order = torch.from_numpy(patterns.images), torch.randperm(96).view(8, 12)
    cpu = torch.device("cpu")
    streamed, indexed = train_module._streamed(images, order, cpu), train_module._indexed(images, order, cpu)
    assert all(torch.equal(a, b) for a, b in zip(streamed, indexed, strict=True))


def test_streamed_batches_are_moved_by_the_thread_that_trains(patterns, monkeypatch):
    """CUDA's current device is a thread's own: another thread would move the batches of every rank to the first GPU."""
    threads, real = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **k: threads.append(threading.current_thread()) or real(*a, **k))
    images, order = torch.from_numpy(patterns.images), torch.randperm(96).view(8, 12)
    batches = list(train_module._streamed(images, order, torch.device("meta")))
    assert {batch.device.type for batch in batches} == {"meta"}
    assert threads == [threading.current_thread()] * 8


def test_bf16_is_near_fp32_and_losses_stay_in_fp32(patterns, tiny):
    config = dataclasses.replace(tiny, precision="bf16")
    view_a, view_b = next(pairs(*tensors(patterns), tiny, epoch=0))
    model = build(tiny, 1).train()
    exact, _ = train_module.losses(model, view_a, view_b, tiny, "both", ALONE)
    rough, numbers = train_module.losses(model, view_a, view_b, config, "both", ALONE)
    assert rough.dtype == numbers["instance_loss"].dtype == torch.float32
    assert rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), abs=0.05)


def test_a_compiled_step_is_one_graph_and_the_same(patterns, tiny):
    """What a GPU runs: without a break in the graph, where the host would wait."""
    view_a, view_b = next(pairs(*tensors(patterns), tiny, epoch=0))
    model = build(tiny, 1).train()
    compiled = torch.compile(train_module.losses, backend="aot_eager", fullgraph=True)
    found = []
    for forward in (train_module.losses, compiled):
        model.zero_grad(set_to_none=True)
        loss, _ = forward(model, view_a, view_b, tiny, "both", ALONE)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert_close(*found, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(("dataset", "profile"), [("cifar10", "fast"), ("imagenet10", "paper"), ("digits", "demo")])
def test_no_step_makes_the_host_wait_for_a_gpu(dataset, profile):
    """On made-up tensors of a GPU, which have no memory: views, network, losses and what is watched of a step."""
    config = recipe(dataset, profile, backbone="small", image_size=32, batch_size=8)
    channels = 1 if dataset == "digits" else 3
    generator, sizes = torch.Generator().manual_seed(0), torch.full((8, 2), 40)
    with FakeTensorMode(allow_non_fake_inputs=True):
        drawn = [augmentations.draw(generator, sizes, (40, 40), config).to(torch.device("cuda")) for _ in "ab"]
        with torch.device("cuda"):
            model, images = build(config, channels).train(), torch.empty(8, channels, 40, 40, dtype=torch.uint8)
        with Waits() as waits:
            views = train_module._views(images, drawn, config)
            loss, _ = train_module.losses(model, *views, config, config.heads, ALONE)
    assert (loss.device.type, waits.found) == ("cuda", [])


def test_blocks_of_drawn_views_do_not_depend_on_where_an_epoch_is_taken_up(patterns, tiny, monkeypatch):
    """More images than are drawn at once, as in sets larger than any of the paper's."""
    monkeypatch.setattr(train_module, "DRAWN", 32)
    whole = list(pairs(*tensors(patterns), tiny, epoch=0))
    assert len(whole) == 3
    for first in range(3):
        rest = list(pairs(*tensors(patterns), tiny, epoch=0, first=first))
        assert_close(rest, whole[first:], rtol=0, atol=0)
    boxes = [augmentations.draw(epoch_generator(0, 0, 0, block), torch.full((9, 2), 8), (8, 8), tiny).box
             for block in (1, 2)]  # fmt: skip
    assert not torch.equal(*boxes)


def test_step_returns_the_numbers_it_says(patterns, tiny):
    view_a, view_b = next(pairs(*tensors(patterns), tiny, epoch=0))
    state = train_module.start(tiny, patterns)
    found = step(state.model, state.optimizer, view_a, view_b, tiny)
    assert set(found) == set(train_module.NUMBERS)
    gradients = torch.cat([p.grad.ravel() for p in state.model.parameters()])
    assert found["gradient_norm"].item() == pytest.approx(gradients.norm().item(), rel=1e-5)
    assert 1 <= found["clusters_used"] <= 3


def test_signals_count_clusters_by_their_largest_assignment():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])
    found = train_module.signals(torch.rand(4, 5), torch.rand(4, 5), p, p)
    assert found["clusters_used"] == 2
    assert found["largest_share"] == 0.75


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_optimizers_are_torchs(patterns, tiny, optimizer, kind):
    found = train_module.start(dataclasses.replace(tiny, optimizer=optimizer, weight_decay=0.01), patterns).optimizer
    assert type(found) is kind
    assert found.param_groups[0]["weight_decay"] == 0.01
    assert found.param_groups[0].get("momentum", 0.9) == 0.9


def test_rate_rises_before_it_falls():
    config = recipe("digits", lr=1.0, schedule="cosine", epochs=100, warmup=0.05)
    rates = [learning_rate(config, e) for e in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 0.001


def test_channel_statistics_are_those_of_all_pixels(generator):
    images = (torch.rand(23, 3, 5, 6, generator=generator) * 255).byte()
    mean, deviation = train_module.channel_statistics(images.numpy(), at_once=7 * 30)
    assert_close(mean, (images / 255).mean((0, 2, 3)))
    assert_close(deviation, (images / 255).double().std((0, 2, 3), correction=0).float())


def test_a_channel_without_contrast_is_not_divided_by_zero():
    """As in pictures of green fluorescence; the root of a variance that rounding made negative is none either."""
    images = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte().numpy()
    images[:, 0], images[:, 2] = 0, 77
    mean, deviation = train_module.channel_statistics(images)
    assert deviation[[0, 2]].tolist() == [1, 1]
    assert mean[2] == pytest.approx(77 / 255)
    data = ImageSet("green", images, np.full((24, 2), 8), None, (), "made here")
    _, history = train(own_recipe(3, 24, images.shape[1:], epochs=1), data)
    assert np.isfinite(history[-1]["loss"])
