import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ccrepro import ContrastiveClustering
from ccrepro.errors import CcreproError

SMALL = {"backbone": "small"}
FEW = {"epochs": 1, "settings": SMALL, "random_state": 0}

# scikit-learn checks with rows of one to ten numbers. They are folded to images of 1×3 pixels, on which most checks
# pass; where a check brings other rows, or asks for what is refused, it fails as it should.
OTHER_WIDTH = ("estimators_overwrite_params", "estimators_fit_returns_self", "readonly_memmap_input", "dtype_object")
OTHER_WIDTH += ("n_features_in_after_fitting", "estimators_dtypes", "positive_only_tag_during_fit", "n_features_in")
OTHER_WIDTH += ("clustering", "estimators_partial_fit_n_features", "fit2d_1sample", "fit2d_1feature", "fit_idempotent")
OTHER_WIDTH += ("fit_check_is_fitted",)
ONE_CLUSTER = ("dont_overwrite_parameters", "methods_subset_invariance", "fit2d_predict1d")
REFUSED = {f"check_{name}": "rows of other than three values do not fold to 1×3 pixels" for name in OTHER_WIDTH}
REFUSED |= {f"check_{name}": "one cluster is no clustering, and refused" for name in ONE_CLUSTER}


@parametrize_with_checks(
    [ContrastiveClustering(2, image_shape=(1, 3), value_range=(-200, 200), **FEW)],
    expected_failed_checks=lambda estimator: REFUSED,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def raised(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011, each says more below
        call()
    assert isinstance(error.value, CcreproError)
    return str(error.value)


@pytest.fixture(scope="module")
def shapes():
    """Squares and stripes of three kinds in colour noise: uint8 (90, 3, 12, 12), and their kinds."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    row, column = np.mgrid[:12, :12]
    kinds = np.stack([row // 2 % 2, column // 2 % 2, (row - 5.5) ** 2 + (column - 5.5) ** 2 < 20]).astype(float)
    pixels = 0.2 + 0.6 * kinds[labels][:, None] + 0.1 * rng.standard_normal((90, 3, 12, 12))
    return (pixels.clip(0, 1) * 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def fitted(shapes):
    return ContrastiveClustering(3, epochs=15, batch_size=30, settings=SMALL, random_state=1).fit(shapes[0])


def test_finds_the_kinds_and_predicts_what_it_fitted(fitted, shapes):
    images, labels = shapes
    assert adjusted_rand_score(labels, fitted.labels_) == 1
    assert (fitted.predict(images) == fitted.labels_).all()
    np.testing.assert_allclose(fitted.predict_proba(images).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(images), axis=1), 1, atol=1e-6)
    assert fitted.transform(images).shape == (90, fitted.config_.instance_dim)
    assert fitted.n_iter_ == 15
    assert adjusted_rand_score(labels, fitted.predict(images.repeat(3, 2).repeat(3, 3))) > 0.9, "of another size"


def test_every_form_of_the_same_images_gives_the_same(fitted, shapes):
    images = shapes[0][:20]
    expected = fitted.predict_proba(images)
    for form in (
        images.transpose(0, 2, 3, 1),
        images / 255,
        (images / 255).astype(np.float32).transpose(0, 2, 3, 1),
        np.asfortranarray(images),
        (images / 255).astype(">f8"),
        np.float32(images) / np.float32(255) * np.float32(1 + 1e-7),  # rounded past 1
        torch.tensor(images),
        (torch.tensor(images) / 255).requires_grad_(),
        pd.Series(list(images)),
        [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)],
    ):
        assert (fitted.predict_proba(form) == expected).all()


def test_paths_are_read_as_arrays_are(shapes, tmp_path):
    images, paths, scores = shapes[0][:30], [str(tmp_path / f"{i:02d}.png") for i in range(30)], []
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    models = [ContrastiveClustering(2, **FEW).fit(X) for X in (images, paths)]
    expected = models[0].predict_proba(images)
    assert (ContrastiveClustering(2, **FEW).fit_predict(images) == expected.argmax(1)).all(), "the same seed"
    for model in models:
        for given in (list(map(Path, paths)), pd.Series(paths, index=range(30, 0, -1))):
            assert (model.predict_proba(given) == expected).all()
    for X in (images, paths):
        made = GridSearchCV(ContrastiveClustering(2, **FEW), {"n_clusters": [2, 3]}, cv=2, error_score="raise")
        scores.append(made.fit(X).cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)


class Images(torch.utils.data.Dataset):
    """As torchvision's: each element is an image and its label."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, i):
        return self.items[i], 7

    def __len__(self):
        return len(self.items)


def test_a_container_is_what_its_elements_are(fitted, shapes, tmp_path):
    """Whether list, tuple, array, column, table or Dataset, of paths, of Pillow's images or of arrays, of any sizes."""
    some = list(shapes[0][:6])
    pillows, paths = [Image.fromarray(image.transpose(1, 2, 0)) for image in some], []
    for i, pillow in enumerate(pillows):
        paths.append(str(tmp_path / f"{i}.png"))
        pillow.save(paths[-1])
    expected, objects = fitted.predict(shapes[0][:6]), np.empty(6, dtype=object)
    for kind in (some, pillows, paths, [torch.tensor(image) for image in some], [*some[:2], *pillows[2:4], *paths[4:]]):
        objects[:] = kind
        tables = [pd.Series(kind, index=range(6, 0, -1)), pd.DataFrame({"a": kind})]
        pairs = [[(image, label) for label, image in enumerate(kind)], [[image, "cat", [1]] for image in kind]]
        for form in (kind, tuple(kind), iter(kind), objects, Images(kind), *tables, *pairs):
            assert (fitted.predict(form) == expected).all()
    sizes = [some[0].repeat(2, 1).repeat(2, 2), some[1], some[2][:, :-1]]
    assert (fitted.predict(sizes)[:2] == fitted.predict([sizes[0], some[1]])).all()
    assert "columns path, label" in raised(lambda: fitted.predict(pd.DataFrame({"path": paths, "label": 1})))
    for one in (pillows[0], paths[0], {"image": some[0]}):
        assert "Give a list of images" in raised(lambda one=one: fitted.predict(one))
    assert "one image in colour, or three grey ones" in raised(lambda: fitted.predict(some[0]))
    of_grey = ContrastiveClustering(3, **FEW).fit(shapes[0][:, 0])
    assert of_grey.predict(shapes[0][:3, 0]).shape == (3,)


def test_deep_files_have_the_range_that_was_fitted(tmp_path, capsys):
    rng, values = np.random.default_rng(0), []
    paths = [tmp_path / f"{i}.tif" for i in range(20)]
    for path in paths:
        values.append(rng.integers(0, 4096 if path == paths[0] else 900, (12, 12)).astype(np.uint16))
        Image.fromarray(values[-1]).save(path)
    black_and_white, pixels = (0, int(values[0].max())), np.round(np.stack(values) * (255 / values[0].max()))
    of_files, of_arrays = (
        ContrastiveClustering(2, **FEW).fit(X) for X in (paths, pixels.astype(np.uint8)[..., None].repeat(3, 3))
    )
    of_files = ContrastiveClustering.load(of_files.save(tmp_path / "m.safetensors"))
    assert tuple(of_files.values_) == black_and_white
    ContrastiveClustering(2, verbose=True, **FEW).fit(paths)
    assert f"0 black and {black_and_white[1]} white where deeper than 8 bits" in capsys.readouterr().out
    for X in (paths, paths[5:], [Image.open(path) for path in paths[5:]]):
        assert (of_files.predict_proba(X) == of_arrays.predict_proba(pixels.astype(np.uint8)[-len(X) :])).all()
    with pytest.warns(UserWarning, match="no pixel is brighter than 1 of 255"):
        ContrastiveClustering(2, **FEW).fit(rng.integers(0, 2, (20, 12, 12)).astype(np.uint8))


def test_grey_and_colour_become_what_was_fitted(fitted, shapes):
    colour, grey = shapes[0], shapes[0][:, 0]
    assert (fitted.predict_proba(grey) == fitted.predict_proba(grey[:, None].repeat(3, 1))).all()
    of_grey = ContrastiveClustering(3, **FEW).fit(grey)
    for model, others in ((of_grey, colour), (pickle.loads(pickle.dumps(fitted)), grey)):
        channels = model.model_.backbone.conv1.in_channels
        assert model.partial_fit(others).model_.backbone.conv1.in_channels == channels


def test_pillows_images_are_taken_as_they_are_seen(fitted):
    """Not by the numbers of a palette's colours; and a transparent one lies on white."""
    red = Image.new("RGB", (12, 12), "red")
    kinds = [red, red.convert("P"), Image.new("RGBA", (12, 12), (0, 0, 0, 0)), Image.new("L", (12, 12), 255)]
    one, palette, clear, white = fitted.predict_proba(kinds)
    assert (one == palette).all()
    assert (clear == white).all()
    assert (one != white).any()


def test_score_is_one_for_what_holds_under_augmentation_and_zero_by_chance(fitted, shapes):
    images, _ = shapes
    assert fitted.score(images) > 0.8
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    assert fitted.score(noise) < 0.4
    assert fitted.score(images) == fitted.score(images)
    untrained = ContrastiveClustering(3, **{**FEW, "settings": {"lr": 1e-9, **SMALL}}).fit(images)
    assert untrained.score(images) < fitted.score(images)


def test_partial_fit_trains_on(fitted, shapes):
    images, labels = shapes
    one = ContrastiveClustering(3, batch_size=30, settings=SMALL, random_state=1)
    for _ in range(8):
        one.partial_fit(images)
    assert [e["epoch"] for e in one.history_] == list(range(1, 9))
    assert one.history_[-1]["loss"] < one.history_[0]["loss"]
    one.partial_fit(images[:45])
    assert one.n_iter_ == 9
    assert one.labels_.shape == (45,)
    assert "10 images do not fill a batch of 30" in raised(lambda: one.partial_fit(images[:10]))
    more = pickle.loads(pickle.dumps(fitted)).partial_fit(images)
    assert [e["epoch"] for e in more.history_] == list(range(1, 17)), "not the draws of the first epoch again"
    assert adjusted_rand_score(labels, more.labels_) > 0.9


def test_saved_and_loaded_is_the_same(fitted, shapes, tmp_path):
    again = ContrastiveClustering.load(fitted.save(tmp_path / "model.safetensors"))
    assert (again.predict_proba(shapes[0]) == fitted.predict_proba(shapes[0])).all()
    assert again.config_ == fitted.config_
    assert clone(again).set_params(epochs=1).fit(shapes[0]).config_.batch_size == 30
    rows = load_digits().data[:60]
    one = ContrastiveClustering(2, image_shape=(8, 8), value_range=(0, 16), **FEW).fit(rows)
    again = ContrastiveClustering.load(one.save(tmp_path / "m.safetensors"))
    assert (again.predict(rows) == one.labels_).all()
    assert (again.partial_fit(rows).labels_ >= 0).all()


def test_works_in_a_pipeline_and_gives_features_as_a_table(shapes, fitted):
    pipeline = make_pipeline(MinMaxScaler(clip=True), ContrastiveClustering(2, image_shape=(8, 8), **FEW))
    assert pipeline.fit_predict(load_digits().data[:60]).shape == (60,)
    table = clone(fitted).set_params(epochs=1).set_output(transform="pandas").fit_transform(shapes[0])
    assert table.shape == (90, 128)
    assert list(table.columns[[0, -1]]) == ["contrastiveclustering0", "contrastiveclustering127"]


def test_predict_before_fit():
    for method in ("predict", "predict_proba", "transform", "score"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(ContrastiveClustering(), method)(np.zeros((2, 8, 8)))
    with pytest.raises(NotFittedError):
        ContrastiveClustering().save("nowhere")


def test_images_of_different_shapes_or_values_say_so(fitted):
    assert "number 1: X has shape (1, 6, 4, 5)" in raised(
        lambda: fitted.predict([np.zeros((5, 6)), np.zeros((6, 4, 5))])
    )
    images = np.full((9, 3, 12, 12), 0.5)
    images[[4, 7], 1, 2, 3] = np.nan, -np.inf
    for call in (ContrastiveClustering(3).fit, ContrastiveClustering(3).partial_fit, fitted.predict):
        assert "2 rows of X contain NaN or infinity; the first is row 4" in raised(lambda call=call: call(images))
    text = raised(lambda: ContrastiveClustering(3).fit(load_digits().images))
    assert "values from 0 to 16" in text
    assert "value_range=" in text


def test_bad_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    text = raised(lambda: ContrastiveClustering(2).fit([tmp_path / "a.png", tmp_path / "none.png"]))
    assert "a.png: empty file" in text
    assert "none.png: no such file" in text
    assert "number 1: no path" in raised(lambda: ContrastiveClustering(2).fit(["a.png", None]))


@pytest.mark.parametrize(
    ("shape", "parameters", "says"),
    [
        *((shape, {}, f"X has shape {shape}") for shape in ((20, 64), (20, 8, 8, 4), (0, 8, 8), (8, 8, 3), ())),
        ((5, 8, 8), {}, "n_clusters is 10, but"),
        ((30, 8, 8), {"settings": {"seed": 1}}, "settings is {'seed': 1}"),
        ((30, 8, 8), {"settings": ["lr"]}, "settings is ['lr']"),
        ((30, 8, 8), {"settings": {"variant": "kmeans-pixels"}}, "heads=instance and baselines"),
        ((30, 8, 8), {"value_range": (1, 0)}, "value_range is (1, 0)"),
        ((30, 8, 8), {"value_range": "auto"}, "value_range is 'auto'"),
        ((30, 63), {"image_shape": 8}, "image_shape is 8"),
        ((30, 63), {"image_shape": (63,)}, "image_shape is (63,)"),
        ((30, 63), {"image_shape": (8, 8)}, "rows of 63 values"),
    ],
    ids=str,
)
def test_what_cannot_be_says_what_to_do(shape, parameters, says):
    assert says in raised(lambda: ContrastiveClustering(10, **parameters).fit(np.zeros(shape)))


def test_the_package_imports_without_torch():
    program = "import sys, ccrepro; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from ccrepro import nothing  # noqa: F401
