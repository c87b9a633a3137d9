import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccrepro.errors import CheckpointError, LockedError
from ccrepro.runtime.storage import atomic_write, listing, lock, place, sweep

IMPORTS = "import os, sys, time; from pathlib import Path; from ccrepro.runtime.storage import atomic_write, lock; "


def start(code, folder, **more):
    return subprocess.Popen([sys.executable, "-c", IMPORTS + code, folder], stdout=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
@pytest.mark.parametrize("call", ["pathlib.Path.open", "os.fsync", "os.replace"])
def test_any_call_that_fails_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch, call, error):
    path = atomic_write(tmp_path / "a.txt", "old")

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(call, fails)
        with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
            atomic_write(path, "new")
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"Cannot write {path} (3 bytes): No space left on device.")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(CheckpointError, match=r"^Cannot write .*b\.txt .*: File exists"):
        atomic_write(tmp_path / "a" / "b.txt", "new")
    with pytest.raises(LockedError, match=r"^Cannot lock .*run: "), lock(tmp_path / "a" / "run"):
        pass


def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    (tmp_path / "below").mkdir()
    start("os.replace = lambda *_: os._exit(9); atomic_write(sys.argv[1], '')", tmp_path / "below/a.json").wait()
    kept = [tmp_path / "below/.hidden", tmp_path / "below/b.json", tmp_path / "c.tmp"]
    for path in kept:
        path.write_text("")
    assert len(list((tmp_path / "below").iterdir())) == 3
    sweep(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == kept


def test_a_lock_names_its_owner_and_is_free_when_that_is_killed_even_if_its_child_lives_on(tmp_path):
    code = "held = lock(Path(sys.argv[1])); held.__enter__(); os.fork() or print('has', flush=True); time.sleep(60)"
    owner = start(code, tmp_path, start_new_session=True)
    try:
        assert owner.stdout.readline() == "has\n"
        with pytest.raises(LockedError, match=f"{tmp_path} is locked by process {owner.pid} on "), lock(tmp_path):
            pass
        owner.kill()
        owner.wait()
        with lock(tmp_path):
            pass
    finally:
        os.killpg(owner.pid, 9)


def test_a_lock_is_free_after_its_with_block_and_who_waits_for_it_says_so_and_gets_it(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        raise ZeroDivisionError
    with lock(tmp_path):
        waiting = start("held = lock(Path(sys.argv[1]), wait=True); held.__enter__(); print('got it')", tmp_path)
        assert waiting.stdout.readline().startswith(f"waiting for {tmp_path}: process {os.getpid()} on ")
    assert waiting.communicate(timeout=30)[0] == "got it\n"


def test_a_lock_is_none_where_no_process_holds_it_whatever_its_file_says(tmp_path):
    """As in a folder that was copied from another machine."""
    (tmp_path / ".run.lock").write_text("process 1 on another-host")
    with lock(tmp_path / "run"):
        assert f"process {os.getpid()} on " in (tmp_path / ".run.lock").read_text()


def test_what_is_named_is_of_the_current_folder_and_what_is_not_of_the_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "clone/ccrepro/runtime").mkdir(parents=True)
    (tmp_path / "clone/notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "clone/notebooks")
    assert place("", "runs") == tmp_path / "clone/notebooks/runs"
    (tmp_path / "clone/ccrepro/runtime/storage.py").write_text("")
    assert place("", "runs") == tmp_path / "clone/runs"
    for named, found in (
        ("a/b", "clone/notebooks/a/b"),
        ("~/a", "home/a"),
        (tmp_path / "c", "c"),
        ("~x~", "clone/notebooks/~x~"),
    ):
        assert place(named, "runs").absolute() == tmp_path / found


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c.json").write_text("")
    assert listing(tmp_path, "*", "*", "*.json") == [tmp_path / "a/b/c.json"]
    assert listing(tmp_path / "none", "*") == listing(tmp_path / "a/b/c.json", "*") == []
    monkeypatch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        listing(tmp_path, "*")
