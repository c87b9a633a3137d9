import pytest

from ccrepro.files import atomic_write


def test_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "a.txt", "old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
