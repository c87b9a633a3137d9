import pytest
import torch
import torchvision
from torch.testing import assert_close

from ccrepro.backbones import BACKBONES
from ccrepro.errors import ConfigError
from ccrepro.model import build
from ccrepro.recipes import recipe

PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_backbone_is_torchvisions_without_classifier(name):
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = torch.nn.Identity()
    ours = BACKBONES[name]("imagenet")
    ours.load_state_dict(theirs.state_dict())  # the same keys and shapes
    assert count(ours) == PARAMETERS[name]
    x = torch.rand(2, 3, 64, 64)
    assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.n_features == (2048 if name == "resnet50" else 512)


def test_published_model_has_the_published_size():
    model = build(recipe("cifar10", "paper"))
    assert count(model) == 21_880_778
    assert count(model.instance_head) == 328_320
    assert count(model.cluster_head) == 262_656 + 513 * 10
    assert len(model.state_dict()) == 224


def test_cifar_stem_keeps_the_resolution():
    backbone = BACKBONES["resnet18"]("cifar")
    shapes = {}
    backbone.layer1.register_forward_hook(lambda module, x, y: shapes.update(layer1=y.shape))
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert shapes["layer1"] == (2, 64, 32, 32)
    assert backbone.conv1.kernel_size == (3, 3)


def test_convolutions_start_with_kaimings_fan_out():
    weight = BACKBONES["resnet18"]("imagenet").layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("dataset", "preset", "channels"), [("digits", "demo", 1), ("cifar100", "paper", 3)])
def test_outputs_are_unit_vectors_and_distributions(dataset, preset, channels):
    config = recipe(dataset, preset)
    z, p = build(config, channels)(torch.rand(4, channels, 32, 32))
    assert z.shape == (4, config.instance_dim)
    assert p.shape == (4, config.n_clusters)
    assert_close(z.norm(dim=1), torch.ones(4))
    assert_close(p.sum(1), torch.ones(4))


@pytest.mark.parametrize("head", ["instance", "cluster"])
def test_gradients_of_each_head_reach_it_and_the_backbone_only(head):
    model = build(recipe("digits", "demo"), 1)
    z, p = model(torch.rand(4, 1, 8, 8))
    (z if head == "instance" else p)[:, 0].sum().backward()
    heads = {"instance": model.instance_head, "cluster": model.cluster_head}
    own = heads.pop(head)
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in [*own.parameters(), model.backbone.conv1.weight])
    assert all(w.grad is None for other in heads.values() for w in other.parameters())


def test_initial_weights_follow_the_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (build(recipe("digits", "demo", seed=s), 1).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["backbone.conv1.weight"], c["backbone.conv1.weight"])


def test_a_shared_head_gives_both_losses_one_matrix():
    z, p = build(recipe("digits", "demo", "shared-head"), 1)(torch.rand(5, 1, 8, 8))
    assert_close(z, p / p.norm(dim=1, keepdim=True))
    assert z.shape == (5, 10)


@pytest.mark.parametrize(
    ("name", "widths", "weights"), [("fast-s", (32, 128, 128), 496_824), ("fast-m", (64, 256, 256), None)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_fast_networks_have_the_layout_of_the_speed_run(name, widths, weights, channels):
    network = BACKBONES[name]("cifar", channels)
    if weights and channels == 3:
        assert count(network) == weights
    assert network.n_features == widths[-1]
    assert [block[0].weight.shape[:2] for block in network.blocks] == list(
        zip(widths, (8 * channels, *widths), strict=False)
    )
    for side in (9, 16, 20, 32):
        assert network(torch.rand(2, channels, side, side)).shape == (2, widths[-1])
    assert torch.equal(network.blocks[1][0].weight[:16, :16, 1, 1], torch.eye(16))  # the first channels hand on


def test_whitened_patches_have_unit_covariance_and_the_filters_are_not_trained(generator):
    mixed = torch.randn(64, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(mixed, 3, 1)  # neighbours are alike, as in images
    network = BACKBONES["fast-s"]("cifar")
    network.whiten(smooth, eps=0.0)
    network.whitening.bias.data.zero_()
    seen = network.whitening(smooth).transpose(0, 1).flatten(1)[:12]
    assert_close(torch.cov(seen), torch.eye(12), atol=1e-3, rtol=0)
    assert_close(network.whitening.weight[:12], -network.whitening.weight[12:])
    network(smooth).sum().backward()
    assert network.whitening.weight.grad is None


def test_pretrained_names_no_network_to_train():
    with pytest.raises(ConfigError, match="'pretrained', which is no network to train"):
        build(recipe("cifar10", backbone="pretrained"))
