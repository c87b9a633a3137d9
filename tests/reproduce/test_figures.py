import numpy as np
import pytest
from made_records import record, records
from matplotlib import pyplot as plt
from PIL import Image

from ccrepro.reproduce import figures, tables
from ccrepro.reproduce.records import as_runs


@pytest.fixture
def trained():
    """Records of two seeds: three epochs, of which the first and the last are pictured, four images, two classes."""
    names = ("loss", "instance_loss", "cluster_loss", "entropy")
    names += ("instance_positive", "instance_negative", "cluster_positive", "cluster_negative")
    history = {"epoch": [1, 2, 3]}
    for number, name in enumerate(names):
        history |= {name: [0.1 * number, 0.2, 0.3], f"{name}_sd": [0.1, 0.1, 0.1]}
    tsne = {"x": [0.0, 1.0, 2.0, 3.0], "y": [0.0, 1.0, 0.0, 1.0], "cluster": [3, 4, 3, 4]}
    counts = {f"{head}_{kind}": [0, 3, 1] for head in ("instance", "cluster") for kind in ("positive", "negative")}
    evolution = [
        {"epoch": e, "cosines": counts, "scores": {"nmi": e / 10, "acc": 0.5, "ari": 0.4}, "n_clusters_used": 2}
        | (tsne if e in (0, 3) else {})
        for e in range(4)
    ]
    examples = {"kind": ["right", "wrong", "wrong"], "image": [0, 5, 7], "label": [0, 1, 0], "cluster": [3, 3, 2],
                "confidence": [0.99, 0.9, 0.8]}  # fmt: skip
    streaming = {
        "assign": {"batch_size": [1, 8], "milliseconds": [2.0, 3.0]},
        "once": [
            {"chunk": 10, "steps": 1, "images": [10, 20], "nmi": [0.1, 0.2]},
            {"chunk": 20, "steps": 20, "images": [20], "nmi": [0.4]},
            {"chunk": 20, "steps": 20, "images": [20], "nmi": [0.5]},
        ],
    }
    more = {
        "class_names": ["zero", "one"],
        "contingency": [[5, 1, 0], [0, 4, 2]],
        "tsne": tsne | {"label": [0, 0, 1, 1]},
    }
    more |= {"history": history, "evolution": evolution, "examples": examples, "streaming": streaming}
    return [record("cc", 0.75, seed, **more) for seed in range(2)]


def curves(axis):
    return [list(line.get_ydata()) for line in axis.lines]


def texts(found):
    return [text.get_text() for text in found]


def test_confusion_shows_the_counts(trained):
    axis = figures.confusion(trained).axes[0]
    assert texts(axis.texts) == ["5", "1", "0", "0", "4", "2"]
    assert texts(axis.get_xticklabels()) == ["zero", "one", "+1"]


def test_maps_draw_every_point(trained):
    axes = figures.feature_space(trained).axes
    for axis, names in zip(axes, (["zero", "one"], ["3", "4"]), strict=True):
        assert axis.collections[0].get_offsets().tolist() == [[0, 0], [1, 1], [2, 0], [3, 1]]
        assert texts(axis.texts) == names
    assert axes[0].texts[0].get_position() == pytest.approx((0.5, 0.5), abs=0.02)  # the median of its class
    axes = figures.evolution(trained).axes
    assert [a.get_title() for a in axes] == ["epoch 0: NMI 0.000", "epoch 3: NMI 0.300"]
    assert len(axes[1].collections[0].get_offsets()) == 4


def test_names_of_mixed_classes_do_not_cover_each_other(trained):
    trained[0]["tsne"] |= {"x": [0, 2, 2, 0], "y": [0, 2, 0, 2]}  # both medians are (1, 1)
    drawn = figures.feature_space(trained)
    drawn.draw_without_rendering()
    first, second = (text.get_window_extent() for text in drawn.axes[0].texts)
    assert not first.overlaps(second)


def test_the_teaser_has_three_maps_and_a_dark_form(trained):
    assert figures.teaser(trained) is None  # two maps
    trained[0]["evolution"][1] |= {"x": [0.0], "y": [5.0], "cluster": [2]}
    for dark, ground in ((False, 1.0), (True, 13 / 255)):
        drawn = figures.teaser(trained, dark)
        assert [axis.get_title() for axis in drawn.axes] == [f"epoch {e}: ACC 0.50" for e in (0, 1, 3)]
        assert drawn.axes[1].collections[0].get_offsets().tolist() == [[0, 5]]
        assert drawn.get_facecolor()[0] == pytest.approx(ground)


def test_curves_have_a_line_per_seed_beside_the_papers(trained):
    losses = figures.losses(trained).axes
    assert [len(a.lines) for a in losses] == [2, 2, 2, 3]
    assert curves(losses[0]) == [[0.0, 0.2, 0.3]] * 2
    assert curves(losses[3])[2] == pytest.approx([np.log(10)] * 2)  # log K beside the entropy
    scores = figures.scores_by_epoch(trained).axes
    assert [curves(scores[i]) for i in (0, 3)] == [[[0, 0.1, 0.2, 0.3]] * 2, [[2, 2, 2, 2]] * 2]
    cosines = figures.cosines(trained).axes
    assert [len(a.lines) for a in cosines] == [4, 4, 2, 2]
    assert curves(cosines[1])[2] == pytest.approx([0.7, 0.2, 0.3])
    paper = [dict(zip(*axis.lines[number].get_data(), strict=True)) for number, axis in enumerate(cosines[2:])]
    assert (paper[0][10], paper[0][1000], paper[1][1000]) == (0.73, 0.95, 0.09)
    stream = figures.streaming(trained[:1]).axes
    assert list(map(curves, stream)) == [[[2.0, 3.0]], [[0.1, 0.2], [0.4], [0.5]]]
    assert texts(stream[1].get_legend().texts)[:2] == ["10 images, 1 time", "20 images, 20 times"]


def test_distributions_of_cosines_are_shares_of_the_pairs_at_some_epochs(trained):
    axes = figures.cosine_distributions(trained).axes
    assert [axis.get_title() for axis in axes] == ["epoch 0", "epoch 1", "epoch 3", "", "", ""]
    for axis in axes:
        for drawn in axis.patches:
            values, edges, _ = drawn.get_data()
            assert (values.tolist(), edges.tolist()) == ([0, 0.75, 0.25], pytest.approx([-1, -1 / 3, 1 / 3, 1]))
    for r in trained:
        r["evolution"] = [{"epoch": 0}]  # an older record
    assert figures.cosine_distributions(trained) is None


def test_cost_is_hours_of_a_core_against_acc_beside_the_papers():
    made = records("cifar10", "laptop", cc=[0.5, 0.52], fast_m=[0.6], kmeans_pixels=[0.2], views_one=[0.4])
    for epochs, acc in ((20, 0.4), (80, 0.55)):
        short = records("cifar10", "laptop", cc=[acc])[0]
        pace = {"history": {"seconds": [90.0] * (epochs - 1) + [9000.0]}}  # the machine slept once
        made.append(short | pace | {"overrides": {"epochs": epochs}, "epochs": epochs})
    sampled = records("cifar10", "laptop", cc=[0.1])[0] | {"overrides": {"sample": 5}}
    runs = as_runs([*made, sampled])
    found = tables.cost(runs).set_index(["backbone", "epochs"])
    assert found.acc.to_dict() == pytest.approx(
        {("fast-s", 40): 0.51, ("fast-m", 40): 0.6, ("fast-s", 20): 0.4, ("fast-s", 80): 0.55}
    )
    assert found.hours["fast-s", 80] == 2.0
    (axis,) = figures.cost(runs).axes
    assert [line.get_label() for line in axis.lines[:2]] == ["ours, fast-m (epochs)", "ours, fast-s (epochs)"]
    assert axis.lines[1].get_xydata().tolist() == pytest.approx(np.array([[10 / 3600, 0.51], [0.5, 0.4], [2.0, 0.55]]))
    assert axis.lines[2].get_xydata().tolist() == [[70.0, 0.79]]
    assert list(axis.lines[3].get_ydata()) == [0.2, 0.2]
    assert figures.cost(as_runs(records("cifar10", "laptop", cc=[0.5], fast_m=[0.6]))) is None  # one length of each


def test_ablation_has_a_dot_per_seed_a_bar_per_mean_and_a_diamond_for_the_paper():
    made = records(cc=[0.9, 0.8, 0.7], views_one=[0.5]) + records("cifar10", cc=[0.7, 0.8, 0.9], views_none=[0.1])
    drawn = figures.ablation("augmentation", as_runs(made))
    digits, cifar10 = drawn.axes
    assert [line.get_xdata().tolist() for line in digits.lines] == [[0.9, 0.8, 0.7, 0.5]]
    assert list(digits.lines[0].get_ydata(orig=False)) == [0, 0, 0, 1]
    assert [bar.get_width() for bar in (*digits.patches, *cifar10.patches)] == pytest.approx([0.8, 0.5, 0.8, 0.1])
    assert cifar10.lines[1].get_xdata().tolist() == [0.79, 0.169]
    assert len(drawn.legends[0].texts) == 2
    (legend,) = figures.ablation("augmentation", as_runs(made[:4])).legends
    assert len(legend.texts) == 1  # nothing is reported for digits


def test_examples_show_the_images_with_class_cluster_and_confidence(trained, digits):
    axes = figures.examples(trained, "wrong", digits.images).axes
    assert [a.get_title() for a in axes] == ["one\n→ zero\n0.900", "zero\n→ cluster 2\n0.800"]
    assert np.array_equal(axes[0].images[0].get_array(), digits.images[5, 0] / 255)
    assert figures.examples(trained, "wrong", None) is None  # the data set is not at hand


def test_images_are_shown_with_their_views_or_by_their_class(digits):
    images = digits.images / 255
    axes = figures.view_pairs("title", images, 1 - images, images / 2, n=4).axes
    shown = [axes[4 * row].images[0].get_array() for row in range(3)]
    assert np.allclose(shown, [images[0, 0], 1 - images[0, 0], images[0, 0] / 2])
    axes = figures.samples("title", digits.images, digits.labels, digits.class_names, n=3).axes
    assert len(axes) == 30
    for number, axis in enumerate(axes):
        where = (digits.images[:, 0] == np.round(axis.images[0].get_array() * 255)).all((1, 2))
        assert set(digits.labels[where]) == {number // 3}
    assert [axes[i].get_ylabel() for i in (0, 27)] == ["0", "9"]
    assert len(figures.samples("title", digits.images, None, (), n=5).axes) == 5


NAMES = [
    "losses",
    "confusion",
    "feature_space",
    "cosines",
    "cosine_distributions",
    "evolution",
    "scores_by_epoch",
    "streaming",
]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_saved_as_equal_png_and_not_where_nobody_ran_anything(name, trained, tmp_path):
    draw = getattr(figures, name)
    for stem, made in {"one": trained, "two": trained, "none": []}.items():
        figures.save(draw(made), stem, "demo", tmp_path)
    one, two = sorted((tmp_path / "figures/demo").iterdir())
    assert one.read_bytes() == two.read_bytes()
    assert Image.open(one).format == "PNG"
    assert draw([]) is None
    assert plt.get_fignums() == []
