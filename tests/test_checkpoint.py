import torch

from ccrepro.checkpoint import load_weights, save_weights
from ccrepro.config import recipe
from ccrepro.model import build


def test_weights_survive_saving(tmp_path):
    model, other = build(recipe("digits", seed=1), 1), build(recipe("digits", seed=2), 1)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
