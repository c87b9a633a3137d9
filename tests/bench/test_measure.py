"""What is measured is real work; how long it takes is not tested."""

import json

import pytest
import torch

from ccrepro.bench import measure

CPU = torch.device("cpu")


def test_turns_are_interleaved_and_summed_up(monkeypatch):
    monkeypatch.setitem(measure.TURN, "cpu", 0.01)
    seen = []
    found = measure.interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert all(0 < t["low"] <= t["median"] <= t["high"] for t in found.values())
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
    monkeypatch.setitem(measure.SECTIONS, "losses", (measure.losses, [("instance", 8, 128), ("cluster", 256, 3)]))
    monkeypatch.setitem(measure.SECTIONS, "step", (measure.step, steps))
    result = measure.run(1, ("losses", "step"), "cpu")
    path = measure.save(result)
    assert path.parent == root / "results/bench"
    assert json.loads(path.read_text()) == result
    assert len(path.with_suffix(".md").read_text().splitlines()) == 2 + 2 + 4
    loss, step = result["losses"][0], result["step"][0]
    ours, authors, limit = (step["seconds"][way]["median"] for way in ("ours", "authors", "limit"))
    rate = {"pairs per second": 4 / ours}
    assert step["ratios"] == {"times as fast": authors / ours, "efficiency": limit / ours} | rate
    assert loss["ratios"]["share of the memory"] == loss["peak_bytes"]["ours"] / loss["peak_bytes"]["authors"]
