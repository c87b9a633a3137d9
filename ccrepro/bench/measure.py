"""Speed and memory of our way, beside the authors' way and the limit: measured in turns, in one process.

Every time is the median over rounds A B C A B C …, with the range of its middle half (IQR): process CPU time of one
thread on a CPU, wall time between synchronisations on a GPU. Compare only ratios, and only within one run.
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from cyclopts import Parameter
from cyclopts.validators import Number
from torch import Tensor
from torch.nn import functional as F

from ccrepro import augmentations, batches, loss, train
from ccrepro.bench import authors_way
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.errors import unknown
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs import rehearsal
from ccrepro.runs.record import git_commit, hardware, versions
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device, threads
from ccrepro.runtime.ragged import Ragged, sizes_of, stacked

Rounds = Annotated[int, Parameter(validator=Number(gte=1))]
Way = Callable[[], Any]  # one call of what is timed
Row = dict[str, Any]  # what: text, seconds: {way: {median, iqr}}, and for a loss peak_bytes: {way: number}

# As in the paper for its data sets, and CIFAR natively: data set, heights and widths of the images, side of the views,
# how many, compiled.
KINDS = (
    ("cifar10", [(32, 32)], 32, 256),
    ("cifar10", [(32, 32)], 224, 32),
    ("imagenet10", [(375, 500), (500, 333)], 224, 16),
)
VIEWS = [(*kind, compiled) for kind in KINDS for compiled in (False, True)]
LOSSES = [("instance", n, 128) for n in (64, 256, 1024, 4096)]  # which of them, N, D or K
LOSSES += [("cluster", n, k) for n, k in ((256, 10), (256, 20), (256, 200), (256, 1000), (4096, 10), (4096, 200))]
STEPS = (  # backbone, stem, side of the views, images per step on a CPU and on a GPU
    ("fast-s", "cifar", 20, 256, 512),
    ("fast-m", "cifar", 32, 64, 512),
    ("resnet18", "cifar", 32, 64, 512),
    ("resnet18", "imagenet", 32, 64, 512),
    ("resnet18", "imagenet", 96, 16, 512),
    ("resnet34", "imagenet", 224, 4, 256),
)
TURN = {"cpu": 0.1, "cuda": 0.5}  # seconds at least of a way's turn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter


def bench(*, rounds: Rounds = 7, only: tuple[str, ...] = (), device: str = "auto", results_dir: str = "") -> None:
    """Measure our speed beside the authors' way and the limit.

    Args:
        rounds: Turns of each way; 3 for a quick look.
        only: Some of the sections views, loss and step; then nothing is saved.
        device: auto, cpu or cuda.
        results_dir: Folder of results, below which it writes bench/; else results/local/.
    """
    with threads(1), torch.random.fork_rng():
        torch.manual_seed(0)
        result = run(rounds, only, device)
    if not only:
        print(save(result, results_dir))


def run(rounds: int = 7, only: tuple[str, ...] = (), device: str = "auto") -> dict[str, Any]:
    """All measurements, as plain JSON values: where they were made, and a list of rows for each of `SECTIONS`.

    Raises `ConfigError` for an unknown section.
    """
    for name in only:
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
    place = choose_device(device)
    gpu = torch.cuda.get_device_name() if place.type == "cuda" else None
    result = {"hardware": hardware(None) | {"gpu": gpu}, "versions": versions(), "commit": git_commit()}
    for name in only or SECTIONS:
        measured, cases = SECTIONS[name]
        result[name] = []
        for case in cases:
            row = measured(place, rounds, *case)
            result[name].append(row)
            print(", ".join(f"{column} {text}" for column, text in _line(row).items()), flush=True)
            torch.compiler.reset()  # torch keeps eight shapes of a function compiled, and runs others as they are
    return result


def save(result: dict[str, Any], results_dir: str | Path = "") -> Path:
    """Write JSON and Markdown, named after the hardware, below ``bench/`` of a folder of results, ``results/local/`` by
    default. Returns the path of the first."""
    name = result["hardware"]["gpu"] or result["hardware"]["cpu"]
    name_of_file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = storage.place(results_dir, "results/local") / f"bench/{name_of_file}.json"
    text = f"{name}, torch {result['versions']['torch']}, commit {result['commit'][:10]}\n\n"
    text += table(result).to_markdown(index=False, disable_numparse=True) + "\n"
    storage.atomic_write(path.with_suffix(".md"), text)
    return storage.atomic_write(path, json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> pd.DataFrame:
    """One line per measurement: the time of each way, our speed, the share of the limit that we reach, peak memory."""
    return pd.DataFrame([_line(row) for name in SECTIONS for row in result.get(name, [])])


def _line(row: Row) -> dict[str, str]:
    line, seconds = {"what": row["what"]}, row["seconds"]
    for way in ("authors", "ours", "limit"):
        line[way] = _duration(**seconds[way]) if way in seconds else "–"
    ours = seconds["ours"]["median"]
    line["speed"] = f"{seconds['authors']['median'] / ours:.3g}×" if "authors" in seconds else "–"
    line["efficiency"] = f"{seconds['limit']['median'] / ours:.0%}" if "limit" in seconds else "–"
    peaks = [f"{row['peak_bytes'][way] / 1e6:.1f}" for way in ("authors", "ours") if way in row.get("peak_bytes", {})]
    return line | {"peak memory": " → ".join(peaks) + " MB" if peaks else "–"}


def _duration(median: float, iqr: float) -> str:
    return (f"{median:.2f} s" if median >= 1 else f"{1e3 * median:.3g} ms") + f" ± {iqr / median:.0%}"


def interleaved(ways: dict[str, Way], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds per call of each way: the median and the IQR over ``rounds`` of turns of at least `TURN`."""
    from torch.utils import benchmark  # late: it looks for CUDA's compiler, and may warn

    clock = {"timer": time.process_time} if device.type == "cpu" else {}  # else torch's, which waits for the GPU
    timers = [benchmark.Timer("way()", globals={"way": way}, description=name, **clock) for name, way in ways.items()]
    for timer in timers:
        timer.timeit(1)  # and two calls that it makes before: one compiles, one records CUDA graphs, one replays
    turns = [timer.blocked_autorange(min_run_time=TURN[device.type]) for _ in range(rounds) for timer in timers]
    return {m.task_spec.description: {"median": m.median, "iqr": m.iqr} for m in benchmark.Measurement.merge(turns)}


def peak_bytes(way: Way, device: torch.device) -> int:
    """The most memory that tensors made by the call took at once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        way()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))


def views(
    device: torch.device, rounds: int, dataset: str, shapes: list[tuple[int, int]], side: int, n: int, compiled: bool
) -> Row:
    """One view of each image of a batch, drawing included; the authors' way runs on the CPU in any case."""
    config, generator, rng = recipe(dataset, "paper", image_size=side), torch.Generator(), np.random.default_rng(0)
    # What they show takes no time.
    images = as_tensor(
        stacked([rng.integers(256, size=(3, *shapes[i % len(shapes)]), dtype=np.uint8) for i in range(n)])
    )
    theirs, resident, sizes = authors_way.Views(images, config), images.to(device), torch.from_numpy(sizes_of(images))

    def ours() -> Tensor:
        drawn = augmentations.draw(generator, sizes, config).to(device, keep_box=isinstance(images, Ragged))
        return augmentations.apply(resident, drawn, side, config.quantize, compiled)

    seconds = interleaved({"authors": lambda: [*map(theirs.transform, theirs.images)], "ours": ours}, rounds, device)
    kind, source = ", blur" * bool(config.blur) + ", compiled" * compiled, "×".join(map(str, dict.fromkeys(shapes[0])))
    return {"what": f"{n} views, {source} to {side} px{kind}", "seconds": seconds}


def one_loss(device: torch.device, rounds: int, kind: str, n: int, width: int) -> Row:
    """One of the losses, forward and backward, with the peak memory of each way."""
    x = [torch.randn(n, width, device=device).softmax(1) for _ in "ab"]

    def backward(function: Callable[..., Tensor]) -> None:
        a, b = ((F.normalize(v) if kind == "instance" else v.clone()).requires_grad_() for v in x)
        function(a, b).backward()

    ways = {"ours": lambda: backward(getattr(loss, f"{kind}_loss"))}
    if kind == "instance" or n * width**2 < 10**8:  # else the authors' broadcast takes more than 4 GB
        ways["authors"] = lambda: backward(getattr(authors_way, f"{kind}_loss"))
    seconds, peaks = interleaved(ways, rounds, device), {name: peak_bytes(way, device) for name, way in ways.items()}
    what = f"{kind} loss, N = {n}, {'D' if kind == 'instance' else 'K'} = {width}"
    return {"what": what, "seconds": seconds, "peak_bytes": peaks}


def step(device: torch.device, rounds: int, backbone: str, stem: str, side: int, n_cpu: int, n_gpu: int) -> Row:
    """A whole training step, views included, beside the authors' way and the network alone on views that are ready."""
    n, n_batches = (n_gpu, 20) if device.type == "cuda" else (n_cpu, 4)  # a GPU waits while views are drawn
    network = {"backbone": backbone, "stem": stem, "image_size": side, "batch_size": n}
    config = train.resolve(recipe("cifar10", "paper", **network, precision="auto", device=device.type))
    data = image_set(config, n_batches)
    state = train.start(config, data)
    rehearsal.settle(state, data)
    config = state.config
    ways = {"ours": our_step(state, data), "authors": authors_step(config), "limit": bare_step(config)}
    how = config.precision if config.compile == "off" else f"{config.precision}, compile={config.compile}"
    what = f"step, {backbone}, {stem} stem, {side} px, {n} images, {how}"
    return {"what": what, "seconds": interleaved(ways, rounds, device)}


def image_set(config: Config, n_batches: int) -> ImageSet:
    n, side = n_batches * config.batch_size, config.image_size
    images = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), np.uint8)
    return ImageSet("noise", images, None, (), "")


def our_step(state: train.State, data: ImageSet) -> Way:
    """The next step of our loop, through epochs of a few steps."""
    config, parts = state.config, batches.passes(state.config, data)
    views = (pair for epoch in itertools.count() for pair in batches.epoch_pairs(parts, config, epoch))
    return lambda: train.step(state, *next(views))


def bare_step(config: Config) -> Way:
    """Forward, backward and update of the network alone, on two views that are ready."""
    data = image_set(config, 4)
    state = train.start(config, data)
    view_a, view_b, _ = next(batches.epoch_pairs(batches.passes(config, data), config, 0))

    def forward() -> Tensor:
        with torch.autocast(view_a.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return sum(x.sum() for view in (view_a, view_b) for x in state.model(view))

    forward = forward if config.compile == "off" else torch.compile(forward, mode=config.compile, dynamic=False)

    def step() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        forward().backward()
        state.optimizer.step()

    state.model.train()
    return step


def authors_step(config: Config) -> Way:
    """The authors' step: a loader of PIL images, which on a GPU has 8 workers; fp32; no channels-last."""
    config = config.replace(precision="fp32", compile="off")
    model, workers = build(config).to(config.device), 8 if config.device == "cuda" else 0
    optimizer = torch.optim.Adam(model.parameters(), config.lr)
    pairs = authors_way.Views(torch.from_numpy(image_set(config, 16 if workers else 4).images), config)
    how = {"num_workers": workers, "persistent_workers": bool(workers)}  # their epochs are longer than these
    loader = torch.utils.data.DataLoader(pairs, config.batch_size, shuffle=True, drop_last=True, **how)
    views = (pair for _ in itertools.count() for pair in loader)
    return lambda: authors_way.step(model, optimizer, *(view.to(config.device) for view in next(views)), config)


SECTIONS = {"views": (views, VIEWS), "loss": (one_loss, LOSSES), "step": (step, STEPS)}
