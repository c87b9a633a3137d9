"""The campaign of `make torture`: kill, damage, mislead and attack, and count what is lost. A tenth of it is a test.

Only counts that were measured are written, to ``results/reliability.md`` and ``.json``.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bad_inputs
import hostile_files
import nbformat
import threadpoolctl
import torch
from PIL import Image

from ccrepro import cli, files
from ccrepro.checkpoint import Checkpoints
from ccrepro.config import recipe
from ccrepro.run import run_folder

ROOT = Path(__file__).parents[1]
UNTOLD = ("seconds", "resumed", "commit", "hardware", "history")  # of a record: what may differ, or is compared apart
# Where pages tell how long a run took, which differs from one reproduction to the next: the sentence on what it ran
# on, and the column of seconds, before that of energy.
TOLD_SECONDS = re.compile(
    rb"(?<=, )([\d,]+ to [\d,]+ s each|[\d,]+ s)(?=[;,] )|[\d,]+ *(\||</td>\s*<td[^>]*>) *(?=not measured)"
)


def silenced(function: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns, and the lines it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = function()
    return result, printed.getvalue().splitlines()


def kill_training(kills: int, rng: random.Random, **settings: Any) -> dict[str, int]:
    """SIGKILL a training run at random moments and start it again with the same command, until all kills are used.

    Each resumed run is compared with one that was never interrupted: history, weights, scores, clusters, maps.
    """
    per_run = 4
    counts = {"kills": 0, "runs": 0, "runs identical": 0, "checkpoints lost": 0}
    with tempfile.TemporaryDirectory() as folder:
        whole = _trained(Path(folder, "whole"), 0, rng, settings)[0]
        while counts["kills"] < kills:
            again, kills_here, lost = _trained(
                Path(folder, str(counts["runs"])), min(per_run, kills - counts["kills"]), rng, settings
            )
            counts["kills"] += kills_here
            counts["checkpoints lost"] += lost
            counts["runs"] += 1
            counts["runs identical"] += again == whole
            if not kills_here:
                break
    return counts


def _trained(folder: Path, kills: int, rng: random.Random, settings: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """What a run ends with, the kills it went through, and how often a checkpoint was there and not gone on from."""
    command = [sys.executable, "-m", "ccrepro", "train", "digits", "--checkpoint-seconds", "0"]
    command += [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command += ["--runs-dir", str(folder), "--results-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    cell = run_folder(recipe("digits", **settings), folder)
    done, lost = 0, 0
    if not kills:  # this process has imported all that it takes
        with threadpoolctl.threadpool_limits(1):
            silenced(lambda: cli.main(command[3:]))
    while not (cell / "run.json").exists():
        had = any(cell.glob("checkpoint-*.json"))
        before = len(list(cell.glob("checkpoint-*.json"))) and max(p.name for p in cell.glob("checkpoint-*.json"))
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if done < kills and _wait_for_another(cell, before, process):
            time.sleep(rng.uniform(0, 0.5))
            done += process.poll() is None
            process.kill()
        printed = process.communicate()[0]
        lost += had and "resumed after" not in printed
        if process.returncode not in (-signal.SIGKILL, 0):
            raise RuntimeError(f"training ended with {process.returncode}: {printed}")
    record = json.loads((cell / "run.json").read_text())
    history = {name: values for name, values in record["history"].items() if name != "seconds"}
    weights = hashlib.sha256((cell / "model.safetensors").read_bytes()).hexdigest()
    log = [json.loads(line) for line in (cell / "log.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in log]
    kept = {name: value for name, value in record.items() if name not in UNTOLD}
    return {"history": history, "weights": weights, "log": lines, "record": kept}, done, lost


def _wait_for_another(cell: Path, before: Any, process: subprocess.Popen) -> bool:
    """Until a newer checkpoint than ``before`` is there; False where the run ends first."""
    while process.poll() is None:
        names = [path.name for path in cell.glob("checkpoint-*.json")]
        if names and max(names) != before:
            return True
        time.sleep(0.01)
    return False


def kill_reproduce(kills: int, rng: random.Random) -> dict[str, Any]:
    """SIGKILL `make reproduce` and all it started, at random moments; look at every file under results/ each time;
    in the end, compare them byte by byte with those of a reproduction that was left alone."""
    counts = {"kills": 0, "files looked at": 0, "files half-written": 0, "reproductions identical": 0}
    counts |= {"files compared": 0, "files that differ": []}
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = (_clone(Path(folder, name)) for name in ("alone", "killed"))
        began = time.monotonic()
        _reproduce(alone).wait()
        seconds = time.monotonic() - began
        while counts["kills"] < kills:
            process = _reproduce(killed)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.05, 0.95) * seconds)
            if process.poll() is None:
                counts["kills"] += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                _kill_kernels(killed)
            for path in _results(killed):
                counts["files looked at"] += 1
                counts["files half-written"] += not _whole(path)
        if _reproduce(killed).wait() == 0:
            once, again = _digests(alone), _digests(killed)
            counts["files compared"] = len(once.keys() | again.keys())
            counts["files that differ"] = sorted(n for n in once.keys() | again.keys() if once.get(n) != again.get(n))
            counts["reproductions identical"] = int(once == again)
    return counts


def _clone(folder: Path) -> Path:
    """A clone without results of its two cells, with this environment."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    (folder / ".venv/installed").touch()  # newer than the clone's pyproject.toml, so nothing is installed again
    for name in ("kmeans-pixels", "nmf-pixels"):
        (folder / f"results/runs/demo/digits/{name}-seed0.json").unlink()
    return folder


def _reproduce(folder: Path) -> subprocess.Popen:
    command = ["make", "reproduce", "VARIANTS=kmeans-pixels nmf-pixels", "SEEDS=0"]
    command += ["REPORTS=03_main_results 04_augmentation"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    output = (folder.parent / f"{folder.name}.log").open("a")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True)


def _kill_kernels(folder: Path) -> None:
    """Kernels have a session of their own, and outlive their notebook for a moment."""
    import psutil

    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder) and "ipykernel_launcher" in (process.info["cmdline"] or []):
            process.kill()


def _results(folder: Path) -> list[Path]:
    """Finished files; what is being written bears a name of its own, and is swept at the next start."""
    found = (p for p in [*(folder / "results").rglob("*"), *folder.glob("README*")] if p.is_file())
    return sorted(p for p in found if not p.name.endswith(".tmp"))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each finished file, the seconds that runs took left out."""
    found = {}
    for path in _results(folder):
        content = path.read_bytes()
        if "runs" in path.parts[-4:]:
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "seconds"}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(TOLD_SECONDS.sub(b"", content)).hexdigest()
    return found


def _whole(path: Path) -> bool:
    """Whether a file is what its name says, to its end."""
    content = path.read_bytes()
    try:
        match path.suffix:
            case ".json":
                json.loads(content)
            case ".ipynb":
                nbformat.validate(nbformat.reads(content.decode(), as_version=4))
            case ".png":
                Image.open(path).load()
            case ".svg":
                xml.etree.ElementTree.fromstring(content)
            case ".html":
                return content.rstrip().endswith(b"</html>")
            case _:
                return content.endswith(b"\n")
    except Exception:
        return False
    return True


def corrupt(truncations: int, flips: int, rng: random.Random) -> dict[str, int]:
    """Damage the newest checkpoint in all these ways, in either of its files, and once empty it: is it noticed, is the
    one before it used, are both named?"""
    counts = {"corruptions": 0, "detected": 0, "previous used": 0, "both named": 0}
    with tempfile.TemporaryDirectory() as folder:
        saved = Checkpoints(folder)
        for step in (1, 2):
            saved.save(str(step), {"w": torch.full((40, 50), float(step))}, {"epoch": step, "loss": [0.1, 1e-7, 3.0]})
        newest = sorted(Path(folder).glob("checkpoint-2.*"))
        sound = {path: path.read_bytes() for path in newest}
        for kind in ["empty", *["cut"] * truncations, *["flip"] * flips]:
            path = rng.choice(newest)
            path.write_bytes(_damaged(sound[path], kind, rng))
            found, lines = silenced(Checkpoints(folder).load)
            counts["corruptions"] += 1
            counts["detected"] += len(lines) == 1 and "damaged" in lines[0]
            counts["previous used"] += found[0].name == "checkpoint-1.safetensors" and bool((found[1]["w"] == 1).all())
            counts["both named"] += bool(lines) and path.name in lines[0] and "checkpoint-1.safetensors" in lines[0]
            path.write_bytes(sound[path])
    return counts


def _damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    if kind == "empty":
        return b""
    if kind == "cut":
        return content[: rng.randrange(1, len(content))]
    bit = rng.randrange(8 * len(content))
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def mislead() -> dict[str, Any]:
    """The forty bad inputs: is the exit code the promised one, and is what is wrong said in one line?"""
    counts = {"bad inputs": 0, "clear": 0, "unclear": []}
    before = _tree(ROOT / "results")
    for case in bad_inputs.CASES:
        with tempfile.TemporaryDirectory() as folder:
            problem = bad_inputs.try_out(case, Path(folder))
        counts["bad inputs"] += 1
        counts["clear"] += problem is None
        if problem:
            counts["unclear"].append(f"{case.number} {case.what}: {problem}")
    counts["files of results changed"] = sum(_tree(ROOT / "results").get(name) != d for name, d in before.items())
    return counts


def attack() -> dict[str, Any]:
    """Files that try to run code or to leave their folder: is each refused, and did nothing happen?"""
    counts = {"hostile files": 0, "refused": 0, "had an effect": 0}
    for name in hostile_files.FILES:
        with tempfile.TemporaryDirectory() as folder:
            refused, harmed = hostile_files.try_out(name, Path(folder))
        counts["hostile files"] += 1
        counts["refused"] += refused
        counts["had an effect"] += harmed
    return counts


def _tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


PARTS: dict[str, Callable[[float, random.Random], dict[str, Any]]] = {
    "training killed": lambda share, rng: kill_training(_part(20, share), rng, epochs=2),
    "reproduction killed": lambda share, rng: kill_reproduce(_part(20, share), rng),
    "checkpoints damaged": lambda share, rng: corrupt(_part(20, share), _part(300, share), rng),
    "bad inputs": lambda share, rng: mislead(),
    "hostile files": lambda share, rng: attack(),
}


def _part(n: int, share: float) -> int:
    return max(1, round(n * share))


def campaign(share: float = 1.0, names: Sequence[str] = tuple(PARTS), seed: int = 0) -> None:
    """The named parts, or a share of them; each is written as soon as it is measured, with the commit it ran on."""
    path = ROOT / "results/reliability.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        began = time.monotonic()
        counts = PARTS[name](share, random.Random(seed))
        minutes = round((time.monotonic() - began) / 60, 1)
        found[name] = {**counts, "commit": files.commit(), "seed": seed, "minutes": minutes}
        print(f"{name}: {found[name]}", flush=True)
        files.atomic_write(path, json.dumps(found, indent=1) + "\n")
        files.atomic_write(path.with_suffix(".md"), as_markdown(found))


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    lines = ["# Reliability, measured", "", "Written by `make torture`; every number is a count of what happened.", ""]
    lines += ["| what was done | counts | minutes | commit |", "|---|---|---|---|"]
    for name in (name for name in PARTS if name in found):
        counts = {key: value for key, value in found[name].items() if key not in ("commit", "seed", "minutes")}
        shown = "; ".join(f"{key}: {len(v) if isinstance(v, list) else v}" for key, v in counts.items())
        lines.append(f"| {name} | {shown} | {found[name].get('minutes', '–')} | {found[name]['commit'][:10]} |")
    unclear = found.get("bad inputs", {}).get("unclear", [])
    return "\n".join([*lines, *(["", *(f"- unclear: {text}" for text in unclear)] if unclear else [])]) + "\n"


if __name__ == "__main__":
    campaign(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0, sys.argv[2:] or tuple(PARTS))
