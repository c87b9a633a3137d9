"""Kill training, a training anew, and `ccrepro reproduce` at random moments, and start them again: is anything lost?

``python tools/torture.py [KILLS]`` prints counts of what happened. Ten kills of each take some ten minutes.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ccrepro.recipes import recipe
from ccrepro.runs.finished import run_folder

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
REPRODUCE = "-m ccrepro reproduce --seeds 0 --variants kmeans-pixels nmf-pixels"
# Training with a checkpoint after each step, in place of one a minute.
TRAIN = """import sys
from ccrepro import cli
from ccrepro.runs.checkpoints import Checkpoints
Checkpoints.__init__.__defaults__ = (0.0,)
sys.exit(cli.main(["train", *sys.argv[1:]]))"""


def kill_training(kills: int, rng: random.Random) -> dict[str, int]:
    """Four kills of a run at most; each run is compared with one that was never interrupted."""
    counts = {"kills": 0, "runs": 0, "identical": 0, "checkpoints not gone on from": 0}
    with tempfile.TemporaryDirectory() as folder:
        whole, _, _ = trained(Path(folder, "whole"), 0, rng)
        while counts["kills"] < kills:
            again, killed, lost = trained(Path(folder, str(counts["runs"])), min(4, kills - counts["kills"]), rng)
            counts["kills"] += killed
            counts["runs"] += 1
            counts["identical"] += again == whole
            counts["checkpoints not gone on from"] += lost
    return counts


def trained(folder: Path, kills: int, rng: random.Random) -> tuple[dict[str, Any], int, int]:
    """What a run ends with, the kills it went through, and how often a checkpoint was there and not gone on from."""
    run = run_folder(recipe("digits", "demo", epochs=3), folder)
    command = [sys.executable, "-c", TRAIN, "digits", "--epochs", "3", "--runs-dir", str(folder)]
    killed, lost = 0, 0
    while not (run / "run.json").exists():
        before = newest(run)
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        while killed < kills and process.poll() is None:
            if newest(run) > before:
                time.sleep(rng.uniform(0, 0.5))
                killed += process.poll() is None
                process.kill()
                break
            time.sleep(0.01)
        printed = process.communicate()[0]
        lost += bool(before) and "resumed after" not in printed
        if process.returncode not in (-signal.SIGKILL, 0):
            raise SystemExit(f"training ended with {process.returncode}: {printed}")
    log = [{**json.loads(line), "seconds": 0} for line in (run / "log.jsonl").read_text().splitlines()]
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    return {"record": lasting(run / "run.json"), "log": log, "weights": weights}, killed, lost


def lasting(path: Path) -> dict[str, Any]:
    """A record without what may differ."""
    record = json.loads(path.read_text())
    record["history"].pop("seconds", None)
    return {name: value for name, value in record.items() if name not in ("seconds", "resumed", "commit", "hardware")}


def newest(run: Path) -> str:
    return max((path.name for path in run.glob("checkpoint-*")), default="")


def restart(trials: int, rng: random.Random) -> dict[str, int]:
    """Train a finished run anew, each time killed at some moment, or with files that cannot grow past some length, as
    on a full disk. Each time one whole run must be there, and the next call must find it."""
    counts = {"killed": 0, "no space": 0, "made anew": 0, "lost": 0}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TRAIN, "digits", "--epochs", "1", "--runs-dir", folder]
        first = weights(said(command))
        for _ in range(trials):
            full = rng.random() < 0.5
            limit = int(10 ** rng.uniform(2, 6.5)) if full else resource.RLIM_INFINITY
            process = subprocess.Popen(
                [*command, "--restart"], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
            )  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if full else rng.uniform(5, 20))
            process.kill()
            counts[
                "killed" if process.wait() == -signal.SIGKILL else "no space" if process.wait() else "made anew"
            ] += 1
            printed = said(command)
            counts["lost"] += "Trained before" not in printed or weights(printed) != first
    return counts


def said(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def weights(printed: str) -> str:
    """The SHA-256 of the weights of a run whose training has printed this."""
    return hashlib.sha256(
        Path(printed.split("-> ")[-1].strip()).with_name("model.safetensors").read_bytes()
    ).hexdigest()


def kill_reproduce(kills: int, rng: random.Random) -> dict[str, Any]:
    """Each time look at every finished file; in the end compare records, tables and figures with undisturbed ones."""
    counts = {"kills": 0, "files looked at": 0, "half-written": 0}
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        for copy, name in itertools.product((alone, killed), ("ccrepro", "notebooks")):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        began = time.monotonic()
        reproduce(alone).wait()
        seconds = time.monotonic() - began
        while counts["kills"] < kills:
            process = reproduce(killed)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.05, 0.95) * seconds)
            if process.poll() is not None:  # it was done: once more from the start
                for name in ("runs", "results"):
                    shutil.rmtree(killed / name)
                continue
            counts["kills"] += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(3)  # kernels have a session of their own, and notice after a second that they are alone
            found = made(killed)
            counts["files looked at"] += len(found)
            counts["half-written"] += sum(not whole(path) for path in found)
        assert reproduce(killed).wait() == 0
        once, again = contents(alone), contents(killed)
        different = sorted(name for name in once.keys() | again.keys() if once.get(name) != again.get(name))
    return {**counts, "files compared": len(once.keys() | again.keys()), "that differ": different}


def reproduce(copy: Path) -> subprocess.Popen:
    command = [sys.executable, *REPRODUCE.split()]
    log, environment = copy.with_suffix(".log").open("a"), {**ENVIRONMENT, "PYTHONPATH": str(copy)}
    return subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log, start_new_session=True)


def made(copy: Path) -> list[Path]:
    """Finished files; what is being written bears a name of its own, and is swept at the next start."""
    found = [*(copy / "runs").rglob("run.json"), *(copy / "results").rglob("*.*")]
    return [p for p in found if p.is_file() and p.suffix not in (".tmp", ".lock")]


def contents(copy: Path) -> dict[str, Any]:
    """Tables and figures byte by byte, and records; the notebooks tell how many seconds the runs took."""
    files = {str(p.relative_to(copy)): p for p in made(copy) if p.suffix != ".ipynb"}
    return {name: lasting(p) if p.suffix == ".json" else p.read_bytes() for name, p in files.items()}


def whole(path: Path) -> bool:
    """Whether a file is what its name says, to its end."""
    try:
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix in (".json", ".ipynb"):
            json.loads(path.read_text())
        return path.suffix not in (".md", ".csv") or path.read_bytes().endswith(b"\n")
    except Exception:
        return False


if __name__ == "__main__":
    for torture in (kill_training, restart, kill_reproduce):
        print(torture.__name__, torture(int(sys.argv[1]) if len(sys.argv) > 1 else 10, random.Random(0)), flush=True)
