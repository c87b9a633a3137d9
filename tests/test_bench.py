"""What is measured is real work; how long it takes is not tested."""

import json

import pytest
import torch

from ccrepro import bench, plots

CPU = torch.device("cpu")


def test_turns_are_interleaved_and_summed_up():
    seen = []
    found = bench.interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert set(found) == {"a", "b"}
    assert all(0 <= t["low"] <= t["median"] <= t["high"] for t in found.values())
    turns = [name for name, before in zip(seen[4:], seen[3:], strict=False) if name != before]
    assert "".join(turns).endswith("ababab")


def test_seconds_are_those_of_one_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def lasting(*parts):
        """A way whose calls last so many 32nds of a second, one after another."""
        each = iter(parts)

        def way():
            now[0] += next(each) / 32

        return way

    # One call unmeasured, one to see how often to repeat; then three turns of 0.1 s: of three calls each, and of one.
    found = bench.interleaved(
        {"quick": lasting(1, 1, 2, 2, 2, 1, 1, 1, 5, 6, 7), "slow": lasting(9, 9, 9, 8, 7)}, 3, CPU
    )
    assert found["quick"] == {"median": 2 / 32, "low": 1 / 32, "high": 6 / 32}
    assert found["slow"] == {"median": 8 / 32, "low": 7 / 32, "high": 9 / 32}


def test_peak_memory_is_that_of_the_tensors_alive_at_once():
    def two_at_once():
        a = torch.zeros(250_000)
        b = a + 1  # a and b: 2 MB
        del a
        return b * 2

    assert bench.peak_bytes(two_at_once, CPU) == pytest.approx(2e6, rel=0.01)


def test_textures_are_pictures_of_full_range():
    x = bench.textures(3, 16)
    assert x.shape == (3, 3, 16, 16)
    assert x.dtype == torch.uint8
    assert x.amin((1, 2, 3)).tolist() == [0] * 3
    assert x.amax((1, 2, 3)).tolist() == [255] * 3


def test_a_small_run_of_everything_is_saved_with_its_table_and_figure(monkeypatch, root):
    monkeypatch.setattr(bench, "INSTANCE_LOSSES", (8, 16))
    monkeypatch.setattr(bench, "CLUSTER_LOSSES", ((256, 3), (256, 5)))
    monkeypatch.setattr(bench, "SCORES", ((500, 10),))
    monkeypatch.setattr(bench, "STEPS", (("resnet18", "imagenet", 32, 4, 4), ("resnet18", "imagenet", 64, 4, 4)))
    result = bench.run(1, ("losses", "scores", "step"), "cpu")
    path = bench.save(result)
    assert path.parent == root / "results/bench"
    assert json.loads(path.read_text()) == result
    assert [r["image_size"] for r in result["rates"]] == [32, 64]
    row = result["step"][0]
    assert row["ratios"]["efficiency"] == pytest.approx(
        row["seconds"]["limit"]["median"] / row["seconds"]["ours"]["median"]
    )
    assert result["losses"][0]["ratios"]["times as fast"] == pytest.approx(
        result["losses"][0]["seconds"]["authors"]["median"] / result["losses"][0]["seconds"]["ours"]["median"]
    )
    lines = path.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 2 + 2 + 7
    assert len(list((root / "results/figures/bench").iterdir())) == 2
    assert len(plots.bench(result).axes[0].patches) == 7


def test_a_quick_look_leaves_out_what_it_says(monkeypatch, root):
    steps = (("small", "cifar", 8, 4, 4), ("small", "cifar", 12, 4, 4))
    monkeypatch.setattr(bench, "QUICK", (steps, ((8, 8, 4, "cifar10"), (12, 12, 4, "cifar10"))))
    monkeypatch.setattr(bench.augmentations, "apply", lambda images, *more: images.float())  # compiling takes a minute
    result = bench.quick(1000, "cpu")
    assert [r["image_size"] for r in result["rates"]] == [8, 12]
    assert all(set(row["seconds"]) == {"ours", "limit"} for row in result["step"])
    assert all(row["ratios"]["efficiency"] > 0 for row in result["step"])
    assert all(set(row["seconds"]) == {"ours", "compiled"} for row in result["augmentation"])
    assert result["left_out"] == ["the authors' way", "losses", "scores"]
    assert "Left out: the authors' way" in bench.save(result).with_suffix(".md").read_text()
    short = bench.quick(0, "cpu")
    assert [len(short.get(name, [])) for name in ("step", "augmentation")] == [1, 0]
    assert short["left_out"][3:] == [
        "augmentation, 32 pixels: no time was left",
        "step, 224 pixels: no time was left",
        "augmentation, 224 pixels: no time was left",
    ]
