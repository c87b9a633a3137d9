"""Files sorted into a folder for each cluster: linked or copied, never replaced."""

import os

import pytest

from ccrepro.errors import ConfigError
from ccrepro.own_images import sorting


@pytest.mark.parametrize("links", [True, False])
def test_an_image_lands_in_the_folder_of_its_cluster(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*paths):
            raise OSError(18, "another disk")

        monkeypatch.setattr(os, "link", refuse)
    image, target = tmp_path / "a/b.jpg", tmp_path / "sorted"
    image.parent.mkdir()
    image.write_bytes(b"pixels")
    assert sorting.sort(image, target, 3, "a/b.jpg")
    assert (target / "3/a/b.jpg").read_bytes() == b"pixels"
    assert os.path.samefile(image, target / "3/a/b.jpg") == links
    assert sorting.sort(image, target, 3, "a/b.jpg"), "it is there already"
    (tmp_path / "c.jpg").write_bytes(b"others")
    assert not sorting.sort(tmp_path / "c.jpg", target, 3, "a/b.jpg")
    assert (target / "3/a/b.jpg").read_bytes() == b"pixels"
    assert [path.name for path in target.rglob("*")] == ["3", "a", "b.jpg"]


def test_results_are_not_among_the_images(tmp_path):
    sorting.check_apart(tmp_path / "a", tmp_path / "b")
    for target in ("a", "a/b", "."):
        with pytest.raises(ConfigError, match="one lies in the other"):
            sorting.check_apart(tmp_path / "a", tmp_path / target)
