import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from ccrepro import ContrastiveClustering
from ccrepro.errors import CheckpointError
from ccrepro.own_images import own_recipe
from ccrepro.own_images.pretrained import IMAGENET_MEAN, IMAGENET_SD, start


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(3)
    return torchvision.models.resnet18()


def config(**chosen):
    return own_recipe(3, 40, 40, True, **chosen)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_backbone_starts_from_torchvisions_file(tmp_path, resnet18, kind):
    path, weights = tmp_path / f"resnet18.{kind}", resnet18.state_dict()
    weights = {name: value for name, value in weights.items() if "num_batches" not in name}  # as in old files
    save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
    model = start(config(), 3, str(path)).eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(weights, strict=False)
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.backbone(x), theirs(x))
    assert model.standardize.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert model.standardize.deviation.flatten().tolist() == pytest.approx(IMAGENET_SD)


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("state_dict", "module.encoder_q."),  # MoCo
        ("state_dict", "module.encoder."),  # SimSiam
        ("state_dict", "model.backbone."),  # Lightning
        ("model", "_orig_mod.module."),  # torch.compile around DataParallel
        ("net", "module.resnet."),  # the authors
        ("", "encoder."),
        ("", ""),
    ],
)
def test_the_trained_network_is_found_below_any_prefix(tmp_path, resnet18, place, prefix):
    """Averaged copies, even those that come first, heads, and whatever else is saved beside it are left alone."""
    average = prefix.replace("encoder_q", "encoder_k") if "encoder_q" in prefix else f"momentum_{prefix}"
    held = {average + name: value * 0 for name, value in resnet18.state_dict().items()}
    held |= {prefix + name: value for name, value in resnet18.state_dict().items()}
    held |= {name: torch.zeros(2) for name in (f"{prefix}fc.0.weight", "module.queue", "instance_projector.0.weight")}
    held = {place: held, "epoch": np.int64(1), "best": {"loss": torch.tensor(torch.inf)}} if place else held
    torch.save(held, tmp_path / "r.pth")
    found = start(config(), 3, str(tmp_path / "r.pth")).backbone.state_dict()
    assert all(torch.equal(value, resnet18.state_dict()[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("kind", "changed", "says"),
    [
        ("pth", {"encoder.bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight in .* are not finite"),
        ("pth", {"encoder.bn1.weight": torch.ones(65)}, "'encoder.': .*mismatch for bn1.weight"),
        ("safetensors", {"encoder.bn1.weight": None}, "'encoder.': .*Missing.*bn1.weight"),
        ("safetensors", {"encoder.layer1.0.se.weight": torch.ones(1)}, "'encoder.': .*Unexpected.*layer1.0.se.weight"),
        (
            "pth",
            {"encoder.layer1.0.conv1.weight": None},
            r"holds no layer1.0.conv1.weight, .* but \['encoder.*save\(model.state",
        ),
    ],
)
def test_entries_that_are_missing_surplus_or_wrong_are_told(tmp_path, resnet18, kind, changed, says):
    held = {f"encoder.{name}": value for name, value in resnet18.state_dict().items()} | changed
    held = {name: value for name, value in held.items() if value is not None}
    path = tmp_path / f"r.{kind}"
    save_file(held, path) if kind == "safetensors" else torch.save(held, path)
    with pytest.raises(CheckpointError, match=says) as error:
        start(config(), 3, str(path))
    assert "\n" not in str(error.value)


def test_an_estimator_starts_from_it_in_colour_and_remembers_it(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), path := str(tmp_path / "r.pth"))
    grey = np.random.default_rng(0).integers(0, 256, (12, 20, 20)).astype(np.uint8)
    made = ContrastiveClustering(2, pretrained=path, epochs=1, image_size=32, settings={"lr": 1e-9})
    weights = made.fit(grey).model_.backbone.conv1.weight
    torch.testing.assert_close(weights.detach().cpu(), resnet18.conv1.weight.detach(), atol=1e-6, rtol=0)
    assert ContrastiveClustering.load(made.save(tmp_path / "m.safetensors")).get_params()["pretrained"] == path


def test_weights_of_another_backbone_are_no_start(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "r.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for chosen, channels, name, says in (
        ({"backbone": "resnet34"}, 3, "r.pth", "does not hold a resnet34 below the prefix ''"),
        ({}, 3, "list.pth", "holds no layer1.0.conv1.weight"),
        ({"backbone": "small"}, 3, "r.pth", "No ImageNet weights fit"),
        ({"backbone": "fast-s"}, 3, "imagenet", "No ImageNet weights fit"),
        ({}, 1, "r.pth", "No ImageNet weights fit"),
    ):
        with pytest.raises(CheckpointError, match=says):
            start(config(**chosen), channels, str(tmp_path / name))


def test_without_a_network_the_place_of_the_file_is_told(tmp_path, monkeypatch):
    def offline(*arguments, **more):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(CheckpointError, match="no network") as error:
        start(config(), 3, "imagenet")
    assert str(tmp_path / "hub/checkpoints/resnet18-f37072fd.pth") in str(error.value)
