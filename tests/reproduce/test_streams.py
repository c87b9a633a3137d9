import json

import numpy as np
import pytest

from ccrepro import data
from ccrepro.errors import CheckpointError
from ccrepro.evaluate import embed
from ccrepro.model import build
from ccrepro.reproduce import streams
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit


@pytest.fixture
def model(tiny):
    return build(tiny, 1).eval()


def test_images_are_assigned_the_same_alone_and_together(patterns, tiny, model, monkeypatch):
    now = [0.0]

    def in_a_second(*arguments):
        now[0] += 1
        return embed(*arguments)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(streams, "embed", in_a_second)
    assert streams.assign(tiny, patterns, model) == {
        "batch_size": [1, 8, 64, 512],
        "same": [1.0] * 4,
        "milliseconds": [1000.0] * 4,
    }


def test_an_assignment_that_depends_on_the_batch_is_seen(patterns, tiny, model, monkeypatch):
    def by_batch(model, images, size):
        """Another cluster where eight images come together."""
        return None, np.eye(3)[np.full(len(images), int(len(images) == 8))]

    monkeypatch.setattr(streams, "embed", by_batch)
    assert streams.assign(tiny, patterns, model)["same"] == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("chunk", "sizes"), [(1, [32, 32, 32]), (2, [64, 32]), (3, [96]), (9, [96])])
def test_training_once_sees_each_chunk_and_then_never_again(patterns, tiny, monkeypatch, chunk, sizes):
    seen = []
    monkeypatch.setattr(streams, "learn", lambda state, images, steps: seen.append((images.copy(), steps)))
    curve = streams.train_once(tiny, patterns, chunk, steps=2)
    assert np.array_equal(np.concatenate([images for images, _ in seen]), patterns.images)
    assert [(len(images), steps) for images, steps in seen] == [(size, 2) for size in sizes]
    assert (curve["chunk"], curve["steps"], curve["images"]) == (sizes[0], 2, np.cumsum(sizes).tolist())


def test_unseen_images_are_scored_by_the_classes_that_the_seen_ones_gave_to_clusters(patterns, tiny, monkeypatch):
    seen, rest = (getattr(data, part)(patterns, 60, seed=0) for part in ("sample", "unseen"))
    rows = np.random.default_rng(0).permutation(96)
    assert np.array_equal(seen.images, patterns.images[np.sort(rows[:60])])
    assert np.array_equal(rest.images, patterns.images[np.sort(rows[60:])])
    names = {image.tobytes(): label for image, label in zip(patterns.images, patterns.labels, strict=True)}
    shifts = {60: [2, 0, 1], 1: [2, 1, 0]}  # class → cluster: of the unseen, class 0 alone lands where the seen do

    def by_name(model, images, config):
        return None, np.eye(3)[[shifts[len(images)][names[image.numpy().tobytes()]] for image in images]]

    monkeypatch.setattr(streams, "embed", by_name)
    found = streams.unseen(tiny, seen, rest, None)
    assert found["n_images"] == 36
    assert (found["acc_seen"], found["acc"]) == (1.0, (rest.labels == 0).mean())


def test_a_finished_run_is_measured(root, patterns, tiny):
    with pytest.raises(CheckpointError):
        streams.measure(tiny, patterns)
    with Run(tiny, patterns) as run:
        run.finish(*fit(tiny, patterns, run.report))
    found = streams.measure(tiny, patterns)
    assert json.loads((run.folder / "streaming.json").read_text()) == found
    assert (found["dataset"], found["preset"], found["variant"], found["seed"]) == ("digits", "demo", "cc", 0)
    assert [curve["chunk"] for curve in found["once"]] == [32, 32, 96]
    once, often, _ = (curve["nmi"][-1] for curve in found["once"])
    assert often > once + 0.2  # more steps learn more
    assert "unseen" not in found
    assert not (root / "results").exists()
