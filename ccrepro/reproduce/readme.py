"""`ccrepro publish`, for the maintainers: records from ``runs/`` to ``results/``, and all that is made of them."""

from pathlib import Path

import pandas as pd

from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError
from ccrepro.recipes import PRESETS, RECIPES
from ccrepro.reproduce import claims, figures, notebooks, plan, pool, records, tables
from ccrepro.reproduce.records import Record, as_runs, provenance
from ccrepro.reproduce.tables import TABLES, as_markdown
from ccrepro.runs import finished
from ccrepro.runs.weights import halve
from ccrepro.runtime import storage
from ccrepro.runtime.device import at_once

LESSONS = ("01_method", "01_method.ko")
FIGURES = {  # shown on the page of results, of the preset nearest to the paper's that has them
    "cosine_distributions": "Figure 3: cosines of positive and negative pairs.",
    "evolution": "Figure 4: the feature space by epoch, coloured by cluster.",
    "confusion": "Classes and clusters.",
    "examples_right": "The image that the network is surest of, for each class.",
    "examples_wrong": "Images that it is sure of, and wrong.",
    "cost": "What an hour of training buys.",
    "streaming": "A stream: the time to an assignment, and training on chunks that come once.",
}
NEAREST = {  # presets, the nearest to the paper's settings first
    "paper": "the published settings",
    "fast": "today's network and optimiser",
    "laptop": "a small network, views of 20 pixels",
    "demo": "ours; the paper has no digits",
}
MODEL_BYTES = 10_000_000  # of the largest model whose weights are published: Git keeps every version
BEGIN, END = "<!-- results: made by `make publish`, do not edit -->", "<!-- end of results -->"


def publish(*, lessons: bool = False, jobs: int = 0, runs_dir: str = "", data_dir: str = "") -> None:
    """For the maintainers: put what was run into results/ and README.md.

    Copies the records of finished runs, and the weights of the full method's seed 0 where they are small; executes the
    report notebooks, and writes the README's results. Raises `ConfigError`, before anything is written, for a record
    that was not made by committed code.

    Args:
        lessons: Execute the lesson anew, too.
        jobs: Notebooks at once; else one per GPU, or one per core.
        runs_dir: Folder of runs; else runs/.
        data_dir: Folder of data sets; else $CCREPRO_DATA, else data/.
    """
    runs, results = storage.place(runs_dir, "runs"), storage.place("", "results")
    done = [path for preset in PRESETS for path in storage.listing(runs / preset, "*", "*", "run.json")]
    names = [str(path.parent.relative_to(runs)) for path in done]
    for name in names:
        if len(finished.read(runs / name / "run.json", name)["commit"]) != 40:
            raise ConfigError(f"{runs / name} was made by code that is not committed. Commit it, and run it again.")
    for name in names:
        plan.gather(runs / name, name, results)
        kind, model = name.removesuffix("/cc-seed0"), runs / name / "model.safetensors"
        if kind != name and model.exists() and model.stat().st_size <= MODEL_BYTES:
            halve(model, results / "weights" / f"{kind}.safetensors")
    for preset in records.by_preset(results):
        plan.render(preset, at_once(jobs), "results", data_dir, anew=True)
    if lessons:
        here, there = storage.place("", "notebooks"), results / "notebooks/demo"
        lesson = [(here / f"{name}.ipynb", there / f"{name}.ipynb", {}) for name in LESSONS]
        pool.run_all(notebooks.run, lesson, at_once(jobs))
    own = records.find_records(records.by_preset(results).get("demo", []), "cc")
    for name, dark in (("teaser", False), ("teaser_dark", True)):
        figures.save(figures.teaser(own, dark), name, "demo", results)
    readme = storage.place("", "README.md")
    storage.atomic_write(readme, with_results(readme.read_text(), results))
    storage.atomic_write(results / "README.md", index(results))


def with_results(text: str, results_dir: str | Path = "") -> str:
    """The README's text with a new results section, of `summary`."""
    before, rest = text.split(BEGIN)
    shown = tables.as_markdown(summary(records.by_preset(results_dir)))
    return f"{before}{BEGIN}\n{shown}\n{END}{rest.split(END)[1]}"


def summary(of_preset: dict[str, list[Record]]) -> pd.DataFrame:
    """One row for digits and for each data set of the paper: ACC that the paper prints and ours, of the full method by
    the recipe nearest to the paper's that was run; its time, the median of the seeds; and what was run."""
    paper, lines = records.printed("2", "acc").loc["CC"], []
    for dataset in ("digits", *RECIPES["paper"]):
        title, ours, time_, status = DATASETS[dataset].title, "–", "–", "not run yet: needs a GPU"
        for preset in NEAREST:
            own = [r for r in of_preset.get(preset, []) if (r["dataset"], r["variant"]) == (dataset, "cc")]
            if own := [r for r in own if not records.departs(r)]:
                runs, on = as_runs(own), own[0]["hardware"]["gpu"] or "1 core"
                minutes = 60 * runs.hours.median()
                ours, status = tables.counted(runs.acc), NEAREST[preset]
                time_ = f"{minutes:.0f} min, {on}" if minutes < 90 else f"{minutes / 60:.0f} h, {on}"
                break
        lines.append((title, paper.get(title, "–"), ours, time_, status))
    return pd.DataFrame(lines, columns=["data set", "ACC, paper", "ACC, ours (seeds)", "a run takes", "what was run"])


def index(results_dir: str | Path = "") -> str:
    """``results/README.md``: what was run, every claim with its verdict, every table and figure, links to the rest."""
    of_preset, place = records.by_preset(results_dir), storage.place(results_dir, "results")
    every = [r for own in of_preset.values() for r in own]
    parts = ["# Results", "Made by `make publish`. [How to read this](../docs/results.md).", "## What was run"]
    parts += [as_markdown(summary(of_preset)), *(f"`{name}`: {provenance(own)}" for name, own in of_preset.items())]
    parts += ["## What holds", as_markdown(claims.overview(every)), claims.RULE]
    for name, spec in TABLES.items():
        section: list[str] = []
        for preset, own in of_preset.items():
            runs, compared = as_runs(own), tables.heads_against_kmeans(own) if name == "main_results" else ()
            if len(tables.cells(name, runs)):
                section += [f"Preset `{preset}`. {_links(place, preset, name)}", tables.formatted(name, runs)]
                section += [tables.missing(name, runs), as_markdown(compared) if len(compared) else ""]
        parts += [f"## Table {spec.number}", *(section or ["Nobody has run this yet."])]
    parts.append("## Figures")
    for name, caption in FIGURES.items():
        drawn = (f"figures/{preset}/{name}.png" for preset in NEAREST)
        parts += [f"{caption}\n\n![{name}]({path})" for path in drawn if (place / path).exists()][:1]
    return "\n\n".join(filter(None, [*parts, tables.RULE])) + "\n"


def _links(place: Path, preset: str, name: str) -> str:
    """Where the other metrics, the figure and the executed notebook of a table lie, if they do."""
    paths = {"NMI and ARI": f"tables/{preset}/{name}.md", "figure": f"figures/{preset}/{name}.png"}
    notebook = next((place / "notebooks" / preset).glob(f"*{name}.ipynb"), None)
    paths |= {"notebook": f"notebooks/{preset}/{notebook.name}"} if notebook else {}
    return " · ".join(f"[{what}]({path})" for what, path in paths.items() if (place / path).exists())
