import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ccrepro import plots, run
from ccrepro.config import recipe
from ccrepro.results import as_runs
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
    return as_runs([{**record, "variant": v, "seed": s} for v in ("cc", "views-one") for s in range(3)])


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


def test_ablation_has_a_dot_per_seed_a_bar_per_mean_and_a_diamond_for_the_paper(runs):
    other = runs[runs.variant == "cc"].assign(dataset="cifar10", acc=[0.7, 0.8, 0.9])
    drawn = plots.ablation("augmentation", pd.concat([runs, other]))
    digits, cifar10 = drawn.axes
    assert [len(line.get_xdata()) for line in digits.lines[::2]] == [3, 3, 0]
    assert cifar10.patches[0].get_width() == pytest.approx(0.8)
    assert [float(line.get_xdata()[0]) for line in cifar10.lines[1::2]] == [0.79, 0.69, 0.169]
    assert [text.get_text() for text in cifar10.texts] == ["not run", "not run"]
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.texts] == ["ours, a dot per seed", "reported by the paper"]


def test_ablation_of_one_row_has_its_legend_below_the_label_of_its_axis(runs):
    drawn = plots.ablation("backbones", runs)
    ((axis,), (legend,)) = drawn.axes, drawn.legends
    assert [text.get_text() for text in axis.get_yticklabels()] == ["small (ours, for 8×8 pixels)"]
    assert [text.get_text() for text in legend.texts] == ["ours, a dot per seed"]  # nothing is reported for digits
    assert legend.get_window_extent().y1 <= axis.xaxis.label.get_window_extent().y0


def test_ablation_without_runs_says_so(runs):
    axis = plots.ablation("heads", runs[:0]).axes[0]
    assert axis.get_title() == "no run yet"
    assert {text.get_text() for text in axis.texts} == {"not run"}


@pytest.fixture
def trained(record):
    """Records of two seeds with a history of three epochs and four kept epochs."""
    history = {"epoch": [1, 2, 3]}
    for number, name in enumerate(("instance_positive", "instance_negative", "cluster_positive", "cluster_negative")):
        history |= {name: [0.1 * number, 0.2, 0.3], f"{name}_sd": [0.1, 0.1, 0.1]}
    places = {"x": [0.0, 1.0], "y": [0.0, 1.0], "cluster": [3, 4]}
    evolution = [
        {"epoch": e, "scores": {"nmi": e / 10, "acc": 0.5, "ari": 0.4}, "n_clusters_used": 2} for e in range(4)
    ]
    for at in (evolution[0], evolution[3]):
        at |= places
    return [{**record, "seed": s, "history": history, "evolution": evolution} for s in range(2)]


def test_cosines_shows_a_line_per_seed_and_the_papers_points(trained):
    axes = plots.cosines(trained).axes
    assert [len(a.lines) for a in axes] == [4, 4, 2, 2]
    assert axes[0].lines[0].get_ydata().tolist() == [0.0, 0.2, 0.3]
    assert axes[1].lines[2].get_ydata()[0] == pytest.approx(0.3)
    paper = dict(zip(*axes[2].lines[0].get_data(), strict=True))
    assert (paper[10], paper[1000]) == (0.73, 0.95)
    assert dict(zip(*axes[3].lines[1].get_data(), strict=True))[1000] == 0.09


def test_evolution_shows_the_kept_maps_by_epoch(trained):
    axes = plots.evolution(trained).axes
    assert [a.get_title() for a in axes] == ["epoch 0: NMI 0.000", "epoch 3: NMI 0.300"]
    assert len(axes[1].collections[0].get_offsets()) == 2


def test_scores_by_epoch_shows_every_seed(trained):
    axes = plots.scores_by_epoch(trained).axes
    assert [len(a.lines) for a in axes] == [2, 2, 2, 2]
    assert axes[0].lines[0].get_ydata().tolist() == [0, 0.1, 0.2, 0.3]


def test_cases_shows_the_pictures_with_class_cluster_and_confidence(record, digits):
    cases = {"kind": ["right", "wrong", "wrong"], "image": [0, 5, 7], "label": [0, 5, 7], "cluster": [3, 1, 2],
             "confidence": [0.99, 0.9, 0.8]}  # fmt: skip
    axes = plots.cases([{**record, "cases": cases}], "wrong", digits.images).axes
    assert [a.get_title() for a in axes] == ["class 5\ncluster 1\n0.900", "class 7\ncluster 2\n0.800"]
    assert np.array_equal(axes[0].images[0].get_array(), digits.images[5, 0])


def test_cases_without_the_data_set_says_so(record):
    drawn = plots.cases([record], "wrong", None)
    assert drawn.axes[0].texts[0].get_text() == "the data set is not at hand"


def test_online_shows_a_stream(record):
    online = {
        "assign": {"batch_size": [1, 8], "milliseconds": [2.0, 3.0]},
        "stream": {"images": [10, 20], "nmi": [0.5, 0.6], "nmi_kmeans": [0.7, 0.8]},
        "once": {"1": {"images": [10], "nmi": [0.1]}, "20": {"images": [10], "nmi": [0.4]}},
    }
    axes = plots.online([{**record, "online": online}]).axes
    assert axes[0].lines[0].get_ydata().tolist() == [2.0, 3.0]
    assert [line.get_ydata()[-1] for line in axes[1].lines] == [0.6, 0.8]
    assert [line.get_ydata()[0] for line in axes[2].lines] == [0.1, 0.4, record["scores"]["nmi"]]


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


@pytest.mark.parametrize(
    "draw", [plots.losses, plots.confusion, plots.feature_space, plots.cosines, plots.evolution, plots.online]
)
def test_what_was_not_run_is_shown_as_not_run(draw):
    assert [text.get_text() for text in draw([]).axes[0].texts] == ["not run"]


def test_no_figure_stays_open(record):
    plots.confusion([record])
    assert plt.get_fignums() == []
