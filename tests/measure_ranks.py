"""Images a second of training with one rank and with two, in turns: ``python tests/measure_ranks.py``.

One rank on one core, one rank with two threads on two, two ranks on two. Two numbers of one run can be compared; two of
different runs cannot, and none where the machine does something else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

# Data set and settings: one that is mostly overhead, and one that computes.
SETTINGS = {
    "small, 8 px, N = 128": "digits --epochs 5",
    "ResNet18, 32 px, N = 64": "digits --backbone resnet18 --image-size 32 --batch-size 64 --sample 192 --epochs 3",
}
WAYS = {
    "1 rank, 1 core": (1, ["--threads", "1"]),
    "1 rank, 2 threads": (2, ["--threads", "2"]),
    "2 ranks, 2 cores": (2, ["--devices", "2", "--threads", "1"]),
}


def images_per_second(settings: str, way: str) -> float:
    """Of one training run, its first epoch left out."""
    cores, options = WAYS[way]
    free = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ccrepro", "train", *settings.split(), *options, "--device", "cpu"]
        command += ["--runs-dir", folder, "--results-dir", folder, "--checkpoint-seconds", "3600"]
        environment = os.environ | {"OMP_NUM_THREADS": options[-1]}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, free)
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        (log,) = Path(folder).rglob("log.jsonl")
        seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()][1:]
        (record,) = Path(folder).rglob("run.json")
        config, n_images = (json.loads(record.read_text())[name] for name in ("config", "n_images"))
    return n_images // config["batch_size"] * config["batch_size"] / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds, rows = parser.parse_args().rounds, []
    for what, settings in SETTINGS.items():
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(images_per_second(settings, way))
                print(f"{what}, {way}: {found[way][-1]:.0f} images/s", file=sys.stderr, flush=True)
        alone = statistics.median(found["1 rank, 1 core"])
        row = {"network": what}
        for way, rates in found.items():
            middle = statistics.median(rates)
            text = f"{middle:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
            row[way] = text if way == "1 rank, 1 core" else f"{text}, {middle / alone:.2f} times"
        rows.append(row)
    print(f"Images a second, median of {rounds} turns and their range\n")
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
