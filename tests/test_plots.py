import numpy as np
import pytest
from matplotlib import pyplot as plt

from ccrepro import plots, run
from ccrepro.config import recipe
from ccrepro.train import first_pairs


@pytest.fixture(scope="module")
def record(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    found = run.Run(recipe("digits", variant="kmeans-pixels"), digits, folder, folder).finish(None, [])
    return {
        **found,
        "history": {name: [3.0, 2.0] for name in ("epoch", "loss", "instance_loss", "cluster_loss", "entropy")},
    }


@pytest.fixture
def runs(record):
    import pandas as pd

    row = {"dataset": "digits", **record["scores"]}
    return pd.DataFrame([{**row, "variant": v, "seed": s} for v in ("cc", "views-one") for s in range(3)])


def test_confusion_shows_the_counts(record):
    axis = plots.confusion([record]).axes[0]
    shown = [int(text.get_text()) for text in axis.texts]
    assert shown == np.ravel(record["contingency"]).tolist()
    assert "ACC 0.7" in axis.get_title()


def test_feature_space_draws_every_point_twice(record):
    axes = plots.feature_space([record]).axes
    assert [len(a.collections[0].get_offsets()) for a in axes] == [600, 600]
    assert sorted(t.get_text() for t in axes[0].texts) == [str(d) for d in range(10)]


def test_losses_draw_one_line_per_run(record):
    axes = plots.losses([record, {**record, "seed": 1}]).axes
    assert [len(a.lines) for a in axes] == [2, 2, 2, 3]  # and log K beside the entropy
    assert axes[0].lines[0].get_ydata().tolist() == [3.0, 2.0]
    assert all(a.get_xlabel() == "epoch" for a in axes)


def test_losses_of_a_baseline_say_that_nothing_was_trained(record):
    assert plots.losses([{**record, "history": {}}]).axes[0].texts[0].get_text() == "nothing was trained"


def test_ablation_has_a_dot_per_seed_and_a_bar_per_mean(runs):
    axis = plots.ablation("augmentation", runs).axes[0]
    assert [len(c.get_offsets()) for c in axis.collections] == [3, 3, 0]
    assert axis.patches[0].get_height() == pytest.approx(runs.acc.iloc[0])


def test_ablation_without_runs_says_so(runs):
    assert plots.ablation("heads", runs[:0]).axes[0].get_title() == "no run yet"


def test_view_pairs_shows_images_and_their_views(digits):
    drawn = plots.view_pairs("title", *first_pairs(digits, recipe("digits")), n=4)
    assert len(drawn.axes) == 12
    first, *views = (drawn.axes[i].images[0].get_array() for i in (0, 4, 8))
    assert first.shape == (8, 8)
    assert any(np.allclose(first, image[0] / 255, atol=1e-6) for image in digits.images)
    assert not any(np.allclose(first, view) for view in views)


def test_samples_shows_pictures_of_their_class(digits):
    drawn = plots.samples("title", digits.images, digits.labels, digits.class_names, n=3)
    assert len(drawn.axes) == 30
    for number, axis in enumerate(drawn.axes):
        shown = np.round(axis.images[0].get_array() * 255)
        where = (digits.images[:, 0] == shown).all((1, 2))
        assert digits.labels[where].tolist() == [number // 3] * where.sum()
        assert where.any()
    assert [drawn.axes[i].get_ylabel() for i in (0, 27)] == ["0", "9"]


def test_samples_without_labels_is_one_row(digits):
    assert len(plots.samples("title", digits.images, None, (), n=5).axes) == 5


def test_saved_figures_are_equal_byte_by_byte(record, tmp_path):
    for name in ("one", "two"):
        plots.save(plots.confusion([record]), name, "demo", tmp_path)
    for kind in ("png", "svg"):
        one, two = ((tmp_path / f"figures/demo/{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 5000


@pytest.mark.parametrize("draw", [plots.losses, plots.confusion, plots.feature_space])
def test_what_was_not_run_is_shown_as_not_run(draw):
    assert [text.get_text() for text in draw([]).axes[0].texts] == ["not run"]


def test_no_figure_stays_open(record):
    plots.confusion([record])
    assert plt.get_fignums() == []
