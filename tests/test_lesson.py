import base64
import dataclasses
import io
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ccrepro import loss, metrics, notebook
from ccrepro.config import recipe
from ccrepro.lesson import checks, figures, live, sliders
from ccrepro.train import train

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "notebooks/01_method.ipynb"


def cells_tagged(book, tag):
    return [c for c in book.cells if tag in c.metadata.get("tags", [])]


def answers(book):
    """The code of each folded answer, in order."""
    return [re.findall(r"```python\n(.*?)\n```", c.source, flags=re.S) for c in cells_tagged(book, "answer")]


def text_outputs(cell):
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The lesson run top to bottom by papermill in smoke settings, with every answer filled in."""
    book, folder = nbformat.read(LESSON, as_version=4), tmp_path_factory.mktemp("lesson")
    for cell, (answer,) in zip(cells_tagged(book, "exercise"), answers(book), strict=True):
        cell.source = answer
    nbformat.write(book, folder / "01_method.ipynb")
    smoke = {"epochs": 2, "entropy_epochs": 1}
    notebook.run(folder / "01_method.ipynb", folder / "out.ipynb", smoke)
    return nbformat.read(folder / "out.ipynb", as_version=4)


def test_every_folded_answer_is_right(executed):
    said = [text_outputs(c) for c in cells_tagged(executed, "check")]
    assert len(said) >= 8
    assert [text.split(". ")[0] for text in said] == [f"Exercise {i}: right" for i in range(1, len(said) + 1)]


def test_by_hand_equals_the_package(executed):
    for needle in ("loss.instance_loss(z_a", "metrics.accuracy(data"):
        (cell,) = [c for c in executed.cells if c.cell_type == "code" and needle in c.source]
        by_hand, package = re.findall(r"\d+\.\d+", text_outputs(cell))
        assert by_hand == package


def test_executed_lesson_shows_sliders_as_pictures_and_keeps_no_widget(executed):
    moved = [c for c in executed.cells if "sliders.Sliders(" in c.source]
    assert len(moved) == 2
    assert all(set(c.outputs[0].data) == {"image/png", "text/plain"} for c in moved)
    assert all(base64.b64decode(c.outputs[0].data["image/png"]).startswith(b"\x89PNG") for c in moved)
    assert "widgets" not in executed.metadata


def test_exercises_are_stated_open_and_answered():
    book = nbformat.read(LESSON, as_version=4)
    kinds = [(c.metadata.get("tags", [""]) or [""])[0] for c in book.cells]
    assert kinds.count("exercise") >= 8
    for i, kind in enumerate(kinds):
        if kind == "exercise":
            assert kinds[i + 1 : i + 3] == ["check", "answer"]
            assert "..." in book.cells[i].source
            assert book.cells[i - 1].source.startswith(f"**Exercise {kinds[:i].count('exercise') + 1}**")
            assert book.cells[i + 2].source.startswith("<details>")


def test_check_of_an_open_exercise_is_neither_right_nor_wrong():
    verdict = checks.both_in_color(...)
    assert verdict.right is None
    assert repr(verdict) == "Exercise 1: open. Replace the ... in the cell above and run both cells again."
    assert checks.positive(lambda i, n: ...).right is None


def test_check_shows_what_the_students_code_raises():
    verdict = checks.by_hand(lambda s, i, j: s[i])
    assert verdict.right is False
    assert "It stopped with TypeError" in verdict.text
    assert "#c0392b" in verdict._repr_html_()


def shares(s, i, j, tau):
    e = (s / tau).exp()
    return e[j] / (e.sum() - e[i])


def my_cluster_loss(
    y_a, y_b, tau, columns=True, itself=False, unit=True, missing=lambda y: math.log(y.shape[1]), sign=1
):
    c = torch.cat((y_a.T, y_b.T) if columns else (y_a, y_b))
    c = F.normalize(c, dim=1) if unit else c
    s = c @ c.T / tau
    s = s if itself else s.fill_diagonal_(-math.inf)
    lost = sum(missing(y) + torch.xlogy(y.mean(0), y.mean(0)).sum() for y in (y_a, y_b))
    return F.cross_entropy(s, torch.arange(len(s)).roll(len(s) // 2)) + sign * lost


EXAMPLE_COUNTS = [[10, 9, 0], [8, 1, 2], [0, 3, 5]]
WRONG = [
    (checks.both_in_color, (0.8,), "only one of the two views"),
    (checks.both_in_color, (0.6,), "multiply"),
    (checks.both_in_color, (0.5,), "0.5 is not it. Among 20,000 pairs drawn by the package, a share of 0.6"),
    (checks.positive, (lambda i, n: i + n,), "There is no such row"),
    (checks.positive, (lambda i, n: i,), "not its own positive"),
    (checks.positive, (lambda i, n: (i + 5) % 10,), "For i = 0, N = 4 it returns 5; the other view is row 4"),
    (checks.know_nothing, (math.log(8),), "itself is counted"),
    (checks.know_nothing, (math.log(6),), "only the negatives"),
    (checks.know_nothing, (2,), "2 is not it"),
    (checks.by_hand, (lambda s, i, j, tau: -torch.log(shares(s, i, j, 1.0)),), "not divided by τ"),
    (checks.by_hand, (lambda s, i, j, tau: -F.log_softmax(s / tau, 0)[j],), "stays in the denominator"),
    (checks.by_hand, (lambda s, i, j, tau: torch.log(shares(s, i, j, tau)),), "minus of -log is lost"),
    (checks.by_hand, (shares,), "without its -log"),
    (checks.by_hand, (lambda s, i, j, tau: -torch.log(shares(s, i, j, 0.5)),), "For s = [0.3"),
    (checks.ten_times, (0.5,), "the ratio is 2.72"),
    (checks.ten_times, (0.5 * math.log(10),), "solve exp(0.5/τ) = 10"),
    (checks.ten_times, (-0.2,), "above zero"),
    (checks.mixed_up, ((0, 1), *live.EXAMPLE), "another pair has 0.71"),
    (checks.mixed_up, ((1, 1), *live.EXAMPLE), "positive pair"),
    (checks.mixed_up, ((0, 5), *live.EXAMPLE), "numbered from 0 to 2"),
    (checks.starved, ("smaller",), "What does a cosine do"),
    (checks.starved, ("none",), "none of"),
    (checks.half_dead, (math.log(10),), "Five of them are empty"),
    (checks.half_dead, (math.log2(5),), "base 2"),
    (checks.half_dead, (0.1,), "an empty one adds 0"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, columns=False),), "Transpose"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, itself=True),), "compared with itself"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, unit=False),), "unit length"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, 1.0),), "τ is left out"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, sign=-1),), "dead clusters would be rewarded"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, sign=0),), "entropy term is missing"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a, b, t, missing=lambda y: 0),), "as eq. 6 prints it"),
    (checks.cluster_loss, (lambda a, b, t: my_cluster_loss(a.detach(), b, t),), "no gradient reaches Y"),
    (checks.cluster_loss, (lambda a, b, t: loss.cluster_loss(a, b, t).item(),), "returns float"),
    (checks.matched, ([0, 1, 2], EXAMPLE_COUNTS), "16 of 38 images are right; 22"),
    (checks.matched, ([0, 0, 2], EXAMPLE_COUNTS), "Class 0 is given to two"),
    (checks.matched, ([0, 1], EXAMPLE_COUNTS), "3 classes are to be named"),
    (checks.told_apart, (lambda a, sa, b, sb, n: abs(a - b) > 2 * (sa + sb),), "two standard errors are"),
    (
        checks.told_apart,
        (lambda a, sa, b, sb, n: a - b > 2 * math.sqrt((sa**2 + sb**2) / n),),
        "0.955 ± 0.006 and 0.967",
    ),
    (checks.told_apart, (lambda a, sa, b, sb, n: True,), "0.967 ± 0.006 and 0.968 ± 0.004"),
]


@pytest.mark.parametrize(("check", "given", "says"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_check_rejects_a_plausible_wrong_answer_and_says_what_is_wrong(check, given, says):
    verdict = check(*given)
    assert verdict.right is False
    assert says in verdict.text


def test_every_check_has_a_wrong_answer_tried_on_it():
    asked = set(re.findall(r"checks\.(\w+)\(", LESSON.read_text()))
    assert {check.__name__ for check, _, _ in WRONG} == asked


def test_a_cut_gradient_is_noticed():
    verdict = checks.cluster_loss(lambda a, b, t: loss.cluster_loss(a, b, t, 0.0) + loss.cluster_loss(a, b, t).detach()
                                  - loss.cluster_loss(a, b, t, 0.0).detach())  # fmt: skip
    assert verdict.text == "The value is right, the gradient is not: part of Y was cut off from it."


def test_counts_agree_with_the_package(digits):
    clusters = (digits.labels * 3 + 1) % 10
    clusters[:40] = 0
    counts = live.counts(digits.labels, clusters, 10)
    assert counts.sum() == len(digits.labels)
    assert counts[4, 3] == ((digits.labels == 4) & (clusters == 3)).sum()
    matched = metrics.contingency(digits.labels, clusters, 10)
    assert sorted(map(tuple, counts.T)) == sorted(map(tuple, matched.T))


def test_example_rows_are_assignments(digits):
    pictures, *views = live.example(digits)
    assert pictures.shape == (9, 1, 8, 8)
    assert all(torch.allclose(y.sum(1), torch.ones(9)) for y in views)


@pytest.fixture(scope="module")
def watched(digits):
    config = recipe("digits", epochs=4, n_clusters=3, batch_size=512)
    watch = live.Watch(config, digits)
    return watch, train(config, digits, watch.report)[1]


def test_watch_keeps_the_epochs_it_is_asked_for(watched):
    watch, _ = watched
    assert sorted(watch.kept) == [0, 1, 4]
    assert watch.progress().epoch.tolist() == [0, 1, 4]
    maps = watch.maps()
    assert [m["epoch"] for m in maps] == [0, 1, 4]
    assert all(len(m["x"]) == len(m["cluster"]) == len(m["label"]) == 600 for m in maps)


def test_entropy_trials_differ_in_the_term_and_the_heads_only(digits):
    trials = live.entropy_trials(digits, 1, [3])
    assert [(t["heads"], t["entropy_weight"]) for t in trials] == [
        ("both heads", 1.0), ("both heads", 0.0), ("cluster head alone", 1.0), ("cluster head alone", 0.0),
    ]  # fmt: skip
    assert all(t["counts"].sum() == 1797 and (np.diff(t["counts"]) <= 0).all() for t in trials)
    assert len({t["entropy"][0] for t in trials}) == 4
    table = live.entropy_table(trials)
    assert table["entropy term"].tolist() == ["with", "without", "with", "without"]
    empty = [str((t["counts"] == 0).sum()) for t in trials]
    assert table["empty clusters"].tolist() == empty
    assert float(table["largest cluster"][0]) == pytest.approx(trials[0]["counts"][0] / 1797, abs=5e-4)


def test_strength_moves_the_views_and_no_strength_leaves_the_colours():
    flower, off = live.flower(), {"crop_ratio": (1, 1), "flip": 0, "grayscale": 0, "blur": 0}
    still, moved = (figures._views(flower, live.color_config(s, 1.0, **off), 3) for s in (0.0, 1.0))
    assert np.allclose(still, still[:1], atol=1e-6)
    assert not np.allclose(moved, still, atol=0.05)


def test_augmentation_figure_changes_one_thing_at_a_time():
    axes = figures.augmentation("title", live.flower(), live.color_config()).axes
    pictures = {a.get_title().split("\n")[0]: a.images[0].get_array() for a in axes[:7]}
    config, image = live.color_config(), pictures["image x"]
    assert list(pictures)[1:-1] == list(figures.ALONE)
    flipped = figures._views(live.flower(), recipe_alone(config, "flip", flip=1.0), 1)[0].transpose(1, 2, 0)
    assert np.allclose(flipped, image[:, ::-1], atol=1e-5)
    grey = figures._views(live.flower(), recipe_alone(config, "greyscale", grayscale=1.0), 1)[0]
    assert np.allclose(grey, grey[:1], atol=1e-6)


def test_augmentation_figure_shows_each_at_work():
    axes = figures.augmentation("title", live.flower(), live.color_config()).axes
    pictures = [[a.images[0].get_array() for a in axes[7 * row + 1 : 7 * row + 6]] for row in range(3)]
    image = axes[0].images[0].get_array()
    at_work = np.array([[np.abs(picture - image).mean() > 0.01 for picture in row] for row in pictures])
    assert at_work.any(0).all()
    assert at_work.all(0).tolist() == [True, False, False, False, False]  # a crop is always taken


def recipe_alone(config, name, **changed):
    return dataclasses.replace(config, **{**figures._alone(config, figures.ALONE[name]), **changed})


def test_similarity_figure_outlines_the_positives_and_leaves_the_diagonal_out():
    cosines = torch.eye(6) + 0.1
    axis = figures.similarity("title", cosines).axes[0]
    assert {(p.get_x() + 0.5, p.get_y() + 0.5) for p in axis.patches} == {(((i + 3) % 6), i) for i in range(6)}
    assert len(axis.texts) == 30
    assert axis.images[0].get_array().mask.diagonal().all()


def test_share_figure_shows_the_loss_of_the_row():
    z = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    s = z @ z.T
    ell = -torch.log(shares(s[1], 1, 4, 0.5)).item()
    assert f"ℓ = {ell:.3f}" in figures.share("title", s, 1, [0.5]).axes[0].get_title()
    drawn = figures.temperature("title", s, 1, 0.5)
    assert f"ℓ = {ell:.3f}" in drawn._suptitle.get_text()
    s.requires_grad_()
    (-torch.log(shares(s[1], 1, 4, 0.5))).backward()
    pulls = [bar.get_height() for bar in drawn.axes[1].patches]
    assert pulls == pytest.approx((-s.grad[1][[0, 2, 3, 4, 5]]).tolist(), abs=1e-5)


def test_matching_figure_puts_the_matched_clusters_on_the_diagonal():
    counts = np.array(EXAMPLE_COUNTS)
    axes = figures.matching("title", counts, np.array([1, 0, 2]), ("0", "1", "2")).axes
    assert [a.get_title().split(": ")[1] for a in axes] == ["16 of 38 on the diagonal", "22 of 38 on the diagonal"]
    assert [t.get_text() for t in axes[1].get_xticklabels()] == ["1", "0", "2"]


def test_cases_figure_sorts_by_right_and_by_confidence(watched, digits):
    clustering = watched[0].kept[4]
    classes = np.array([0, 1, 2])
    axes = figures.cases("title", digits, clustering, classes, n=3).axes
    right = classes[clustering.labels_pred] == digits.labels
    shown = [float(a.get_title().split("\n")[1]) for a in axes]
    assert shown[0] == round(float(clustering.confidence[right].max()), 2)
    assert shown[3] == round(float(clustering.confidence[~right].max()), 2)
    assert shown[6] == round(float(clustering.confidence.min()), 2)
    assert all(a.get_title()[0] != a.get_title()[4] for a in axes[3:6])


def test_sliders_draw_anew_with_their_values():
    def draw(text, height):
        return figures.shares(text, {"one": torch.tensor([height, 1 - height]), "two": torch.tensor([0.5, 0.5])})

    moved = sliders.Sliders(draw, "title", height=(0, 1, 0.1, 0.5))
    before = moved._repr_mimebundle_()
    moved.controls["height"].value = 0.9
    after = moved._repr_mimebundle_()
    assert before["image/png"] != after["image/png"]
    buffer = io.BytesIO()
    expected = draw("title", 0.9)
    expected.savefig(buffer, format="png", dpi=expected.dpi, metadata={"Software": None})
    assert base64.b64decode(after["image/png"]) == buffer.getvalue()
    assert notebook.WIDGET in after
