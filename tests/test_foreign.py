"""Weights of others: exact names and shapes, nothing unsafe loaded, and errors of one line."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from ccrepro.config import recipe
from ccrepro.errors import CheckpointError
from ccrepro.foreign import IMAGENET_MEAN, load_authors, read_authors, save_authors, start_from_imagenet
from ccrepro.model import build

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def norm(name, width):
    shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def authors_shapes(backbone, n_clusters):
    """Names and shapes of the authors' state dict, written out from its description, not from our model."""
    shapes = {"resnet.conv1.weight": (64, 3, 7, 7), **norm("resnet.bn1", 64)}
    wide, before = (4 if backbone == "resnet50" else 1), 64
    for stage, depth in enumerate(BLOCKS[backbone]):
        width = 64 * 2**stage
        for i in range(depth):
            name = f"resnet.layer{stage + 1}.{i}"
            kernels = [(width, before, 1), (width, width, 3), (4 * width, width, 1)]
            if wide == 1:
                kernels = [(width, before, 3), (width, width, 3)]
            for number, (after, source, side) in enumerate(kernels, 1):
                shapes[f"{name}.conv{number}.weight"] = (after, source, side, side)
                shapes |= norm(f"{name}.bn{number}", after)
            if i == 0 and (stage > 0 or wide == 4):
                shapes[f"{name}.downsample.0.weight"] = (wide * width, before, 1, 1)
                shapes |= norm(f"{name}.downsample.1", wide * width)
            before = wide * width
    for head, out in (("instance_projector", 128), ("cluster_projector", n_clusters)):
        shapes |= {f"{head}.0.weight": (before, before), f"{head}.0.bias": (before,)}
        shapes |= {f"{head}.2.weight": (out, before), f"{head}.2.bias": (out,)}
    return shapes


def authors_file(path, backbone="resnet18", n_clusters=10, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    net = {
        name: torch.rand(shape, generator=generator) * 0.1 if shape else torch.tensor(7)
        for name, shape in authors_shapes(backbone, n_clusters).items()
    }
    net |= changes
    optimizer = {"state": {}, "param_groups": [{"lr": 0.0003, "params": [0, 1]}]}
    torch.save({"net": net, "optimizer": optimizer, "epoch": 990}, path)
    return net


@pytest.mark.parametrize(("backbone", "entries"), [("resnet18", None), ("resnet34", 224), ("resnet50", None)])
def test_authors_checkpoint_survives_the_round_trip(tmp_path, backbone, entries):
    net = authors_file(tmp_path / "checkpoint_990.tar", backbone)
    config = recipe("cifar10", "paper", backbone=backbone)
    model, found = load_authors(tmp_path / "checkpoint_990.tar", config)
    assert (found.backbone, found.n_clusters, found.instance_dim, found.epoch) == (backbone, 10, 128, 990)
    save_authors(model, config, tmp_path / "again.tar", found.epoch)
    again = torch.load(tmp_path / "again.tar", weights_only=True)
    assert again["epoch"] == 990
    assert list(again["net"]) == list(net), "names, in the authors' order"
    assert all(torch.equal(again["net"][name], value) for name, value in net.items())
    if backbone == "resnet34":
        assert len(net) == entries
        assert sum(v.numel() for n, v in model.named_parameters()) == 21_880_778
    torch.optim.Adam(model.parameters()).load_state_dict(again["optimizer"])


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


def test_data_parallel_checkpoints_load_too(tmp_path):
    net = authors_file(tmp_path / "c.tar")
    torch.save({"net": {f"module.{n}": v for n, v in net.items()}, "epoch": 3}, tmp_path / "parallel.tar")
    assert read_authors(tmp_path / "parallel.tar").epoch == 3


def said(call):
    with pytest.raises(CheckpointError) as error:
        call()
    assert "\n" not in str(error.value)
    assert "weights_only=False" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "overrides", [{}, {"backbone": "resnet18", "n_clusters": 15}, {"backbone": "resnet50"}], ids=str
)
def test_another_backbone_or_k_is_one_line(tmp_path, overrides):
    authors_file(tmp_path / "c.tar")
    config = recipe("cifar10", "paper", **overrides)
    text = said(lambda: load_authors(tmp_path / "c.tar", config))
    assert "checkpoint resnet18, imagenet stem, K=10, D=128" in text
    assert f"settings {config.backbone}, imagenet stem, K={config.n_clusters}" in text


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    for name, write in (("a", lambda v, p: torch.save(v, p)), ("b", lambda v, p: p.write_bytes(pickle.dumps(v)))):
        write({"net": Bomb(tmp_path / "ran")}, tmp_path / name)
        text = said(lambda name=name: read_authors(tmp_path / name))
        assert "can run code" in text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty: 0 bytes"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"hello", "not a checkpoint of torch"),
    ],
    ids=str,
)
def test_other_files_say_what_they_are(tmp_path, content, says):
    (tmp_path / "c.tar").write_bytes(content)
    assert says in said(lambda: read_authors(tmp_path / "c.tar"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off(tmp_path, share):
    authors_file(tmp_path / "c.tar")
    blob = (tmp_path / "c.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(blob[: int(len(blob) * share)])
    assert "cut off or damaged" in said(lambda: read_authors(tmp_path / "c.tar"))


def test_names_shapes_and_values_must_be_theirs(tmp_path):
    path = tmp_path / "c.tar"
    net = authors_file(path)
    assert "cannot read" in said(lambda: read_authors(tmp_path / "none.tar"))
    torch.save(net, path)
    assert "holds the keys 'resnet.conv1.weight'" in said(lambda: read_authors(path))
    authors_file(path, **{"resnet.fc.weight": torch.zeros(10, 512)})
    assert "1 unknown, such as backbone.fc.weight" in said(lambda: read_authors(path))
    authors_file(path, **{"classifier.weight": torch.zeros(10, 512)})
    assert "classifier.weight is unknown" in said(lambda: read_authors(path))
    authors_file(path, **{"resnet.conv1.weight": torch.zeros(64, 3, 3, 3)})
    assert "backbone.conv1.weight is (64, 3, 3, 3), expected (64, 3, 7, 7)" in said(lambda: read_authors(path))
    authors_file(path, **{"cluster_projector.2.bias": torch.full((10,), torch.nan)})
    assert "values in cluster_head.2.bias are not finite" in said(lambda: read_authors(path))
    torch.save({"net": {n: v for n, v in net.items() if "layer4" not in n}}, path)
    assert "(2, 2, 2, 0) blocks" in said(lambda: read_authors(path))


def test_a_model_that_the_authors_code_cannot_hold_is_not_exported(tmp_path):
    config = recipe("cifar10", "fast")
    text = said(lambda: save_authors(build(config), config, tmp_path / "c.tar", 0))
    assert "stem cifar, normalize" in text
    assert not (tmp_path / "c.tar").exists()


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(3)
    return torchvision.models.resnet18()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_backbone_starts_from_torchvisions_file(tmp_path, resnet18, kind):
    path = tmp_path / f"resnet18.{kind}"
    save_file(resnet18.state_dict(), path) if kind == "safetensors" else torch.save(resnet18.state_dict(), path)
    config = recipe("own", "own", backbone="resnet18", stem="imagenet", pretrained=str(path))
    model = build(config)
    start_from_imagenet(model, config)
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    resnet18.eval().fc = torch.nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().backbone(x), resnet18(x))
    assert model.standardize.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_weights_of_another_backbone_are_no_start(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "r.pth")
    for overrides, says in (
        ({"backbone": "resnet34"}, "does not hold a resnet34"),
        ({"backbone": "small"}, "no ImageNet"),
    ):
        config = recipe("own", "own", stem="imagenet", pretrained=str(tmp_path / "r.pth"), **overrides)
        assert says in said(lambda config=config: start_from_imagenet(build(config), config))


def test_without_a_network_the_place_of_the_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    config = recipe("own", "own", backbone="resnet18", stem="imagenet", pretrained="imagenet")
    text = said(lambda: start_from_imagenet(build(config), config))
    assert "no network" in text
    assert str(tmp_path / "hub/checkpoints/resnet18-f37072fd.pth") in text
