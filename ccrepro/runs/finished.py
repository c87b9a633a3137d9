"""Records of finished runs, read back. One counts only where its place and its content agree. Needs no torch."""

import functools
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictFloat, StrictInt, ValidationError

from ccrepro.config import Config
from ccrepro.errors import DataError
from ccrepro.recipes import overrides, run_name
from ccrepro.runtime import storage

Record = dict[str, Any]
OWN = ("dataset", "preset", "variant", "seed", "overrides")  # what tells a run from others
SLACK = 1e-9  # scores may exceed their range by rounding


class Scores(BaseModel, allow_inf_nan=False):
    """NMI and ACC lie between 0 and 1; ARI is below 0 where the agreement is less than by chance."""

    nmi: Annotated[StrictFloat, Field(ge=-SLACK, le=1 + SLACK)]
    acc: Annotated[StrictFloat, Field(ge=0, le=1)]
    ari: Annotated[StrictFloat, Field(ge=-1, le=1 + SLACK)]


class Needed(BaseModel):
    """What every record has, whatever made it."""

    dataset: str
    preset: str
    variant: str
    seed: StrictInt
    overrides: dict[str, Any]
    config: dict[str, Any]
    scores: Scores
    scores_kmeans_on_features: Scores | None = None
    epochs: StrictInt
    n_images: StrictInt
    seconds: float
    hardware: dict[str, Any]
    data_sha256: str
    commit: str
    contingency: list[list[StrictInt]]
    history: dict[str, list[float]]


def run_folder(config: Config, runs_dir: str | Path = "") -> Path:
    """The folder of a run below ``runs_dir``; overridden settings are part of its name."""
    return storage.place(runs_dir, "runs") / run_name(config)


def read(path: Path, name: str) -> Record:
    """The record of the run of this name, as of `run_name`. Raises `DataError` for a damaged file, for one of another
    version, for scores that are none, and for the record of another run."""
    try:
        record = json.loads(path.read_text())
        Needed.model_validate(record)
        config = Config.stored(record["config"])
        own = json.loads(json.dumps({**dict(config), "overrides": overrides(config)}))
        own |= {"epochs": 0} if config.baseline else {}
        told = [key for key in (*OWN, "epochs") if record[key] != own[key]]
        wrong = [f"{key} is {record[key]!r}, by its settings {own[key]!r}" for key in told]
        wrong += [f"it is of the run {run_name(config)}"] * (run_name(config) != name)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = [f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"]
    except ValueError as error:  # of JSON, or of our settings
        wrong = [str(error).rstrip(".")]
    if wrong:
        raise DataError(f"{path} is not the record of such a run: {'; '.join(wrong)}. Remove it, or run it again.")
    return record


def accepted(paths: Iterable[Path]) -> dict[Path, Record]:
    """Those records of a preset that count, each at ``…/PRESET/DATASET/NAME.json``; the others are named on standard
    error. Refused is what `read` refuses, what was made of other images than most runs of its data set, and one
    training under several names."""
    found, wrong = {}, {}
    for path in paths:
        try:
            found[path] = read(path, "/".join(path.with_suffix("").parts[-3:]))
        except DataError as error:
            wrong[path] = str(error)
    runs = Counter(r["dataset"] for r in found.values())
    alike = Counter((r["dataset"], r["data_sha256"]) for r in found.values())
    trainings = Counter(map(_training, found.values()))
    for path, r in found.items():
        if 2 * alike[r["dataset"], r["data_sha256"]] <= runs[r["dataset"]]:
            wrong[path] = f"{path} was not made of the images of most runs of {r['dataset']}. Remove it."
        elif r["epochs"] and trainings[_training(r)] > 1:
            wrong[path] = f"{path} holds the same training as another record. Remove the copy."
    for reason in wrong.values():
        _tell(f"refused: {reason}")
    return {path: r for path, r in found.items() if path not in wrong}


def streaming(path: Path, record: Record) -> dict[str, Record]:
    """What was measured of a record's run on a stream, as one more entry of the record; {} where nothing was. What is
    of another run is named on standard error and left out."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        wrong = [name for name in OWN if found.get(name, {}) != record[name]]  # {}: overrides, which older ones lack
    except (ValueError, AttributeError):
        wrong = ["all"]
    if wrong:
        _tell(f"refused: {path} is not of the run beside whose record it lies: {', '.join(wrong)}. Remove it.")
    return {} if wrong else {"streaming": found}


def _training(record: Record) -> str:
    """What two trainings never share: the assignments, and the losses of each epoch."""
    history = {name: values for name, values in record["history"].items() if name != "seconds"}
    return json.dumps([record["dataset"], record["contingency"], history])


@functools.cache
def _tell(line: str) -> None:
    """Once in a process: records are read again for each table."""
    print(line, file=sys.stderr)
