"""What is measured is real work; how long it takes is not tested."""

import json
from unittest import mock

import pytest
import torch

from ccrepro import train
from ccrepro.bench import measure
from ccrepro.runtime import fused_views

CPU = torch.device("cpu")


def test_turns_are_interleaved_and_summed_up(monkeypatch):
    monkeypatch.setitem(measure.TURN, "cpu", 0.01)
    seen = []
    found = measure.interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert list(found) == ["a", "b"]
    assert all(t["median"] > 0 and t["iqr"] >= 0 for t in found.values())
    turns = [name for name, before in zip(seen, ["", *seen], strict=False) if name != before]
    assert "".join(turns) == "abababab"  # a warm-up of each, and three rounds


def test_peak_memory_is_that_of_the_tensors_alive_at_once():
    def two_at_once():
        a = torch.zeros(250_000)
        b = a + 1  # a and b: 2 MB
        del a
        return b * 2

    assert measure.peak_bytes(two_at_once, CPU) == pytest.approx(2e6, rel=0.01)


@pytest.mark.slow
def test_a_small_run_is_saved_with_its_table(monkeypatch, root):
    steps = [("resnet18", "imagenet", 32, 4, 4), ("small", "cifar", 8, 4, 4)]
    monkeypatch.setitem(measure.SECTIONS, "loss", (measure.one_loss, [("instance", 8, 128), ("cluster", 256, 3)]))
    monkeypatch.setitem(measure.SECTIONS, "step", (measure.step, steps))
    result = measure.run(1, ("loss", "step"), "cpu")
    path = measure.save(result)
    assert path.parent == root / "results/local/bench"
    assert json.loads(path.read_text()) == result
    assert len(path.with_suffix(".md").read_text().splitlines()) == 2 + 2 + 4


@pytest.mark.parametrize(("works", "said"), [("reduce-overhead", ", compile=reduce-overhead"), ("off", "")])
def test_a_step_is_measured_in_the_mode_that_compiles_here_and_says_which(monkeypatch, works, said):
    fails = mock.Mock(side_effect=RuntimeError("no compiler here"))
    monkeypatch.setattr(train, "choose_compile", lambda *_: "reduce-overhead")
    monkeypatch.setattr(train, "_compiled_losses", lambda mode: train.losses if mode == works else fails)
    monkeypatch.setattr("ccrepro.augmentations._compiled_jitter", lambda: fused_views.color_jitter)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(measure.TURN, "cpu", 0.01)
    row = measure.step(CPU, 1, "small", "cifar", 8, 4, 4)
    assert row["what"] == f"step, small, cifar stem, 8 px, 4 images, fp32{said}"
    assert set(row["seconds"]) == {"ours", "authors", "limit"}


def test_a_line_of_the_table_says_how_fast_how_near_the_limit_and_how_large():
    seconds = {"authors": (3, 0.3), "ours": (0.012, 0.0006), "limit": (0.009, 0)}
    row = {"what": "a", "seconds": {way: {"median": t, "iqr": iqr} for way, (t, iqr) in seconds.items()}}
    loss = {"what": "b", "seconds": {"ours": row["seconds"]["ours"]}, "peak_bytes": {"ours": 2_500_000}}
    both = loss | {"peak_bytes": {"ours": 1_000_000, "authors": 94e7}}
    assert measure.table({"step": [row], "loss": [loss, both]}).to_numpy().tolist() == [
        ["b", "–", "12 ms ± 5%", "–", "–", "–", "2.5 MB"],
        ["b", "–", "12 ms ± 5%", "–", "–", "–", "940.0 → 1.0 MB"],
        ["a", "3.00 s ± 10%", "12 ms ± 5%", "9 ms ± 0%", "250×", "75%", "–"],
    ]
