import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ccrepro.errors import CheckpointError
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs.weights import halve, load_model, read_pickle, read_sealed, read_tensors, save_model, save_sealed


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return (open, ("was-here", "w"))


@pytest.fixture
def model():
    return build(recipe("digits", "demo", seed=1), 1)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "model.safetensors"
    assert not (tmp_path / "was-here").exists()


def test_a_model_comes_back_with_its_settings_and_facts(path, model):
    config = recipe("digits", "demo", seed=1)
    save_model(model, config, path, side=8, about=[0.1, "é"])
    for place in (path, path.parent):
        again, settings, facts = load_model(place)
        assert (settings, facts, again.training) == (config, {"channels": 1, "side": 8, "about": [0.1, "é"]}, False)
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_halved_model_is_half_as_large_and_loads_in_single_precision(path, model, generator):
    save_model(model, recipe("digits", "demo", seed=1), path)
    small = halve(path, path.with_name("half.safetensors"))
    assert small.stat().st_size < 0.6 * path.stat().st_size
    again, config, _ = load_model(small)
    assert config == recipe("digits", "demo", seed=1)
    images = torch.rand(20, 1, 8, 8, generator=generator)
    for ours, theirs in zip(again(images), model.eval()(images), strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=2e-3)
        assert not torch.equal(ours, theirs)


def test_any_layout_of_tensors_survives_and_equal_ones_make_equal_files(tmp_path):
    last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"last": last, "turned": torch.arange(12).view(3, 4).T, "one": torch.tensor(7)}
    paths = [save_sealed(tmp_path / str(i), tensors, {"a": 1, "b": 2}) for i in range(20)]
    found, facts = read_sealed(paths[0])
    assert facts == {"a": 1, "b": 2}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\x80\x02", pickle.dumps(Hostile(), protocol=2)])
def test_of_a_file_of_another_kind_the_beginning_is_shown(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    says = f"not a safetensors file: {len(content)} bytes that begin with {content[:24]!r}. Get it again"
    assert says in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        read_pickle(path)
    assert "weights_only" not in str(caught.value)  # torch's advice, which is no advice


def test_torchs_own_format_is_no_safetensors_and_is_read_only_where_it_holds_tensors_alone(path):
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(path)
    assert read_pickle(path)["w"].tolist() == [1, 1]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="not tensors alone as torch"):
        read_pickle(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "protocol", "uses"),
    [
        (Hostile(), 2, "_?io.open"),
        (argparse.Namespace(lr=1), 2, "argparse.Namespace"),
        (torch.nn.Linear(1, 1), 2, "torch.nn.modules.linear.Linear"),
        (np.ones(2), 2, "numpy._core.multiarray._reconstruct"),
        (torch.ones(2), 4, "pickle protocol 4 or later"),
        (torch.ones(2), 5, "pickle protocol 4 or later"),
    ],
)
def test_what_torch_refuses_is_named_with_the_way_to_save_it(path, content, protocol, uses, zipped):
    torch.save({"w": content}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"uses {uses}, .* with torch.save\(model.state_dict\(\), FILE\)\.$"):
        read_pickle(path)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_integers_of_numpy_1_and_2_are_plain_values(path, kind):
    torch.save({"net": {"w": torch.ones(2)}, "epoch": kind(990)}, path, _use_new_zipfile_serialization=False)
    blob, allowed = path.read_bytes(), torch.serialization.get_safe_globals()
    assert blob.count(b"numpy._core.multiarray\nscalar") == 1
    for module in (b"numpy._core.", b"numpy.core."):
        path.write_bytes(blob.replace(b"numpy._core.", module))
        assert list(read_pickle(path).items())[1] == ("epoch", 990)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


@pytest.mark.filterwarnings("error")
def test_protocol_3_is_read_in_silence(path):
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=3)
    assert read_pickle(path)["w"].tolist() == [1, 1]


def test_a_model_that_is_absent_cut_off_not_finite_or_without_settings(path, model):
    with pytest.raises(CheckpointError, match=f"Cannot read {path}: No such file or directory"):
        load_model(path)
    size = save_model(model, recipe("digits", "demo"), path).stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(CheckpointError, match=f"is damaged, .*: {size // 2:,} bytes"):
        load_model(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="holds weights without their settings"):
        load_model(path)
    model.cluster_head[0].weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"Values of cluster_head\.0\.weight in .* are not finite"):
        load_model(save_model(model, recipe("digits", "demo"), path))


def test_a_model_of_another_version_is_told_as_such(path, model):
    other = recipe("digits", "demo", n_clusters=7).model_dump()
    for config in ({"no_such_setting": 1}, {"backbone": "vgg"}, other, None):
        save_sealed(path, model.state_dict(), {"config": config, "channels": 1} if config else {})
        with pytest.raises(CheckpointError, match=r"was saved by another version \(.*\)\. Train it again"):
            load_model(path)
