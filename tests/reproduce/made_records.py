"""Run records made here, small and without any run behind them."""

import json
from pathlib import Path
from typing import Any

from ccrepro.config import Config
from ccrepro.data.registry import DATASETS
from ccrepro.recipes import RECIPES, recipe, run_name

HARDWARE = {"cpu": "a CPU", "cores": 2, "gpu": None, "threads": 1}
COSINES = {f"{head}_{kind}": [0.5, 0.5] for head in ("instance", "cluster") for kind in ("positive", "negative")}


def record(variant: str, acc: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A record of a variant on digits with the given ACC; NMI is half of it, ARI a quarter."""
    own = {"dataset": "digits", "preset": "demo", "overrides": {}} | changes
    names = {"dataset": own["dataset"], "preset": own["preset"], "variant": variant, "seed": seed}
    make = recipe if own["dataset"] in RECIPES[own["preset"]] else Config
    config = make(**names, **own["overrides"]).model_dump(mode="json")
    made = {
        "dataset": "digits", "variant": variant, "preset": "demo", "seed": seed, "overrides": {},
        "scores": {"nmi": acc / 2, "acc": acc, "ari": acc / 4}, "epochs": 0 if config["baseline"] else config["epochs"],
        "seconds": 10.0, "n_images": 1797,
        "config": config, "commit": "c" * 40, "hardware": HARDWARE, "data_sha256": "d" * 64,
        "contingency": [[seed, sum(map(ord, variant))]], "history": {"epoch": [1, 2], **COSINES},
        "evolution": [{"epoch": 0, "scores": {"nmi": 0.0}}],
    }  # fmt: skip
    if variant in ("cc", "untrained"):
        made["scores_kmeans_on_features"] = made["scores"]
    return made | changes | {"config": config | changes.get("config", {})}


def records(dataset: str = "digits", preset: str = "demo", **accs: list[float]) -> list[dict[str, Any]]:
    """Records of several variants (``views_one`` is views-one), one per ACC."""
    common = {"dataset": dataset, "preset": preset, "n_images": DATASETS[dataset].images}
    return [record(v.replace("_", "-"), acc, s, **common) for v, each in accs.items() for s, acc in enumerate(each)]


def write(root: Path, made: list[dict[str, Any]], kind: str = "runs") -> None:
    """Put records where those of finished runs lie below a folder of results."""
    for r in made:
        path = root / kind / f"{run_name(Config(**r['config']))}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(r))
