import pickle
import subprocess
import sys

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
from sklearn.utils.estimator_checks import check_clustering, parametrize_with_checks

from ccrepro import ContrastiveClustering
from ccrepro.checkpoint import load_model
from ccrepro.errors import CcreproError, CheckpointError, ConfigError
from ccrepro.stream import outputs


class AtLeastTwo(ContrastiveClustering):
    """Some of scikit-learn's checks ask for one cluster, which is no clustering and refused (`test_bad_settings`)."""

    def _start(self, data):
        asked, self.n_clusters = self.n_clusters, max(self.n_clusters, 2)
        super()._start(data)
        self.n_clusters = asked


CHECKED = {"image_shape": "square", "value_range": "fit", "backbone": "small", "random_state": 0}
FEW = {"epochs": 1, "backbone": "small", "random_state": 0}

# None of scikit-learn's checks is excluded. Two facts make them apply: flat rows are folded to squares, and their
# numbers are scaled to pixels. One check asks for good clusters of 50 points in the plane, and gets 20 epochs for it.
ASKS_FOR_QUALITY = dict.fromkeys(["check_clustering"], "one epoch is not enough; see the next test")


@parametrize_with_checks(
    [AtLeastTwo(2, epochs=1, **CHECKED)], expected_failed_checks=lambda estimator: ASKS_FOR_QUALITY
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_scikit_learns_check_of_quality():
    gentle = {"crop_scale": (0.9, 1.0)}
    estimator = ContrastiveClustering(3, epochs=20, flip=0, settings=gentle, **CHECKED)
    check_clustering("ContrastiveClustering", estimator)


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
    return ContrastiveClustering(3, epochs=15, batch_size=30, backbone="small", random_state=1).fit(shapes[0])


def test_finds_the_kinds_and_predicts_what_it_fitted(fitted, shapes):
    images, labels = shapes
    assert adjusted_rand_score(labels, fitted.labels_) == 1
    assert (fitted.predict(images) == fitted.labels_).all()
    assert (fitted.predict_proba(images).argmax(1) == fitted.labels_).all()
    np.testing.assert_allclose(fitted.predict_proba(images).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(images), axis=1), 1, atol=1e-6)
    assert fitted.transform(images).shape == (90, fitted.config_.instance_dim)
    assert fitted.n_iter_ == 15


def test_same_seed_gives_the_same_clusters_and_fit_predict_is_fit_then_predict(shapes):
    one = ContrastiveClustering(3, **FEW).fit_predict(shapes[0])
    again = ContrastiveClustering(3, **FEW).fit(shapes[0]).predict(shapes[0])
    assert (one == again).all()


def test_every_form_of_the_same_pictures_gives_the_same(fitted, shapes):
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


def test_paths_are_read_as_arrays_are(fitted, shapes, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path, image in zip(paths, shapes[0], strict=False):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    from_files = ContrastiveClustering(3, epochs=2, backbone="small", random_state=0).fit([str(p) for p in paths])
    from_arrays = ContrastiveClustering(3, epochs=2, backbone="small", random_state=0).fit(shapes[0][:20])
    expected = from_arrays.predict_proba(shapes[0][:20])
    for model in (from_files, from_arrays):
        for given in (paths, pd.Series(paths), pd.Series(list(map(str, paths)), index=range(20, 0, -1))):
            assert (model.predict_proba(given) == expected).all()


def test_pictures_of_another_size_and_grey_ones_are_taken(fitted, shapes):
    images, labels = shapes
    larger = images.repeat(3, 2).repeat(3, 3)
    assert adjusted_rand_score(labels, fitted.predict(larger)) > 0.9
    assert fitted.predict(images[:, 0]).shape == (90,)


def test_grey_and_colour_become_what_was_fitted(fitted, shapes, tmp_path):
    colour = shapes[0]
    grey = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in colour.transpose(0, 2, 3, 1)])
    of_grey = ContrastiveClustering(3, **FEW).fit(grey)
    expected = of_grey.predict_proba(grey)
    assert (of_grey.predict_proba(colour) == expected).all()
    for model, others in ((of_grey, colour), (pickle.loads(pickle.dumps(fitted)), grey)):
        channels = model.model_.backbone.conv1.in_channels
        assert model.partial_fit(others).model_.backbone.conv1.in_channels == channels


def test_pillows_pictures_are_taken_as_they_are_seen(fitted):
    """Not by the numbers of a palette's colours; and a transparent one lies on white."""
    red = Image.new("RGB", (12, 12), "red")
    kinds = [red, red.convert("P"), Image.new("RGBA", (12, 12), (0, 0, 0, 0)), Image.new("L", (12, 12), 255)]
    one, palette, clear, white = fitted.predict_proba(kinds)
    assert (one == palette).all()
    assert (clear == white).all()
    assert (one != white).any()


def test_prediction_depends_neither_on_the_batch_nor_on_the_place_in_it(fitted, shapes):
    images = shapes[0]
    whole = fitted.predict_proba(images)
    assert (np.concatenate([fitted.predict_proba(images[i : i + 7]) for i in range(0, 90, 7)]) == whole).all()
    assert (fitted.predict_proba(images[::-1])[::-1] == whole).all()


def test_score_is_one_for_what_holds_under_augmentation_and_zero_by_chance(fitted, shapes):
    images, _ = shapes
    assert fitted.score(images) > 0.8
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    assert fitted.score(noise) < 0.4
    assert fitted.score(images) == fitted.score(images)
    untrained = ContrastiveClustering(3, settings={"lr": 1e-9}, **FEW).fit(images)
    assert untrained.score(images) < fitted.score(images)


def test_partial_fit_trains_on(shapes):
    images, _ = shapes
    one = ContrastiveClustering(3, batch_size=30, backbone="small", random_state=1)
    for _ in range(8):
        one.partial_fit(images)
    assert [e["epoch"] for e in one.history_] == list(range(1, 9))
    assert one.history_[-1]["loss"] < one.history_[0]["loss"]
    before = one.predict_proba(images)
    one.partial_fit(images[:45])
    assert (one.predict_proba(images) != before).any()
    assert one.n_iter_ == 9
    assert one.labels_.shape == (45,)


def test_partial_fit_after_fit_goes_on_from_there(fitted, shapes):
    more = pickle.loads(pickle.dumps(fitted)).partial_fit(shapes[0])
    assert [e["epoch"] for e in more.history_] == list(range(1, 17)), "not the draws of the first epoch again"
    assert more.history_[-1]["loss"] < fitted.history_[0]["loss"]
    assert adjusted_rand_score(shapes[1], more.labels_) > 0.9


def test_partial_fit_says_when_a_batch_cannot_be_filled(shapes):
    one = ContrastiveClustering(3, batch_size=30, backbone="small").partial_fit(shapes[0])
    with pytest.raises(ValueError, match="10 pictures do not fill a batch of 30"):
        one.partial_fit(shapes[0][:10])


def test_saved_and_loaded_is_the_same(fitted, shapes, tmp_path):
    path = fitted.save(tmp_path / "model.safetensors")
    again = ContrastiveClustering.load(path)
    assert (again.predict_proba(shapes[0]) == fitted.predict_proba(shapes[0])).all()
    assert again.get_params()["n_clusters"] == 3
    assert again.config_ == fitted.config_
    refitted = clone(again).set_params(epochs=1).fit(shapes[0])
    assert refitted.config_.batch_size == 30


def test_folded_rows_survive_saving(tmp_path):
    rows = load_digits().data[:60]
    one = ContrastiveClustering(2, image_shape=(8, 8), value_range=(0, 16), **FEW).fit(rows)
    again = ContrastiveClustering.load(one.save(tmp_path / "m.safetensors"))
    assert (again.predict(rows) == one.labels_).all()
    assert (again.partial_fit(rows).labels_ >= 0).all()


def test_one_flipped_bit_of_a_saved_model_is_found(fitted, tmp_path):
    blob = bytearray(fitted.save(tmp_path / "model.safetensors").read_bytes())
    for place in np.random.default_rng(0).integers(0, len(blob), 40):
        blob[place] ^= 4
        (tmp_path / "bad.safetensors").write_bytes(blob)
        blob[place] ^= 4
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "bad.safetensors")


def test_weights_without_settings_are_no_model(fitted, tmp_path):
    from ccrepro.checkpoint import save_weights

    path = save_weights(fitted.model_, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="weights without their settings"):
        ContrastiveClustering.load(path)


def test_works_in_a_pipeline_and_a_grid_search():
    rows = load_digits().data[:120]
    made = ContrastiveClustering(2, image_shape=(8, 8), **FEW)
    pipeline = make_pipeline(MinMaxScaler(clip=True), made)
    assert pipeline.fit_predict(rows).shape == (120,)
    search = GridSearchCV(pipeline, {"contrastiveclustering__n_clusters": [2, 5]}, cv=2, error_score="raise").fit(rows)
    assert search.best_params_["contrastiveclustering__n_clusters"] in (2, 5)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_pictures_go_through_a_grid_search_as_arrays_and_as_paths(shapes, tmp_path):
    images = shapes[0][:30]
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i:02d}.png")
    made, scores = ContrastiveClustering(2, **FEW), []
    for pictures in (images, sorted(map(str, tmp_path.iterdir()))):
        search = GridSearchCV(made, {"n_clusters": [2, 3]}, cv=2, error_score="raise").fit(pictures)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)


def test_features_can_come_as_a_table(shapes, fitted):
    table = clone(fitted).set_params(epochs=1).set_output(transform="pandas").fit_transform(shapes[0])
    assert table.shape == (90, 128)
    assert list(table.columns[[0, -1]]) == ["contrastiveclustering0", "contrastiveclustering127"]


def test_clone_copies_parameters_and_nothing_fitted(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "model_")


def raised(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011, each says more below
        call()
    assert isinstance(error.value, CcreproError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_predict_before_fit():  # 34
    for method in ("predict", "predict_proba", "transform", "score"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(ContrastiveClustering(), method)(np.zeros((2, 8, 8)))
    with pytest.raises(NotFittedError):
        ContrastiveClustering().save("nowhere")


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_values_that_are_not_finite(fitted, value, name):  # 35
    images = np.full((9, 3, 12, 12), 0.5)
    images[[4, 7], 1, 2, 3] = value
    for call in (ContrastiveClustering(3).fit, ContrastiveClustering(3).partial_fit, fitted.predict):
        text = raised(lambda call=call: call(images))
        assert "row 4 of X is the first of 2" in text
        assert name in text


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((20, 64), r"X is flat, of shape (20, 64) (X). Expected (N, H, W), (N, H, W, 3) or (N, 3, H, W). Convert it:"),
        ((20,), "X has shape (20,)"),
        ((20, 8, 8, 4), "X[..., :3] drops the transparency"),
        ((20, 5, 8, 8), "X has shape (20, 5, 8, 8)"),
        ((0, 8, 8), "X is empty"),
        ((8, 8, 3), "looks like one colour picture (X). Expected (N, H, W), (N, H, W, 3) or (N, 3, H, W). X[None] is"),
        ((), "Paths come in a list"),
    ],
    ids=str,
)
def test_other_shapes_say_how_to_convert(shape, says):  # 36
    assert says in raised(lambda: ContrastiveClustering(3).fit(np.zeros(shape)))


def test_pictures_of_different_shapes_say_so(fitted):
    for form in ([np.zeros((5, 6)), np.zeros((7, 6))], [Image.new("RGB", (5, 6)), Image.new("RGB", (9, 6))]):
        assert "pictures of different shapes (X). They must have one size" in raised(
            lambda form=form: fitted.predict(form)
        )


def test_later_values_are_cut_off_at_the_range_that_was_fitted():
    dark = np.random.default_rng(0).integers(0, 128, (30, 8, 8)).astype(np.uint8)
    model = ContrastiveClustering(2, value_range="fit", **FEW).fit(dark)
    assert (model.predict_proba(dark * 2) == model.predict_proba(np.minimum(dark * 2, dark.max()))).all()


def test_fewer_images_than_clusters():  # 37
    assert "n_samples=5 < n_clusters=10" in raised(lambda: ContrastiveClustering(10).fit(np.zeros((5, 8, 8))))


def test_values_out_of_range_say_how_to_scale():
    text = raised(lambda: ContrastiveClustering(3).fit(load_digits().images))
    assert "values from 0 to 16" in text
    assert "value_range=" in text


def test_rows_that_do_not_fold():
    rows = np.zeros((20, 63))
    assert "63 values a row" in raised(lambda: ContrastiveClustering(3, image_shape=(8, 8)).fit(rows))
    for shape in (8, "8x8", (63,)):
        text = raised(lambda shape=shape: ContrastiveClustering(3, image_shape=shape).fit(rows))
        assert f"image_shape is {shape!r}" in text


def test_bad_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    text = raised(lambda: ContrastiveClustering(2).fit([tmp_path / "a.png", tmp_path / "none.png"]))
    assert "a.png: empty file" in text
    assert "none.png: no such file" in text
    assert "None: no path" in raised(lambda: ContrastiveClustering(2).fit(["a.png", None]))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"n_clusters": 1}, "n_clusters is 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ({"settings": {"temprature": 1}}, "unknown setting 'temprature'"),
        ({"settings": {"seed": 1}}, "settings has seed (settings). n_clusters and random_state"),
        ({"settings": {"variant": "kmeans-pixels"}}, "baseline is kmeans"),
        ({"batch_size": "x"}, "batch_size is 'x'"),
        ({"settings": ["lr"]}, "settings is ['lr']"),
        ({"value_range": (1, 0)}, "value_range is (1, 0)"),
        ({"value_range": "auto"}, "value_range is 'auto'"),
        ({"batch_size": 500}, "batch_size is 500, but the collection has 30 images"),
    ],
    ids=str,
)
def test_bad_settings(parameters, says):
    with pytest.raises(ConfigError) as error:
        ContrastiveClustering(**{"n_clusters": 2, **parameters}).fit(np.zeros((30, 8, 8)))
    assert says in str(error.value)


def test_the_package_imports_without_torch():
    program = "import sys, ccrepro; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from ccrepro import nothing  # noqa: F401


def test_outputs_hold_the_backbones_features(fitted, shapes):
    found = outputs(fitted.model_, shapes[0][:9], 12)
    assert found.h.shape == (9, fitted.model_.backbone.n_features)
    assert (found.z == fitted.transform(shapes[0][:9])).all()
