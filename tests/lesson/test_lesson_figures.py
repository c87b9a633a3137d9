"""What the lesson draws is what it computes."""

import base64
import io

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ccrepro.lesson import demos, figures, sliders


def test_strength_moves_the_views_and_no_strength_leaves_the_colours():
    off = {"flip": 0, "grayscale": 0, "blur": 0}
    still, moved = (figures._views(demos.flower(), demos.color_config(s, 1.0, **off), 3) for s in (0.0, 1.0))
    assert np.allclose(still, still[:1], atol=1e-6)
    assert not np.allclose(moved, still, atol=0.05)


def test_augmentation_figure_shows_each_by_itself_and_at_work():
    config = demos.color_config()
    axes = np.reshape(figures.augmentation("title", demos.flower(), config).axes, (7, -1))
    image = axes[0, 0].images[0].get_array()
    rows = [[axis.images[0].get_array() for axis in row] for row in axes[1:6]]
    at_work = np.array([[np.abs(view - image).mean() > 0.01 for view in row] for row in rows])
    assert at_work.any(1).all()
    assert at_work.all(1).tolist() == [True, False, False, False, False]  # a crop is always taken
    flipped, grey = (
        figures._views(demos.flower(), config.replace(**{**figures.OFF, name: 1.0}), 1)[0]
        for name in ("flip", "grayscale")
    )
    assert np.allclose(flipped.transpose(1, 2, 0), image[:, ::-1], atol=1e-5)
    assert np.allclose(grey, grey[:1], atol=1e-6)


def test_similarity_figure_outlines_the_positives_and_leaves_the_diagonal_out():
    axis = figures.similarity("title", torch.eye(6) + 0.1).axes[0]
    assert {(p.get_x(), p.get_y()) for p in axis.patches} == {(((i + 3) % 6), i) for i in range(6)}
    assert len(axis.texts) == 30
    assert axis.collections[0].get_array().mask.diagonal().all()


def test_share_figure_shows_the_loss_of_the_row_and_its_gradient():
    z = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    s = (z @ z.T).requires_grad_()
    e = (s[1] / 0.5).exp()
    ell = -torch.log(e[4] / (e.sum() - e[1]))
    ell.backward()
    top, bottom = figures.share("title", s.detach(), 1, 0.5).axes
    assert f"ℓ = {ell:.3f}" in top.get_title()
    pulls = [bar.get_height() for bar in bottom.patches]
    assert pulls == pytest.approx((-s.grad[1][[0, 2, 3, 4, 5]]).tolist(), abs=1e-5)


def test_sliders_draw_anew_with_their_values():
    def draw(text, height):
        return figures.shares(text, {"one": torch.tensor([height, 1 - height]), "two": torch.tensor([0.5, 0.5])})

    moved = sliders.Sliders(draw, "title", height=(0, 1, 0.1, 0.5))
    before = moved._repr_mimebundle_()
    moved.controls["height"].value = 0.9
    after = moved._repr_mimebundle_()
    assert before["image/png"] != after["image/png"]
    buffer, expected = io.BytesIO(), draw("title", 0.9)
    expected.savefig(buffer, format="png", dpi=expected.dpi, metadata={"Software": None})
    assert base64.b64decode(after["image/png"]) == buffer.getvalue()
    assert "application/vnd.jupyter.widget-view+json" in after
