"""A stream is answered image by image, in bounded memory, whatever comes beside an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from ccrepro import train
from ccrepro.augmentations import eval_view
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs import resume, streaming

CONFIG = recipe("own", "own", backbone="small", image_size=12, n_clusters=3)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """48 files of noise, 16 to 18 pixels wide and 12 high."""
    folder, rng = tmp_path_factory.mktemp("stream"), np.random.default_rng(0)
    for i in range(48):
        Image.fromarray(rng.integers(0, 256, (12, 16 + i % 3, 3)).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return sorted(map(str, folder.iterdir()))


def answers(model, paths):
    return streaming.predict(model, CONFIG, paths)


def test_outputs_are_those_of_the_model(model):
    images = np.random.default_rng(0).integers(0, 256, (21, 3, 12, 16)).astype(np.uint8)
    found = streaming.outputs(model, images, CONFIG)
    views = eval_view(torch.from_numpy(images), 12)
    for array, expected in zip(found, (*model(views), model.backbone(views)), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)
    assert not model.backbone._forward_hooks


def test_of_a_stream_each_image_is_answered_before_the_next_path_is_taken(model, paths):
    taken = []
    endless = (taken.append(i) or paths[0] for i in iter(int, 1))
    found = answers(model, endless)
    for n in range(1, 20):
        assert next(found)[0] == paths[0]
        assert len(taken) == n
    found.close()


def test_answers_depend_neither_on_neighbours_nor_on_how_the_paths_come(model, paths):
    whole = dict(answers(model, paths))
    assert [*whole] == paths
    for others in (iter(paths), paths[::-1], paths[45:]):
        for path, again in answers(model, others):
            assert again.p.argmax() == whole[path].p.argmax()
            np.testing.assert_allclose(again.z, whole[path].z, atol=1e-5)


@pytest.mark.parametrize("kind", [list, iter])
def test_a_bad_file_is_told_in_its_place(model, paths, kind):
    given = [paths[0], "nowhere.png", paths[1]]
    found = list(answers(model, kind(given)))
    assert [path for path, _ in found] == given
    assert str(found[1][1]) == str(next(answers(model, ["nowhere.png"]))[1]) == "no such file"


def test_grey_is_pillows():
    colour = np.random.default_rng(0).integers(0, 256, (1, 3, 50, 50)).astype(np.uint8)
    grey = np.asarray(Image.fromarray(colour[0].transpose(1, 2, 0)).convert("L"))
    assert (streaming.in_channels(colour, 1)[0, 0] == grey).all()
    assert (streaming.in_channels(grey[None, None], 3) == grey).all()


def test_a_chunk_that_is_seen_once_is_an_epoch_of_it(patterns, tiny):
    config = tiny.replace(epochs=1)
    trained, history = resume.fit(config, patterns)
    state = train.start(config, patterns)
    numbers = streaming.learn(state, patterns.images)
    learned = state.model.state_dict()
    assert all(torch.equal(value, learned[name]) for name, value in trained.state_dict().items())
    assert numbers | {"seconds": 0} == history[0] | {"seconds": 0}


def test_several_steps_on_a_chunk_each_see_other_views(patterns, tiny):
    state = train.start(tiny, patterns)
    numbers = streaming.learn(state, patterns.images[:40], steps=20)
    assert (state.epoch, numbers["epoch"], len(state.history)) == (20, 20, 1)
    assert streaming.learn(state, patterns.images[:40])["loss"] < numbers["loss"]
