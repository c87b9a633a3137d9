"""Train on a packed data set that is larger than the memory a process may take.

``python tests/large.py --images 60000 --side 224 --limit 1536`` makes a set of 9 GB, trains on it in a process that may
not allocate more than 1,536 MB, and again with everything in memory, without a limit; losses and scores must be the
same. The limit is RLIMIT_DATA: all memory that is private and can be written to, so heap, stacks and copies, but not
files that are mapped to be read, whose pages the kernel takes back when it needs them.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np

MB = 2**20


def status(name: str) -> int:
    """A line of this process's status, in bytes: VmData is what RLIMIT_DATA counts, RssAnon what of it is in use."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


class Peak(threading.Thread):
    """The largest VmData and RssAnon while the block lasts, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen = {"VmData": 0, "RssAnon": 0}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.005):
            self.seen = {name: max(value, status(name)) for name, value in self.seen.items()}

    def __enter__(self) -> dict[str, int]:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


def make(folder: Path, n: int, side: int) -> None:
    """Pack ``n`` noisy pictures of three kinds, a few at a time."""
    from ccrepro.datasets import pack
    from ccrepro.datasets.sources import Arrays, Bundle

    folder.parent.mkdir(parents=True)
    raw = folder.with_name("raw.npy")
    images = np.lib.format.open_memmap(raw, "w+", np.uint8, (n, 3, side, side))
    row, column = np.mgrid[:side, :side] * 8 // side
    kinds = np.stack([row % 4 < 2, column % 4 < 2, (row - 3.5) ** 2 + (column - 3.5) ** 2 < 8])
    kinds = np.where(kinds, 180, 60).astype(np.uint8)
    labels, rng = np.arange(n) % 3, np.random.default_rng(0)
    for start in range(0, n, 64):
        some = kinds[labels[start : start + 64]][:, None]
        images[start : start + 64] = some + rng.integers(0, 60, (len(some), 3, side, side), np.uint8)
    images.flush()
    pack.write(folder, Bundle([raw], lambda: Arrays(images, labels, ["rows", "columns", "disc"])))
    raw.unlink()


def run(folder: Path, limit: int | None, allowance: int | None, quick: bool) -> dict[str, object]:
    """Load, train one epoch and evaluate, mapped under a limit in bytes, or with all images in memory.

    allowance: the limit, counted from what the process has when it has trained on a few images, before it loads the
    set. quick: no record is made, which needs a t-SNE.
    """
    if not quick:
        import openTSNE  # noqa: F401  what a run imports counts before it, as code

    from ccrepro.datasets import ImageSet, pack

    once(ImageSet("own", *(x[:160] if isinstance(x, np.ndarray) else x for x in pack.read(folder))), None)
    before = {name: status(name) for name in ("VmData", "RssAnon")}
    limit = before["VmData"] + allowance if allowance else limit
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    began = time.monotonic()
    with Peak() as peak:
        data = ImageSet("own", *pack.read(folder))
        if not limit:
            data = dataclasses.replace(data, images=np.array(data.images))
        elif not _refused(data.images):
            raise SystemExit("the limit does not bind: all images could be copied into memory")
        found = once(data, None if quick else folder.parent / f"runs-{limit}")
    return {
        "set": data.images.nbytes,
        "limit": limit,
        "before": before,
        "peak": peak.seen,
        "seconds": time.monotonic() - began,
        **found,
    }


def once(data: object, place: Path | None) -> dict[str, object]:
    """One epoch and what comes out: the losses, the scores; with a ``place`` as a whole run that is recorded there.

    Without one, a quarter of the usual number of images is at work at once in evaluation: a small set is large then.
    """
    from ccrepro.config import own_recipe
    from ccrepro.evaluate import evaluate, score
    from ccrepro.run import Run
    from ccrepro.train import train

    config = own_recipe(
        3, len(data.images), data.images.shape[1:], backbone="small", stem="cifar", image_size=8, batch_size=32,
        epochs=1, device="cpu", heads="both" if place else "cluster",
    )  # fmt: skip
    if place is None:
        model, history = train(config, data)
        with mock.patch("ccrepro.evaluate.PIXELS", 2**21):
            found = evaluate(config, data, model)
        return {"history": [dict(e, seconds=0) for e in history], **score(config, data, found)}
    this = Run(config, data, place, place)
    record = this.finish(*train(config, data, this.report, this.checkpoints))
    return {"history": [record["history"]["loss"]], "scores": record["scores"]}


def _refused(images: np.ndarray) -> bool:
    try:
        np.array(images)
    except MemoryError:
        return True
    return False


def both(
    images: int, side: int, limit: int = 0, allowance: int = 0, quick: bool = False, place: str | None = None
) -> tuple[dict[str, object], dict[str, object]]:
    """The run under the limit, in MB, and the run in memory, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        folder = Path(scratch, "packed", "large")
        make(folder, images, side)
        found = []
        for arguments in ([f"--limit={limit}", f"--allowance={allowance}"], []):
            command = [sys.executable, __file__, "--run", str(folder), *arguments, *["--quick"] * quick]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--limit", type=int, default=0, help="MB that the process may allocate in all")
    parser.add_argument("--allowance", type=int, default=0, help="MB that it may allocate once its code is loaded")
    parser.add_argument("--quick", action="store_true", help="train and evaluate, and leave out the record")
    parser.add_argument("--place", help="folder for the data, which is removed at the end")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.limit * MB, options.allowance * MB, options.quick)))
        return
    settings = (options.images, options.side, options.limit, options.allowance, options.quick, options.place)
    mapped, in_memory = both(*settings)
    for name, found in {"mapped": mapped, "in memory": in_memory}.items():
        numbers = {"set": found["set"], "limit": found["limit"], **found["peak"]}
        sizes = ", ".join(f"{what} {value / MB:,.0f} MB" for what, value in numbers.items() if value)
        print(f"{name}: {sizes}, {found['seconds']:.0f} s, {found['scores']}")
    same = all(mapped[name] == in_memory[name] for name in ("history", "scores"))
    print("losses and scores are the same" if same else "LOSSES OR SCORES DIFFER")
    sys.exit(not same)


if __name__ == "__main__":
    main()
