"""A trained model as it is given away: weights in half precision, in parts, with a card made from its run's record.

The folder has the layout that others use for large safetensors: ``model-0000k-of-0000n.safetensors`` and
``model.safetensors.index.json``, which says what lies where; ours also holds the settings and a SHA-256 of all.
`ccrepro.checkpoint.load_model` reads it.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from ccrepro import checkpoint, files
from ccrepro.config import DATASETS, Config
from ccrepro.results import differences, machine, short_commit

PART_BYTES = 14 * 2**20


def halved(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU: kernels and matrices in half precision, all else (batch-norm, biases, the
    pixels' mean and deviation) as it is."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {name: t.half() if t.dim() in (2, 4) else t for name, t in state.items()}


def name(record: dict[str, Any]) -> str:
    """Of a released model's folder: cifar10-fast-cc-seed0-epochs180."""
    parts = (record["dataset"], record["profile"], record["variant"], f"seed{record['seed']}")
    return "-".join((*parts, f"epochs{record['epochs']}"))


def release(record: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Path:
    """Write a model's tensors and its card into a folder; the parts stay below `PART_BYTES`. Returns the folder."""
    about = {"config": record["config"], "channels": record["packed_shape"][0], "side": record["packed_shape"][1]}
    shards = _shards(tensors)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.atomic_write(folder / file, save({name: tensors[name] for name in names}))
        weight_map |= dict.fromkeys(names, file)
    files.atomic_write(folder / checkpoint.INDEX, checkpoint.index(about, tensors, weight_map))
    files.atomic_write(folder / "README.md", card(record, tensors))
    return folder


def _shards(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Names in their order, as many to a part as it takes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > PART_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def card(record: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The model card, in Markdown with the usual YAML head; every number comes from the record."""
    config, facts = Config(**record["config"]), DATASETS[record["dataset"]]
    n_weights = sum(t.numel() for t in tensors.values())
    scores = ", ".join(f"{metric.upper()} {value:.4f}" for metric, value in record["scores"].items())
    seconds = sum(piece["seconds"] for piece in record["pieces"])
    return CARD.format(
        name=name(record),
        dataset=record["dataset"],
        title=facts.title,
        backbone=config.backbone,
        pixels=config.image_size,
        k=config.n_clusters,
        profile=record["profile"],
        variant=record["variant"],
        seed=record["seed"],
        epochs=record["epochs"],
        differs=differences(record) or "nothing",
        n=f"{record['n_images']:,}",
        sample="all" if record["n_images"] == facts.images else f"a sample of the {facts.images:,}",
        scores=scores,
        used=record["n_clusters_used"],
        weights=f"{n_weights / 1e6:.1f}",
        megabytes=f"{sum(t.nbytes for t in tensors.values()) / 1e6:.1f}",
        same=f"{record['half_precision']['same']:.2%}",
        half=", ".join(f"{m.upper()} {v:.4f}" for m, v in record["half_precision"]["scores"].items()),
        machine=machine(record),
        minutes=f"{seconds / 60:.1f}",
        pieces=len(record["pieces"]),
        torch=record["versions"]["torch"],
        commit=short_commit(record["commit"]),
        data=record["data_sha256"],
    )


CARD = """---
license: mit
library_name: ccrepro
tags: [image-clustering, contrastive-clustering]
datasets: [{dataset}]
metrics: [nmi, accuracy, ari]
---
# {name}

Contrastive Clustering (Li et al., AAAI 2021), trained without labels on {title}: {backbone} on {pixels} pixels,
K = {k} clusters, {weights} million numbers in {megabytes} MB (kernels and matrices in half precision). Made by
[ccrepro](../../../README.md); this card is written from the record of the run.

```sh
ccrepro predict results/models/{name} FOLDER
```

## What it was trained on, and how

- Data: {title}, {n} images, {sample} that the paper clusters; SHA-256 of the packed set
  `{data}`.
- Settings: profile `{profile}`, variant `{variant}`, seed {seed}, {epochs} epochs. Different from that recipe, whose
  values stand in brackets:
  {differs}.
- The weights are those of the last epoch. Neither training nor their choice looked at labels.
- Hardware: {machine}; {minutes} minutes in {pieces} piece(s), scoring and compiling included; torch {torch}; code at
  commit {commit}.

## Scores

On the same {n} images, in full precision: {scores}.
{used} of {k} clusters are in use. One run with one seed, so there is no spread. Labels were read for these numbers
only. With the weights as they are here, {same} of the images keep their cluster: {half}.

## What it does, and what it does not

It gives a picture one of {k} numbers. A cluster has no name: which number goes with which kind of picture is for
whoever looks at the clusters to find out, and another seed numbers them otherwise. Pictures unlike those of {title}
get a number too, which then means little. It is a result to look at and to compare with. Do not use it on pictures of
people, or for decisions about anyone.

## Terms

Code and weights: MIT. The data set has terms of its own, see [`docs/datasets.md`](../../../docs/datasets.md); no
picture of it is in these files. Please cite the paper, and the data set.
"""
