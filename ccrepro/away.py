"""Training on a machine that is lent for minutes: bare but for PyTorch and the scientific stack, and without network.

`pack` here, carry each load over, `work` there in pieces of some minutes, bring its loads back, `home` here. What is to
be done stands in a queue, `gpu.yaml`; what is done is seen from records, here as there. docs/gpu.md tells it in order.

Below ``runs/away``: ``send`` (loads to carry over), ``inbox`` (what arrived, on either side), ``back`` (loads to bring
home), ``results`` (what a bare machine measured).
"""

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading
import time
import traceback
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from ccrepro import bench, datasets, files, parcel, release, run, train
from ccrepro.config import Config
from ccrepro.datasets import tiles
from ccrepro.errors import ConfigError, DataError, Stopped
from ccrepro.evaluate import evaluate
from ccrepro.interrupt import StopSignal
from ccrepro.jobs import MEASURED, Item, Queue, config_of, is_done, planned
from ccrepro.machine import choose_device
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel

AWAY = "runs/away"
TRANSFER = 63.0  # MiB that go over in one transfer, the code included, which is sent each time
HOMEWARD = parcel.Limits(part=14 * 2**20, load=60 * 2**20, files=8)
LEAST_SHARE = 1 / 6  # of the minutes that are given, what is worth starting another cell
END_SHARE = 1 / 15  # of them, kept for scoring, saving and packing
CHECKPOINT_SECONDS = 60.0


# --- here, before


def pack(queue: Queue, data_dir: str = "", transfer: float = TRANSFER) -> list[Path]:
    """Write the loads that a bare machine needs for what the queue has left: data sets, and runs that go on there.

    Each load and the code together stay below ``transfer`` MiB.
    """
    root, loads, limits = files.ROOT / AWAY / "send", [], _outward(transfer)
    shutil.rmtree(root, ignore_errors=True)
    todo = [item for item in queue.items if item.settings and not is_done(config_of(item, queue, known_only=True))]
    facts = {"commit": files.commit(), "code_sha256": code_sha256()}
    for name in dict.fromkeys(item.settings["dataset"] for item in todo):
        if name != "digits":  # comes with scikit-learn
            data = datasets.load(name, data_dir)
            about = {**facts, "kind": "data", "dataset": name, "data_sha256": data.sha256}
            loads += parcel.pack(f"data-{name}", _tiles(data, data_dir), root / f"data-{name}", limits, about)
    begun = [config for config, _ in _begun(todo, queue)]
    sources, where = _bundle(begun)
    if sources or not loads:
        loads += parcel.pack("runs", sources, root / "runs", limits, {**facts, "kind": "runs", "files": where})
    return loads


def _outward(transfer: float) -> parcel.Limits:
    """What a load may take beside the files of the clone. Raises `ConfigError` where that is next to nothing."""
    listed = files.git("ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    paths = [files.ROOT / name for name in listed.split("\0") if name]
    code = sum(path.lstat().st_size for path in paths if path.exists() or path.is_symlink())
    room = int(transfer * 2**20) - code
    if room < 2**22:
        what, allowed = f"the code has {code / 2**20:.0f} MiB of {transfer:g}", "A load needs at least 4 MiB beside it"
        raise ConfigError(what, "away pack", allowed, "Raise --transfer, or take large files out of the clone")
    return parcel.Limits(part=2**21, load=room, files=10**6)


def _begun(items: Sequence[Item], queue: Queue) -> list[tuple[Config, bool]]:
    """The cells that have a folder here, and whether their weights are wanted."""
    cells = [item for item in items if item.settings]
    configs = [(config_of(item, queue, known_only=True), item.release) for item in cells]
    return [(config, wanted) for config, wanted in configs if config and run.run_folder(config).exists()]


def _tiles(data: datasets.ImageSet, data_dir: str) -> dict[str, Path]:
    """The tiles of a data set, which are made once: a minute for CIFAR-10."""
    folder = files.ROOT / AWAY / "tiles" / f"{data.name}-{data.sha256[:12]}"
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.partial")
        for name, blob in tiles.write(datasets.data_root(data_dir) / "packed" / data.name).items():
            files.atomic_write(scratch / name, blob)
        scratch.replace(folder)
    return {path.name: path for path in sorted(folder.iterdir())}


def code_sha256() -> str:
    """Of the package's source, so that a record made outside a clone can name its commit."""
    digest = hashlib.sha256()
    for path in sorted((files.ROOT / "ccrepro").rglob("*.py")):
        digest.update(f"{path.relative_to(files.ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _bundle(configs: Iterable[Config], weights: Sequence[Config] = ()) -> tuple[dict[str, bytes | Path], dict]:
    """The files of some runs, under flat names, and where each belongs below the clone. Small ones go into one zip."""
    small, sources, where = io.BytesIO(), {}, {}
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for config in configs:
            folder = run.run_folder(config)
            found = [
                p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".npz") and p.parent.name != "lock"
            ]
            for path in sorted(p for p in found if not p.name.startswith(("checkpoint-", "clustering"))):
                archive.write(path, path.relative_to(files.ROOT))
            if (folder / "clustering.npz").exists():
                blob = _without_features(folder / "clustering.npz")
                archive.writestr(str((folder / "clustering.npz").relative_to(files.ROOT)), blob)
            if config in weights and (folder / "half.safetensors").exists():
                where[f"weights{len(where)}.safetensors"] = folder / "half.safetensors"
            for path in _newest_checkpoint(folder):
                where[path.name] = path
        for path in sorted((files.ROOT / MEASURED).rglob("*.json")):
            archive.write(path, path.relative_to(files.ROOT))
        empty = not archive.namelist()
    sources |= {} if empty else {"small.zip": small.getvalue()}
    sources |= where
    return sources, {name: str(path.relative_to(files.ROOT)) for name, path in where.items()}


def _without_features(path: Path) -> bytes:
    """A run's clustering without the output of the instance head, which is 30 MB of CIFAR-10 and can be made anew."""
    buffer = io.BytesIO()
    with np.load(path, allow_pickle=False) as arrays:
        np.savez_compressed(buffer, **{name: arrays[name] for name in arrays.files if name != "features"})
    return buffer.getvalue()


def _newest_checkpoint(folder: Path) -> list[Path]:
    """Its two files, where a run has one and is not done."""
    pairs = [(path, path.with_suffix(".safetensors")) for path in sorted(folder.glob("checkpoint-*.json"))]
    whole = [pair for pair in pairs if pair[1].exists()]
    return list(whole[-1]) if whole and not (folder / "run.json").exists() else []


# --- there


def work(
    queue: Queue, loads: Sequence[str | Path], out: str | Path, minutes: float, data_dir: str = "", threads: int = 1
) -> list[Path]:
    """Take in what arrived; then do what the queue has left until the minutes are over. Returns the loads to bring
    home, the first of which also lies in ``out``; none while a load is still to come.

    A piece of training stops by itself at the end of a step and is saved; the next call goes on from there. What one
    cell runs into does not cost the others their minutes: it is raised once all is packed.
    """
    end = time.monotonic() + 60 * minutes
    waiting = [line for load in loads for line in take_in(Path(load), data_dir)]
    if waiting:
        print(*waiting, sep="\n", flush=True)
        return []
    _name_commit()
    failed = []
    for item in queue.items:
        left = end - time.monotonic() - END_SHARE * 60 * minutes
        if left < LEAST_SHARE * 60 * minutes:
            break
        try:
            if not _do(item, queue, left, data_dir, threads):
                break
        except Exception as error:
            traceback.print_exc()
            failed.append(error)
    packed = _pack_back(queue, Path(out))
    if failed:
        raise failed[0]
    return packed


def _do(item: Item, queue: Queue, seconds: float, data_dir: str, threads: int) -> bool:
    """A line of the queue, unless it is done; False where the time was over before it was."""
    if not item.settings:
        _bench(min(seconds, 60 * item.minutes))
        return True
    config = config_of(item, queue)
    return is_done(config) or piece(config, item, seconds, data_dir, threads)


def take_in(load: Path, data_dir: str = "") -> list[str]:
    """Check a load and put what is whole where it belongs. Returns a line on what its parcel lacks, if it does."""
    place, manifest = parcel.receive(load, files.ROOT / AWAY / "inbox")
    facts, absent = manifest["facts"], parcel.missing(place, manifest)
    files.atomic_write(place / parcel.MANIFEST, json.dumps(manifest))
    if facts["kind"] == "runs":
        _unfold(place, facts["files"])
    elif not absent:
        packed = datasets.data_root(data_dir) / "packed" / facts["dataset"]
        if datasets.pack.read(packed) is None:
            began, found = time.monotonic(), tiles.read(place, packed)
            if found.sha256 != facts["data_sha256"]:
                what = f"{facts['dataset']} came out as {found.sha256}"
                raise DataError(what, str(packed), f"It must be {facts['data_sha256']}", "Send it again")
            print(f"{facts['dataset']}: {len(found.images):,} images, {time.monotonic() - began:.1f} s, {found.sha256}")
    return [f"{manifest['name']}: load {', '.join(map(str, absent))} of {manifest['loads']} to come"] if absent else []


def _unfold(place: Path, where: dict[str, str]) -> None:
    """Put the files of runs below this clone. Raises `DataError` for a place that is not below ``runs``."""
    if (place / "small.zip").exists():
        with zipfile.ZipFile(place / "small.zip") as archive:
            for name in archive.namelist():
                files.atomic_write(_below_runs(name), archive.read(name))
    for name, path in where.items():
        if (place / name).exists():
            files.atomic_write(_below_runs(path), (place / name).read_bytes())


def _below_runs(name: str) -> Path:
    path = (files.ROOT / name).resolve()
    if not path.is_relative_to((files.ROOT / "runs").resolve()):
        raise DataError(f"{name!r} is no place for a run", "parcel", "Files go below runs/", "Do not trust this parcel")
    return path


def _name_commit() -> None:
    """Let records name the commit that was sent, where the code here is that commit's."""
    for path in sorted((files.ROOT / AWAY / "inbox").glob(f"*/{parcel.MANIFEST}"), key=lambda p: p.stat().st_mtime):
        facts = json.loads(path.read_text())["facts"]
        if facts.get("code_sha256") == code_sha256():
            os.environ["CCREPRO_COMMIT"] = facts["commit"]


def _bench(seconds: float) -> None:
    """Measure this machine, unless that was done."""
    name = f"bench/{bench.file_name(bench.machine(choose_device(Config())))}.json"
    folders = [files.ROOT / MEASURED, files.ROOT / "results"]
    if not any((folder / name).exists() for folder in folders):
        files.atomic_write(folders[0] / name, json.dumps(bench.quick(seconds), indent=1) + "\n")


def piece(config: Config, item: Item, seconds: float, data_dir: str = "", threads: int = 1) -> bool:
    """Train a cell for at most so many seconds, from its newest checkpoint on; whether it is done, and scored."""
    began = time.monotonic()
    config = dataclasses.replace(config, threads=threads, checkpoint_seconds=CHECKPOINT_SECONDS)
    data = datasets.sample(datasets.load(config.dataset, data_dir), config.sample, config.seed)
    this = run.Run(config, data, results_dir=MEASURED)
    try:
        with _alarm(seconds):
            model, history = train.train(config, data, this.report, this.checkpoints)
    except Stopped as stop:
        where = re.search(r"\((.*?)\)", str(stop))[1]
        _log_piece(this, config, began, f"stopped in {where}")
        return False
    more = {"schedule": {"name": item.schedule, **planned().get(item.schedule, {})}} if item.schedule else {}
    if item.release:
        more["half_precision"] = _halve(config, data, model, this.folder)
    _log_piece(this, config, began, "done")
    this.finish(model, history, pieces=_pieces(this.folder), **more)
    return True


def _halve(config: Config, data: datasets.ImageSet, model: ContrastiveClusteringModel, folder: Path) -> dict[str, Any]:
    """Keep the weights as they are released, and say what the rounding does to the clusters."""
    tensors, rounded = release.halved(model), copy.deepcopy(model)
    files.atomic_write(folder / "half.safetensors", save(tensors))
    rounded.load_state_dict(tensors)
    before, after = (evaluate(config, data, each).labels_pred for each in (model, rounded))
    return {"same": float((before == after).mean()), "scores": scores(data.labels, after)}


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Send this process SIGTERM after so many seconds, unless the block ends before: training saves and stops then.

    A signal that comes before training listens is only noted; so there is a second one.
    """
    over = threading.Event()

    def ring() -> None:
        for wait in (seconds, 20):
            if over.wait(wait):
                return
            os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal():
        threading.Thread(target=ring, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def _log_piece(this: run.Run, config: Config, began: float, end: str) -> None:
    """One line for each piece, kept with the run: on what, for how long in all, and how it ended."""
    where = bench.machine(choose_device(config))
    line = {"seconds": round(time.monotonic() - began, 1), "hardware": where, "end": end}
    lines = [*_pieces(this.folder), line]
    files.atomic_write(this.folder / "pieces.jsonl", "".join(f"{json.dumps(each)}\n" for each in lines))
    print(f"{config.cell}  piece {len(lines)}: {line['seconds']} s, {end}", flush=True)


def _pieces(folder: Path) -> list[dict[str, Any]]:
    path = folder / "pieces.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _pack_back(queue: Queue, out: Path) -> list[Path]:
    """Cut what the queue's runs gave into loads, and put the first one into ``out``."""
    begun = _begun(queue.items, queue)
    sources, where = _bundle([config for config, _ in begun], [config for config, wanted in begun if wanted])
    names = {run.run_name(config): wanted for config, wanted in begun}
    facts = {"kind": "runs", "files": where, "runs": names}
    loads = parcel.pack("back", sources, files.ROOT / AWAY / "back", HOMEWARD, facts)
    fetch(1, out)
    return loads


def fetch(number: int | str, out: str | Path) -> Path:
    """Put one of the loads of the last piece into ``out``. Raises `ConfigError` where there is no such load."""
    load = files.ROOT / AWAY / "back" / str(number)
    if not number or not (load / parcel.MANIFEST).exists():
        known = ", ".join(sorted(path.name for path in load.parent.glob("*"))) or "none"
        raise ConfigError(f"no load {number!s:.20}", str(load.parent), f"There are: {known}", "Give one of these")
    shutil.copytree(load, out, dirs_exist_ok=True)
    return load


# --- here, after


def home(folders: Sequence[str | Path], data_dir: str = "", results_dir: str | Path = "results") -> list[str]:
    """Take in loads that came back: put runs below ``runs``, finish the records of those that are done, publish these,
    release the weights that are wanted; bench and schedules too. Returns what was done, a line each."""
    told = []
    for folder in map(Path, folders):
        told += take_in(folder, data_dir)
        manifest = parcel.read_manifest(folder)
        for name, wanted in manifest["facts"].get("runs", {}).items():
            told += _publish(files.ROOT / "runs" / name, wanted, data_dir, results_dir)
    back = files.ROOT / MEASURED
    for path in sorted(back.glob("bench/*.json")):
        told.append(f"bench -> {bench.save(json.loads(path.read_text()), results_dir)}")
    if (back / "schedules.json").exists():
        text = (back / "schedules.json").read_text()
        told.append(f"schedules -> {files.atomic_write(files.ROOT / results_dir / 'gpu/schedules.json', text)}")
    return list(dict.fromkeys(told))


def _publish(folder: Path, wanted: bool, data_dir: str, results_dir: str | Path) -> list[str]:
    """Complete and publish a run that is done, and release its weights once they are there; else say how far it is."""
    if not (folder / "run.json").exists():
        last = _newest_checkpoint(folder)
        return [f"{folder.name}: goes on from {last[0].stem}" if last else f"{folder.name}: no whole checkpoint yet"]
    for path in folder.glob("checkpoint-*"):  # of earlier pieces
        path.unlink()
    record = json.loads((folder / "run.json").read_text())
    config = Config(**record["config"])
    data = datasets.sample(datasets.load(config.dataset, data_dir), config.sample, config.seed)
    record = run.complete(record, folder, data)
    files.atomic_write(folder / "run.json", run.as_text(record))
    told = [f"{folder.name}: {_scores(record)} -> {run.publish(record, results_dir)}"]
    if wanted and (folder / "half.safetensors").exists():
        tensors = load_file(folder / "half.safetensors")
        placed = release.release(record, tensors, files.ROOT / results_dir / "models" / release.name(record))
        files.atomic_write(folder / "model.safetensors", (folder / "half.safetensors").read_bytes())
        told.append(f"{folder.name}: weights -> {placed}")
    return told


def _scores(record: dict[str, Any]) -> str:
    return ", ".join(f"{name.upper()} {value:.4f}" for name, value in record["scores"].items())
