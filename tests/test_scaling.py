"""The formulas of many GPUs against the code they speak of, and the page against the formulas."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ccrepro import scaling
from ccrepro.bench import peak_bytes
from ccrepro.config import recipe
from ccrepro.datasets import as_tensor
from ccrepro.evaluate import represent
from ccrepro.loss import instance_loss
from ccrepro.model import build

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", scaling.TABLES)
def test_the_pages_tables_follow_from_the_formulas(name):
    page = (ROOT / "docs/scaling.md").read_text()
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)\n\n", page + "\n\n", flags=re.S)
    assert shown == scaling.markdown(name), "paste scaling.markdown() there"


def test_a_ring_sends_what_is_said():
    """Each rank passes parts on to its neighbour until all have all."""
    ranks, part = 4, 100
    ring = part * (ranks - 1)  # every rank passes on each part but one
    for kind, own, expected in [
        ("all-gather", part, ring),
        ("reduce-scatter", part * ranks, ring),
        ("all-to-all", part * ranks, ring),
        ("all-reduce", part * ranks, 2 * ring),  # the second after the first
    ]:
        assert scaling.sent(scaling.Collective("", kind, 1, own), ranks) == expected


def test_operations_of_a_network_are_those_counted_before():
    """GFLOP per view, forward and backward, as counted in another way for torchvision's networks."""
    for backbone, expected in {"resnet34": 21.7, "resnet50": 24.3}.items():
        net = scaling.network(recipe("cifar10", "paper", backbone=backbone))
        assert net.operations / 1e9 == pytest.approx(expected, abs=0.06)
    config = recipe("digits")
    model = build(config, 1)
    net = scaling.network(config, channels=1)
    assert net.parameters == sum(p.numel() for p in model.parameters())
    assert net.norm_channels == sum(len(t) for name, t in model.state_dict().items() if name.endswith("running_mean"))


@pytest.mark.parametrize("n", [64, 700])
def test_operations_of_the_loss_are_its_products(n):
    a, b = (torch.randn(n, 16, requires_grad=True) for _ in "ab")
    with FlopCounterMode(display=False) as counter:
        instance_loss(a, b).backward()
    assert counter.get_total_flops() == scaling.loss_operations(scaling.Setting(n, 16, 10))


def test_the_loss_holds_so_much_of_its_matrix():
    n = 2048
    a, b = (torch.randn(n, 8) for _ in "ab")
    whole, held = scaling.loss_bytes(scaling.Setting(n, 8, 10))
    assert whole == torch.empty(2 * n, 2 * n, device="meta").nbytes
    assert held == pytest.approx(peak_bytes(lambda: instance_loss(a, b), torch.device("cpu")), rel=0.02)


def test_what_a_data_set_keeps(digits):
    config = recipe("digits")
    images = np.zeros((10, 3, 8, 8), np.uint8)
    setting = scaling.Setting(128, config.instance_dim, config.n_clusters)
    z, p = represent(build(config), as_tensor(images), 8)
    kept = {"packed": images.nbytes, "order": torch.randperm(10).nbytes, "z and p": z.nbytes + p.nbytes}
    assert scaling.bytes_kept(setting, 10, 8) == kept


def test_a_step_is_the_sum_of_its_parts_and_alone_it_sends_nothing():
    net = scaling.network(recipe("digits"), 1)
    for ranks in (1, 8, 64):
        found = scaling.step(scaling.PAPER, net, ranks)
        assert found.total == pytest.approx(sum(found) - found.total)
        assert (found.latency == found.transfer == 0) == (ranks == 1)
    assert scaling.step(scaling.PAPER, net, 64).transfer > scaling.step(scaling.PAPER, net, 8).transfer


@pytest.mark.parametrize(
    ("n", "text"), [(16, "16 B"), (35_328, "35.3 kB"), (87_523_112, "87.5 MB"), (151e12, "151 TB"), (4e15, "4,000 TB")]
)
def test_sizes_read_well(n, text):
    assert scaling.size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.399, "0.399 s"), (272, "4.53 min"), (5472, "1.52 h"), (2e5, "2.31 d")]
)
def test_times_read_well(seconds, text):
    assert scaling.hours(seconds) == text
