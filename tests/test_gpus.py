"""Claims of GPUs, by real processes at once; the GPUs are made up."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ccrepro import gpus
from ccrepro.config import recipe

# Claim, say so, hold until told to end, say that it is over. A line is written at once or not at all.
RUN = """
import os, sys, time
from ccrepro import gpus
from ccrepro.config import recipe
def note(what):
    line = f'{{"pid": {os.getpid()}, "what": "%s", "gpu": "%s", "at": {time.monotonic()}}}\\n' % (what, gpu)
    os.write(log, line.encode())
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
gpu = gpus.claim(recipe("digits"))
assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
note("has")
sys.stdin.readline()
note("leaves")
"""
HANGS = 120  # seconds after which a process that should have ended is given up


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Environment of a machine with a folder for locks and no GPU; `nvidia_smi` below gives it some."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", gpus.CLAIMED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def nvidia_smi(machine, n):
    lines = "".join(f"echo 'GPU {i}: made up (UUID: GPU-{i})'\n" for i in range(n))
    path = machine / "bin/nvidia-smi"
    path.write_text(f'#!/bin/sh\n[ "$1" = --list-gpus ] || exit 1\n{lines}')
    path.chmod(0o755)


@pytest.fixture
def start(machine):
    """Start a run; it ends when its input does, so with this process at the latest."""
    command = [sys.executable, "-c", RUN, str(machine / "log")]
    return lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def events(machine):
    path = machine / "log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition):
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_never_two_runs_on_one_gpu_and_all_runs_come_to_an_end(machine, start):
    nvidia_smi(machine, 2)
    runs = {run.pid: run for run in (start() for _ in range(7))}
    wait_for(lambda: len(events(machine)) == 2)
    working = {event["pid"] for event in events(machine)}
    said = [run.stdout.readline() for pid, run in runs.items() if pid not in working]  # nobody has left yet
    owner = rf"(process ({'|'.join(map(str, runs))}) on .*|another process)"  # who has not written its name yet
    assert all(re.fullmatch(rf"demo/digits/cc-seed0  waits for a GPU; taken: 0 \({owner}\), 1 \({owner}\)\n", text)
               for text in said), said  # fmt: skip
    for left in range(7):
        has = [event["pid"] for event in events(machine) if event["what"] == "has"]
        runs[has[left]].communicate("\n", timeout=HANGS)
        wait_for(lambda left=left: sum(e["what"] == "has" for e in events(machine)) == min(left + 3, 7))
    assert [run.returncode for run in runs.values()] == [0] * 7
    on, most = {}, []
    for event in sorted(events(machine), key=lambda e: e["at"]):
        if event["what"] == "has":
            assert on.setdefault(event["gpu"], event["pid"]) == event["pid"]
        else:
            assert on.pop(event["gpu"]) == event["pid"]
        most.append(len(on))
    assert max(most) == 2
    assert {e["gpu"] for e in events(machine)} == {"0", "1"}


def test_the_gpu_of_a_killed_run_is_free_again(machine, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a")
    first = start()
    wait_for(lambda: events(machine))
    second = start()
    assert second.stdout.readline().endswith(f"taken: GPU-5a (process {first.pid} on {os.uname().nodename})\n")
    assert len(events(machine)) == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    second.communicate("\n", timeout=HANGS)
    assert second.returncode == 0
    assert [e["pid"] for e in events(machine)] == [first.pid, second.pid, second.pid]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0", "1", "2"]), ("", []), ("1", ["1"]), ("2, 0", ["2", "0"]), ("0,-1,1", ["0"]), ("NoDevFiles", []),
        ("GPU-8932f937,MIG-GPU-8932f937/1/0", ["GPU-8932f937", "MIG-GPU-8932f937/1/0"]),
    ],
)  # fmt: skip
def test_the_users_choice_of_gpus_is_kept(machine, monkeypatch, visible, found):
    nvidia_smi(machine, 3)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.ids() == found


@pytest.fixture
def no_claim_stays(monkeypatch):
    monkeypatch.setattr(gpus, "_held", [])
    yield
    for lock in gpus._held:
        lock.close()


@pytest.mark.usefixtures("no_claim_stays")
def test_one_claim_per_process_and_its_children(machine, monkeypatch):
    nvidia_smi(machine, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert gpus.claim(recipe("digits")) == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert gpus.claim(recipe("digits")) is None, "it has one"
    child = "from ccrepro import gpus; from ccrepro.config import recipe; print(gpus.claim(recipe('digits')))"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=HANGS)
    assert done.stdout == "None\n", "a child uses its parent's and does not wait for it"


@pytest.mark.usefixtures("no_claim_stays")
def test_nothing_is_claimed_where_there_is_nothing_to_claim(machine, monkeypatch):
    assert gpus.claim(recipe("digits")) is None  # no nvidia-smi
    nvidia_smi(machine, 2)
    assert gpus.claim(recipe("digits", device="cpu")) is None
    assert gpus.claim(recipe("digits", variant="kmeans-pixels")) is None
    assert gpus.claim(recipe("digits", devices=2)) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.claim(recipe("digits")) is None
    assert gpus._held == []
    (machine / "bin/nvidia-smi").write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.claim(recipe("digits")) is None


@pytest.mark.usefixtures("no_claim_stays")
def test_equal_ids_of_two_slurm_jobs_are_two_gpus(machine, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    other = start()
    wait_for(lambda: events(machine))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert gpus.claim(recipe("digits")) == "0"
    other.kill()
    other.wait()
