"""Checkpoints of the authors' code: exact names, shapes and values, and the same outputs in our model."""

import numpy as np
import pytest
import torch
import torchvision

from ccrepro import data
from ccrepro.errors import CheckpointError
from ccrepro.own_images import predict
from ccrepro.recipes import recipe
from ccrepro.runs.weights import PREFIXES, load_authors

SMALL = {"backbone": "resnet18"}


def authors_file(path, backbone="resnet18", n_clusters=10, epoch=990, **changes):
    """As theirs: torchvision's ResNet without its classifier, and two heads of two layers, from their description."""
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(backbone)
    net = {f"resnet.{name}": value for name, value in resnet.state_dict().items() if not name.startswith("fc.")}
    width = resnet.fc.in_features
    for head, out in (("instance_projector", 128), ("cluster_projector", n_clusters)):
        layers = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, out))
        net |= {f"{head}.{name}": value for name, value in layers.state_dict().items()}
    net |= changes
    optimizer = {"state": {}, "param_groups": [{"lr": 0.0003, "params": [0, 1]}]}
    torch.save({"net": net, "optimizer": optimizer, "epoch": epoch}, path)
    return net


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_every_weight_of_the_authors_is_in_our_model(tmp_path, backbone):
    net = authors_file(tmp_path / "checkpoint_990.tar", backbone)
    model, epoch = load_authors(tmp_path / "checkpoint_990.tar", recipe("cifar10", "paper", backbone=backbone))
    assert epoch == 990
    own = model.state_dict()
    for theirs, ours in PREFIXES.items():
        for name in (name for name in net if name.startswith(theirs)):
            assert torch.equal(own.pop(ours + name.removeprefix(theirs)), net[name])
    assert not own
    if backbone == "resnet34":
        assert len(net) == 224
        assert sum(parameter.numel() for parameter in model.parameters()) == 21_880_778


def test_weights_mean_the_same_in_both(tmp_path):
    """Their network, put together from torchvision's ResNet and their two heads, says what ours says."""
    net = authors_file(tmp_path / "c.tar")
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict({n.removeprefix("resnet."): v for n, v in net.items() if n.startswith("resnet.")})
    model, _ = load_authors(tmp_path / "c.tar", recipe("cifar10", "paper", backbone="resnet18"))
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        h = theirs.eval()(x)
        heads = {}
        for head in ("instance_projector", "cluster_projector"):
            hidden = torch.relu(h @ net[f"{head}.0.weight"].T + net[f"{head}.0.bias"])
            heads[head] = hidden @ net[f"{head}.2.weight"].T + net[f"{head}.2.bias"]
        z, p = model(x)
    torch.testing.assert_close(z, torch.nn.functional.normalize(heads["instance_projector"], dim=1))
    torch.testing.assert_close(p, heads["cluster_projector"].softmax(1))


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("prefix", ["net.", "net.module.", ""])
def test_they_load_as_old_versions_and_data_parallel_saved_them(tmp_path, prefix, old):
    """torch before 0.4.1 counted no batches, and before 1.6 wrote no zip; what numpy counts is no int."""
    net = authors_file(tmp_path / "c.tar")
    saved = {
        prefix.removeprefix("net.") + n: v for n, v in net.items() if not (old and n.endswith("num_batches_tracked"))
    }
    saved = {"net": saved, "epoch": np.int64(3)} if "net" in prefix else saved
    torch.save(saved, tmp_path / "c.tar", _use_new_zipfile_serialization=not old)
    model, epoch = load_authors(tmp_path / "c.tar", recipe("cifar10", "paper", **SMALL))
    assert epoch == (3 if "net" in prefix else 0)
    own = model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(own.values(), net.values(), strict=True))


def test_another_backbone_or_k_is_told(tmp_path):
    authors_file(tmp_path / "c.tar")
    for changed, says in (
        ({}, "not hold the authors' resnet34, K=10, D=128: .* Missing key.*layer1.2.conv1.*--backbone"),
        ({**SMALL, "n_clusters": 15}, r"K=15, D=128: .* for cluster_head.2.weight: .*\[10, 512\].*\[15, 512\]"),
        ({"backbone": "resnet50"}, "resnet50, K=10, D=128"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_authors(tmp_path / "c.tar", recipe("cifar10", "paper", **changed))


def test_names_shapes_and_values_must_be_theirs(tmp_path):
    path = tmp_path / "c.tar"
    net = authors_file(path)

    def refused(says, **changes):
        if changes:
            authors_file(path, **changes)
        with pytest.raises(CheckpointError, match=says):
            load_authors(path, recipe("cifar10", "paper", **SMALL))

    refused("Unexpected key.*backbone.fc.weight", **{"resnet.fc.weight": torch.zeros(10, 512)})
    refused("Unexpected key.*classifier.weight", **{"classifier.weight": torch.zeros(10, 512)})
    refused("mismatch for backbone.conv1.weight: .*64, 3, 3, 3", **{"resnet.conv1.weight": torch.zeros(64, 3, 3, 3)})
    refused("not finite", **{"cluster_projector.2.bias": torch.full((10,), torch.nan)})
    torch.save({"net": {n: v for n, v in net.items() if "resnet" not in n}, "args": [1]}, path)
    refused(r"holds no resnet.conv1.weight, with or without a prefix, but \['net.instance_projector.0.weight', .*FILE")
    torch.save({"net": {n: v for n, v in net.items() if "cluster_projector" not in n}}, path)
    refused("Missing key.*cluster_head.0.weight")


def test_they_are_scored_on_a_data_set(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8), np.arange(20) % 10
    cifar = data.ImageSet("cifar10", images, labels, tuple("0123456789"), "made here")
    monkeypatch.setattr(data, "load", lambda name, root: cifar)
    authors_file(tmp_path / "c.tar", epoch=0)
    predict.evaluate(authors_checkpoint=tmp_path / "c.tar", backbone="resnet18")
    printed = capsys.readouterr().out
    assert "c.tar: resnet18, K=10, epoch 0 as stored" in printed
    assert "cifar10, cluster head: NMI" in printed
