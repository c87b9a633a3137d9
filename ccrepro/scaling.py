"""What many GPUs and many images cost: what is sent, computed and kept, as formulas, and the tables made of them.

Bytes and operations follow from the code, and tests hold them against it. Seconds are estimates: they follow from the
rates below, which others measured or state, and none of which was measured here.

Letters: R ranks, N images of the global batch, n = N / R on each rank, D instance dimension, K clusters.
"""

import functools
import math
from typing import NamedTuple

import pandas as pd

from ccrepro.config import Config, recipe
from ccrepro.loss import ROWS

FLOAT = 4  # bytes
WEIGHTS, AGREE = "gradients of the weights", "stop or save?"  # collectives that cost the GPU no waiting

# Of one H100 (SXM) and what connects eight of them, and more. None of these was measured by us.
NETWORK_RATE = 160e12  # operations a second in bf16: ResNet-50 in NVIDIA's MLPerf 3.0 entry, if 35 to 40 epochs
MATRIX_RATE = 67e12  # operations a second in fp32, of the losses: NVIDIA's data sheet, a peak
LAUNCH = 3e-3  # seconds in which the host launches the kernels of a step: 800 of them at 4 µs, an estimate
SMALL = 25e-6  # seconds of a collective of few bytes, an estimate: NCCL's own for 128 bytes in NVIDIA/nccl#1453
NVLINK = 450e9  # bytes a second each way, up to 8 GPUs: NVIDIA's data sheet, a peak
FABRIC = 50e9  # bytes a second each way, more than 8 GPUs: 400 Gb/s for each, NVIDIA's DGX H100, a peak


class Setting(NamedTuple):
    """N, D and K."""

    batch_size: int = 256
    instance_dim: int = 128
    n_clusters: int = 10


PAPER = Setting()  # on CIFAR-10


class Network(NamedTuple):
    """What the formulas need of a network: operations are of one view, forward and backward."""

    parameters: int
    norm_layers: int
    norm_channels: int  # summed over the layers
    operations: int


class Collective(NamedTuple):
    """What a rank hands over in one step: in how many calls, and how many bytes of its own in all of them."""

    what: str
    kind: str  # all-gather, reduce-scatter, all-to-all or all-reduce
    calls: int
    bytes: int


def network(config: Config, channels: int = 3) -> Network:
    """Counted on the model itself, without memory for it."""
    import torch  # late: only this needs it
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.utils.flop_counter import FlopCounterMode

    from ccrepro.model import build

    model, views = build(config, channels).to("meta"), 2
    with FlopCounterMode(display=False) as counter:
        outputs = model(torch.empty(views, channels, config.image_size, config.image_size, device="meta"))
        sum(x.sum() for x in outputs).backward()
    norms = [module.num_features for module in model.modules() if isinstance(module, _BatchNorm)]
    parameters = sum(p.numel() for p in model.parameters())
    return Network(parameters, len(norms), sum(norms), counter.get_total_flops() // views)


def collectives(setting: Setting, net: Network, ranks: int, gpu: bool = True) -> list[Collective]:
    """Of one step and rank: outputs of both views, the statistics of batch-norm in each view, gradients, and what the
    hosts agree on. A CPU's batch-norm is our own, and gloo scatters where NCCL reduces."""
    own = _gathered(setting) // ranks
    layers, channels = 2 * net.norm_layers, 2 * net.norm_channels  # both views
    back = ("reduce-scatter", 1) if gpu else ("all-to-all", ranks)
    found = [
        Collective("z and p of both views", "all-gather", 1, own),
        Collective("their gradients", back[0], back[1], own * ranks),
    ]
    if gpu:
        found.append(Collective("batch-norm", "all-gather", layers, FLOAT * (2 * channels + layers)))
        found.append(Collective("batch-norm, backward", "all-reduce", layers, FLOAT * 2 * channels))
    else:
        found.append(Collective("batch-norm", "all-reduce", 2 * layers, FLOAT * 2 * channels))
        found.append(Collective("batch-norm, backward", "all-reduce", 2 * layers, FLOAT * 2 * channels))
    found.append(Collective(WEIGHTS, "all-reduce", _buckets(net), FLOAT * net.parameters))
    found.append(Collective(AGREE, "all-reduce", 1, 2 * 8))
    return found


def _buckets(net: Network) -> int:
    """Parts in which DistributedDataParallel sends gradients: of 25 MiB, the first of 1 MiB; at least so many."""
    return 1 + math.ceil(max(0, FLOAT * net.parameters - 2**20) / (25 * 2**20))


def sent(collective: Collective, ranks: int) -> float:
    """Bytes that each rank sends, by rings or to each other rank."""
    share = {"all-gather": ranks - 1, "reduce-scatter": (ranks - 1) / ranks, "all-to-all": (ranks - 1) / ranks}
    return collective.bytes * (share | {"all-reduce": 2 * (ranks - 1) / ranks})[collective.kind]


def loss_operations(setting: Setting) -> int:
    """Of the instance loss, value and gradient, on every rank: two products that make or use the 2N × 2N similarities,
    three where these are more than one block and so are made twice."""
    two_n = 2 * setting.batch_size
    return (2 if two_n <= ROWS else 3) * 2 * two_n**2 * setting.instance_dim


def loss_bytes(setting: Setting) -> tuple[int, int]:
    """Of the instance loss: the whole 2N × 2N matrix of similarities, and what is in memory of it at once, two blocks
    of `ROWS` rows."""
    two_n = 2 * setting.batch_size
    return FLOAT * two_n**2, 2 * FLOAT * min(ROWS, two_n) * two_n


class Step(NamedTuple):
    """Seconds of a step and their parts, as if none of them ran beside another."""

    network: float
    launch: float  # what the host needs beyond that
    loss: float
    latency: float  # of collectives that the GPU waits for
    transfer: float
    total: float


def step(setting: Setting, net: Network, ranks: int) -> Step:
    """An estimate for H100s, in bf16."""
    all_of_it = collectives(setting, net, ranks) if ranks > 1 else []
    computing = 2 * setting.batch_size / ranks * net.operations / NETWORK_RATE
    launch = max(0.0, LAUNCH - computing)
    loss = loss_operations(setting) / MATRIX_RATE
    latency = SMALL * sum(c.calls for c in all_of_it if c.what not in (WEIGHTS, AGREE))
    transfer = sum(sent(c, ranks) for c in all_of_it) / (NVLINK if ranks <= 8 else FABRIC)
    return Step(computing, launch, loss, latency, transfer, computing + launch + loss + latency + transfer)


def bytes_kept(setting: Setting, n_images: int, side: int) -> dict[str, int]:
    """Of a data set in colour: packed on disk; in each rank's memory the order of an epoch; and z and p of all images,
    when they are evaluated."""
    outputs = FLOAT * (setting.instance_dim + setting.n_clusters)
    return {"packed": 3 * side**2 * n_images, "order": 8 * n_images, "z and p": outputs * n_images}


def traffic_table(ranks: int = 8) -> pd.DataFrame:
    """What each rank sends in a step of the paper's setting."""
    rows = [
        {"what": c.what, "as": c.kind, "calls": f"{c.calls}", "own": size(c.bytes), "sent": size(sent(c, ranks))}
        for c in collectives(PAPER, _papers_network(), ranks)
    ]
    return pd.DataFrame(rows)


def fixed_batch_table() -> pd.DataFrame:
    """The published batch of 256 on more and more GPUs."""
    net = _papers_network()
    alone = step(PAPER, net, 1).total
    steps = {ranks: step(PAPER, net, ranks) for ranks in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    return pd.DataFrame([_row(ranks, PAPER, s, alone / (ranks * s.total)) for ranks, s in steps.items()])


def growing_batch_table() -> pd.DataFrame:
    """256 images on each GPU, so a batch that grows with them, and what its instance loss costs each of them."""
    rows, net = [], _papers_network()
    alone = step(PAPER, net, 1).total
    for ranks in (1, 8, 64, 512):
        setting = _grown(ranks)
        found = step(setting, net, ranks)
        whole, ours = loss_bytes(setting)
        memory = {"2N × 2N": size(whole), "at once": size(ours), "gathered": size(_gathered(setting))}
        rows.append(_row(ranks, setting, found, alone / found.total) | memory)
    return pd.DataFrame(rows)


def images_table(side: int = 224) -> pd.DataFrame:
    """One epoch over many images of 224 pixels: with 256 images on each GPU, and with 256 in all as published."""
    rows = []
    for n_images in (60_000, 10**6, 10**9):
        kept = {name: size(value) for name, value in bytes_kept(PAPER, n_images, side).items()}
        for ranks in (1, 8, 64, 512):
            grown, fixed = _rate(_grown(ranks), ranks), _rate(PAPER, ranks)
            row = {"images": f"{n_images:,}", **kept, "GPUs": f"{ranks}"}
            row |= {"epoch, N = 256": hours(n_images / fixed) if fixed else "–"}
            row |= {"epoch, N = 256 R": hours(n_images / grown)}
            row |= {"GPU-hours": f"{n_images / grown * ranks / 3600:,.2g}"}
            row |= {"read, each GPU": f"{size(grown / ranks * 3 * side**2)}/s"}
            rows.append(row)
    return pd.DataFrame(rows)


@functools.cache
def _papers_network() -> Network:
    return network(recipe("cifar10", "paper"))


def _grown(ranks: int) -> Setting:
    return PAPER._replace(batch_size=256 * ranks)


def _gathered(setting: Setting) -> int:
    """Bytes of z and p of both views of the global batch."""
    return FLOAT * setting.batch_size * 2 * (setting.instance_dim + setting.n_clusters)


def _rate(setting: Setting, ranks: int) -> float:
    """Images a second; 0 where some rank would have none."""
    return setting.batch_size / step(setting, _papers_network(), ranks).total if setting.batch_size >= ranks else 0.0


def _row(ranks: int, setting: Setting, found: Step, efficiency: float) -> dict[str, str]:
    about = {"GPUs": f"{ranks}", "N": f"{setting.batch_size:,}", "n": f"{setting.batch_size // ranks}"}
    milliseconds = {f"{name}, ms": f"{1e3 * value:.3g}" for name, value in found._asdict().items()}
    rate = f"{setting.batch_size / found.total:,.0f}"
    return about | milliseconds | {"images/s": rate, "efficiency": f"{efficiency:.0%}"}


TABLES = {
    "traffic": traffic_table,
    "fixed batch": fixed_batch_table,
    "growing batch": growing_batch_table,
    "images": images_table,
}


def markdown(name: str) -> str:
    """One of `TABLES`, as it stands in docs/scaling.md."""
    return TABLES[name]().to_markdown(index=False, disable_numparse=True)


def size(n_bytes: float) -> str:
    """Bytes in the unit that reads best, in powers of 1,000."""
    for unit, power in {"TB": 12, "GB": 9, "MB": 6, "kB": 3}.items():
        if n_bytes >= 10**power:
            return f"{n_bytes / 10**power:,.3g} {unit}" if n_bytes < 10 ** (power + 3) else f"{n_bytes / 1e12:,.0f} TB"
    return f"{n_bytes:.0f} B"


def hours(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, length in {"d": 86_400, "h": 3_600, "min": 60}.items():
        if seconds >= length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:.3g} s"
