import os
import socket
import subprocess
import sys

import pytest

from ccrepro.errors import CheckpointError, LockedError
from ccrepro.files import atomic_write, lock, lock_one, sweep

CALLS = ("tempfile.mkstemp", "os.fdopen", "os.fsync", "os.chmod", "os.replace")


@pytest.mark.parametrize("call", CALLS)
def test_any_call_that_fails_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch, call):
    path = atomic_write(tmp_path / "a.txt", "old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(CheckpointError, match=r"^cannot write a\.txt: No space left on device .*3 bytes must fit"):
        atomic_write(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_in_a_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "a.txt", "old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write b\.txt"):
        atomic_write(tmp_path / "a" / "b.txt", "new")


def test_sweep_removes_what_the_dead_left_and_spares_the_living(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.json.{dead.pid}.x1y2.tmp", f".a.json.{os.getpid()}.x1y2.tmp", "a.json", ".hidden"]
    (tmp_path / "below").mkdir()
    for name in names:
        (tmp_path / "below" / name).write_text("")
    assert sweep(tmp_path) == 1
    assert sorted(path.name for path in (tmp_path / "below").iterdir()) == sorted(names[1:])


def test_sweep_spares_what_other_machines_may_be_writing(tmp_path, monkeypatch):
    """On a file system that they share; but not in a folder that is this process's alone."""
    path = tmp_path / "a.json"
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "node-7.cluster")
        there.setattr("os.getpid", lambda: 2**22 + 1)  # nobody's here
        there.setattr("os.replace", lambda *names: os._exit(9))
        if os.fork() == 0:
            atomic_write(path, "half")
    os.wait()
    (scrap,) = tmp_path.iterdir()
    assert scrap.name.startswith(f".a.json.{2**22 + 1}-node-7-cluster.")
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path, ours=True) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_locked_folder_names_its_owner_and_is_free_when_it_dies(tmp_path):
    code = f"""
from pathlib import Path
from ccrepro.files import lock
held = lock(Path({str(tmp_path)!r}))
input("has")
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout.read(3) == b"has"
    with pytest.raises(LockedError, match=f"^process {owner.pid} on .* is at work on this run") as caught:
        lock(tmp_path)
    assert caught.value.exit_code == 6
    owner.kill()
    owner.wait()
    lock(tmp_path).close()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unknown(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    with pytest.raises(LockedError, match=rf"^cannot lock run: Function not implemented \({tmp_path}/run\)\. "):
        lock(tmp_path / "run")


def test_a_child_that_outlives_a_killed_owner_does_not_keep_its_lock(tmp_path):
    code = f"""
import os, time
from pathlib import Path
from ccrepro.files import lock
held = lock(Path({str(tmp_path)!r}))
if os.fork():
    input()
print(os.getpid(), flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    with pytest.raises(LockedError, match=f"^process {owner.pid} "):
        lock(tmp_path)
    owner.kill()
    owner.wait()
    try:
        lock(tmp_path).close()
    finally:
        os.kill(child, 9)


def test_whichever_folder_comes_free_first_is_taken(tmp_path):
    held = {name: lock(tmp_path / name) for name in "abc"}
    said = []

    def waiting(owners):
        said.append(owners)
        held["b"].close()

    folder, file = lock_one([tmp_path / name for name in "abc"], waiting, seconds=0.01)
    file.close()
    assert folder == tmp_path / "b"
    assert said == [[f"process {os.getpid()} on {socket.gethostname()}"] * 3]
    assert lock_one([tmp_path / "d"])[0] == tmp_path / "d"
    for each in held.values():
        each.close()
