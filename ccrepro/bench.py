"""Speed and memory of our way, beside the authors' way and the limit: measured in turns, in one process.

Every figure is the median over rounds A B C A B C …, with the smallest and the largest; on a CPU in process CPU time of
one thread, on a GPU in wall time between synchronisations. What is to be compared are the ratios within one run.
"""

import dataclasses
import itertools
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ccrepro import augmentations, authors, files, loss, metrics, train
from ccrepro.config import Config, recipe
from ccrepro.datasets import ImageSet
from ccrepro.machine import choose_device, resolve
from ccrepro.run import hardware, versions

# Augmentation: side of the source, of the view, batch, recipe. As in the paper for its data sets, and CIFAR natively.
AUGMENTATIONS = ((32, 32, 256, "cifar10"), (32, 224, 32, "cifar10"), (256, 224, 16, "imagenet10"))
INSTANCE_LOSSES = (64, 256, 1024, 4096)  # N, with D = 128
CLUSTER_LOSSES = ((256, 10), (256, 20), (256, 200), (256, 1000), (4096, 10), (4096, 200))  # N, K
SCORES = ((60_000, 10), (60_000, 20), (100_000, 200))  # labels, K
# Training steps: backbone, stem, side of the views, images per step on a CPU and on a GPU.
STEPS = (
    ("small", "cifar", 32, 64, 512),
    ("resnet18", "cifar", 32, 64, 512),
    ("resnet18", "imagenet", 32, 64, 512),
    ("resnet18", "imagenet", 96, 16, 512),
    ("resnet34", "imagenet", 224, 4, 256),
)
QUICK = (STEPS[1], STEPS[4]), (AUGMENTATIONS[0], AUGMENTATIONS[2])  # what a quick look measures of these two
TURN = {"cpu": 0.1, "cuda": 0.5}  # seconds at least of a way's turn
MEMORY_LIMIT = 4 * 2**30  # bytes: what would take more in the authors' way is not run in it


os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter


def run(rounds: int = 7, only: tuple[str, ...] = (), device: str = "auto") -> dict[str, Any]:
    """All measurements, as plain JSON values: where they were made, and a list of rows for each of `SECTIONS`."""
    plain = choose_device(recipe("cifar10", "fast", device=device))
    result = _start(plain)
    for name in only or SECTIONS:
        _measure(result, name, SECTIONS[name](plain, rounds))
    result["rates"] = [row["rate"] for row in result.get("step", [])]
    return result


def quick(seconds: float, device: str = "auto") -> dict[str, Any]:
    """As `run`, of a training step and the augmentation at 32 and at 224 pixels alone, ours and the limit; ``left_out``
    says what is missing. Nothing is begun once so many seconds have passed: on a GPU compiling takes most of them."""
    began, plain = time.monotonic(), choose_device(recipe("cifar10", "fast", device=device))
    result, (steps, views) = _start(plain), QUICK
    todo = [("step", lambda s=s: full_step(plain, 3, (s,), ("ours", "limit"))) for s in steps]
    todo += [("augmentation", lambda v=v: augmentation(plain, 3, (v,), ("ours", "compiled"))) for v in views]
    todo = [todo[0], todo[2], todo[1], todo[3]]  # 32 pixels first: planning needs their rate
    result["left_out"] = ["the authors' way", "losses", "scores"]
    for number, (name, rows) in enumerate(todo):
        if number and time.monotonic() - began > seconds:
            result["left_out"] += [f"{name}, {224 if number > 1 else 32} pixels: no time was left"]
        else:
            _measure(result, name, rows())
    result["rates"] = [row["rate"] for row in result.get("step", [])]
    return result


def _start(device: torch.device) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return {"hardware": machine(device), "versions": versions(), "commit": files.commit()}


def _measure(result: dict[str, Any], name: str, rows: Iterator[dict[str, Any]]) -> None:
    """Add rows to a section as they come."""
    for row in rows:
        result.setdefault(name, []).append(row)
        print(_line(row), flush=True)
        torch.compiler.reset()  # torch keeps eight shapes of a function compiled, and runs others as they are


def machine(device: torch.device) -> dict[str, Any]:
    found = hardware(None)
    found["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else None
    return found


def save(result: dict[str, Any], results_dir: str | Path = "results") -> Path:
    """Write JSON and table under ``results/bench/`` and the figure, all named after the hardware. Returns the first.
    A quick look has no figure: there is nothing to compare in it."""
    name, hardware = file_name(result["hardware"]), result["hardware"]["gpu"] or result["hardware"]["cpu"]
    folder = files.ROOT / results_dir / "bench"
    left_out = f"Left out: {'; '.join(result['left_out'])}.\n\n" if result.get("left_out") else ""
    text = f"{hardware}, torch {result['versions']['torch']}, commit {result['commit'][:10]}\n\n{left_out}"
    files.atomic_write(
        folder / f"{name}.md", text + table(result).to_markdown(index=False, disable_numparse=True) + "\n"
    )
    if "left_out" not in result:
        from ccrepro import plots  # late: needs what a bare machine lacks, which measures and lets others draw

        plots.save(plots.bench(result), name, "bench", results_dir)
    return files.atomic_write(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")


def file_name(hardware: dict[str, Any]) -> str:
    """Of what was measured on a machine, without an ending."""
    return re.sub(r"[^a-z0-9]+", "-", (hardware["gpu"] or hardware["cpu"]).lower()).strip("-")


def table(result: dict[str, Any]) -> pd.DataFrame:
    """One line per measurement: times of each way with their range, and the ratios."""
    lines = []
    for row in (row for name in SECTIONS for row in result.get(name, [])):
        line = {"what": row["what"]}
        for way in ("authors", "ours", "compiled", "limit"):
            t = row["seconds"].get(way)
            line[f"{way}, ms"] = f"{1e3 * t['median']:.3g} ({1e3 * t['low']:.3g}–{1e3 * t['high']:.3g})" if t else "–"
        lines.append(line | {"ratios": ", ".join(f"{name} {value:.3g}" for name, value in row["ratios"].items())})
    return pd.DataFrame(lines)


def _line(row: dict[str, Any]) -> str:
    times = "  ".join(f"{way} {t['median'] * 1e3:.3g} ms" for way, t in row["seconds"].items())
    return f"{row['what']}: {times}" + "".join(f"  {name} {value:.3g}" for name, value in row["ratios"].items())


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds per call of each way: median, smallest and largest over ``rounds`` of turns, after one call unmeasured.

    Each turn of a way repeats it for at least `TURN`; on a GPU that is so long that the host's way ahead of the device
    counts as in training, and three calls go unmeasured: one compiles, one records CUDA graphs, one replays.
    """
    calls = {}
    for name, way in ways.items():
        _seconds(way, 3 if device.type == "cuda" else 1, device)
        calls[name] = max(1, int(TURN[device.type] / max(_seconds(way, 1, device), 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(rounds), ways.items()):
        taken[name].append(_seconds(way, calls[name], device) / calls[name])
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in taken.items()
    }


def _seconds(way: Callable[[], Any], calls: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    for _ in range(calls):
        way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def peak_bytes(way: Callable[[], Any], device: torch.device) -> int:
    """The most memory that tensors made by the call took at once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        way()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    sizes = [e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])]
    return max(itertools.accumulate(sizes, initial=0))


def _row(what: str, seconds: dict[str, Any], ratios: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"what": what, "seconds": seconds, "ratios": ratios, **more}


def _times(seconds: dict[str, Any], fast: str, slow: str = "authors") -> float:
    """How many times as fast one way is as another."""
    return seconds[slow]["median"] / seconds[fast]["median"]


def textures(n: int, side: int) -> Tensor:
    """Colour pictures with the spectrum of natural ones, 1/f: uint8 (n, 3, side, side)."""
    frequency = torch.fft.fftfreq(side)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = 1
    x = torch.fft.ifft2(torch.fft.fft2(torch.randn(n, 3, side, side)) / radius).real
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low) * 255).byte()


def augmentation(
    device: torch.device,
    rounds: int,
    cases: Sequence[tuple] | None = None,
    ways: Sequence[str] = ("authors", "ours", "compiled"),
) -> Iterator[dict[str, Any]]:
    """One view of each image of a batch, drawing included; the authors' way runs on the CPU in any case. ``cases``:
    as `AUGMENTATIONS`, which is all of them."""
    for source, side, n, dataset in cases or AUGMENTATIONS:
        config = recipe(dataset, "paper", image_size=side)
        images, sizes = textures(n, source), torch.tensor([[source, source]]).expand(n, 2)
        theirs, resident = authors.Views(images, config), images.to(device)
        generator = torch.Generator().manual_seed(0)

        def ours(compiled: bool, config=config, images=resident, sizes=sizes, generator=generator) -> Tensor:
            drawn = augmentations.draw(generator, sizes, tuple(images.shape[2:]), config).to(device)
            return augmentations.apply(images, drawn, config.image_size, config.blur_kernel, compiled)

        calls = {
            "authors": lambda theirs=theirs: [theirs.transform(picture) for picture in theirs.pictures],
            "ours": lambda ours=ours: ours(False),
            "compiled": lambda ours=ours: ours(True),
        }
        seconds = interleaved({way: calls[way] for way in ways}, rounds, device)
        compared = [way for way in ways if way != "authors" and "authors" in ways]
        ratios = {f"{way}, times as fast": _times(seconds, way) for way in compared}
        views = {way: n / t["median"] for way, t in seconds.items()}
        blur = ", blur" if config.blur else ""
        yield _row(f"augmentation, {source} to {side} px{blur}, {n} views", seconds, ratios, views_per_second=views)


def losses(device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Both losses, forward and backward, with the peak memory of each way."""
    cases = [("instance", n, 128, (2 * n) ** 2 * 4 * 6) for n in INSTANCE_LOSSES]
    cases += [("cluster", n, k, (2 * k) ** 2 * n * 4 * 6) for n, k in CLUSTER_LOSSES]  # six broadcast tensors
    for kind, n, width, bytes_needed in cases:
        x = [torch.randn(n, width, device=device).softmax(1) for _ in "ab"]
        x = [torch.nn.functional.normalize(v) if kind == "instance" else v for v in x]
        ways = {"ours": getattr(loss, f"{kind}_loss"), "authors": getattr(authors, f"{kind}_loss")}
        if bytes_needed > MEMORY_LIMIT:
            del ways["authors"]
        calls = {name: lambda way=way, x=x: _backward(way, x) for name, way in ways.items()}
        seconds = interleaved(calls, rounds if bytes_needed < 2**28 else min(rounds, 3), device)
        peaks = {name: peak_bytes(call, device) for name, call in calls.items()}
        ratios = {}
        if "authors" in ways:
            ratios = {
                "times as fast": _times(seconds, "ours"),
                "share of the memory": peaks["ours"] / peaks["authors"],
            }
        letter = "D" if kind == "instance" else "K"
        yield _row(f"{kind} loss, N = {n}, {letter} = {width}", seconds, ratios, peak_bytes=peaks)


def _backward(way: Callable[..., Tensor], x: list[Tensor]) -> None:
    a, b = (v.clone().requires_grad_() for v in x)
    way(a, b).backward()


def scores(device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """NMI, ACC and ARI (the authors' way: Fowlkes-Mallows too) of half-right labels; always on the CPU."""
    rng = np.random.default_rng(0)
    for n, k in SCORES:
        true = rng.integers(0, k, n)
        pred = np.where(rng.random(n) < 0.5, (true + 1) % k, rng.integers(0, k, n))
        ways = {"authors": authors.scores, "ours": metrics.scores}
        calls = {name: lambda way=way, t=true, p=pred: way(t, p) for name, way in ways.items()}
        seconds = interleaved(calls, rounds, torch.device("cpu"))
        yield _row(f"scores of {n:,} labels, K = {k}", seconds, {"times as fast": _times(seconds, "ours")})


def full_step(
    device: torch.device,
    rounds: int,
    cases: Sequence[tuple] | None = None,
    ways: Sequence[str] = ("ours", "authors", "limit"),
) -> Iterator[dict[str, Any]]:
    """A whole training step, views included, beside the authors' way and the network alone on views that are ready.
    ``cases``: as `STEPS`, which is all of them."""
    for backbone, stem, side, n_cpu, n_gpu in cases or STEPS:
        n = n_gpu if device.type == "cuda" else n_cpu
        network = {"backbone": backbone, "stem": stem, "image_size": side, "batch_size": n}
        config = resolve(recipe("cifar10", "paper", **network, precision="auto", device=device.type))
        made = {"ours": _ours, "authors": _authors, "limit": _limit}
        seconds = interleaved({way: made[way](config) for way in ways}, rounds, device)
        rates = {way: n / t["median"] for way, t in seconds.items()}
        ratios = {"times as fast": _times(seconds, "ours")} if "authors" in ways else {}
        ratios["efficiency"] = rates["ours"] / rates["limit"]
        how = {name: getattr(config, name) for name in ("precision", "compile", "device")}
        rate = {**network, **how, "images_per_second": rates["ours"]}
        what = f"step, {backbone}, {stem} stem, {side} px, {n} images, {config.precision}"
        yield _row(what, seconds, ratios, images_per_second=rates, rate=rate)


def _set(config: Config, batches: int = 2) -> ImageSet:
    """Images for some batches, two of them made and the others repeated."""
    images = np.tile(textures(2 * config.batch_size, min(config.image_size, 224)).numpy(), (batches // 2, 1, 1, 1))
    sizes = np.broadcast_to(np.array(images.shape[2:]), (len(images), 2))
    return ImageSet("textures", images, sizes, None, (), "")


def _ours(config: Config) -> Callable[[], Any]:
    """The next step of our loop, over and over through epochs of a few steps; of twenty on a GPU, which waits while an
    epoch's views are drawn."""
    data = _set(config, 20 if config.device == "cuda" else 2)
    state, (part,) = train.start(config, data), train._passes(config, data)

    def forever() -> Iterator[Any]:
        for epoch in itertools.count():
            for view_a, view_b in train.pairs(part.images, part.sizes, config, epoch):
                yield train.step(state.model, state.optimizer, view_a, view_b, config)

    steps = forever()
    return lambda: next(steps)


def _limit(config: Config) -> Callable[[], Any]:
    """Forward, backward and update of the network alone, on two views that are ready."""
    data = _set(config)
    state = train.start(config, data)
    views = next(train.pairs(*(torch.tensor(x) for x in (data.images, data.sizes)), config, 0))

    def forward(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return sum(x.sum() for outputs in state.model.pair(a, b) for x in outputs)

    forward = forward if config.compile == "off" else torch.compile(forward, mode=config.compile, dynamic=False)

    def step() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        forward(*views).backward()
        state.optimizer.step()

    state.model.train()
    return step


def _authors(config: Config) -> Callable[[], Any]:
    """The authors' step: a loader of PIL pictures, which on a GPU has 8 workers; fp32; no channels-last."""
    plain = dataclasses.replace(config, precision="fp32", compile="off")
    device = choose_device(config)
    model = train.build(plain).to(device)
    optimizer = torch.optim.Adam(model.parameters(), config.lr)
    workers = 8 if device.type == "cuda" else 0
    views = authors.Views(torch.from_numpy(_set(config, 16 if workers else 2).images), plain)
    loader = torch.utils.data.DataLoader(views, config.batch_size, shuffle=True, num_workers=workers, drop_last=True)

    def forever() -> Iterator[Any]:
        while True:
            for view_a, view_b in loader:
                yield authors.step(model, optimizer, view_a.to(device), view_b.to(device), plain)

    steps = forever()
    return lambda: next(steps)


SECTIONS = {"augmentation": augmentation, "losses": losses, "scores": scores, "step": full_step}
