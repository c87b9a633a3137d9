"""`ccrepro publish`, for the maintainers: records from ``runs/`` to ``results/``, and all that is made of them."""

from pathlib import Path

from ccrepro.errors import ConfigError
from ccrepro.recipes import PRESETS
from ccrepro.reproduce import claims, notebooks, plan, pool, records, tables
from ccrepro.reproduce.records import as_runs, provenance
from ccrepro.reproduce.tables import TABLES, as_markdown
from ccrepro.runs import finished
from ccrepro.runs.weights import halve
from ccrepro.runtime import storage
from ccrepro.runtime.device import at_once

LESSONS = ("01_method", "01_method.ko")
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
        plan.gather(runs / name, name, results, data_dir)
        kind, model = name.removesuffix("/cc-seed0"), runs / name / "model.safetensors"
        if kind != name and model.exists() and model.stat().st_size <= MODEL_BYTES:
            halve(model, results / "weights" / f"{kind}.safetensors")
    for preset in records.by_preset(results):
        plan.render(preset, at_once(jobs), "results", data_dir, anew=True)
    if lessons:
        here, there = storage.place("", "notebooks"), results / "notebooks/demo"
        lesson = [(here / f"{name}.ipynb", there / f"{name}.ipynb", {}) for name in LESSONS]
        pool.run_all(notebooks.run, lesson, at_once(jobs))
    readme = storage.place("", "README.md")
    storage.atomic_write(readme, with_results(readme.read_text(), results))
    storage.atomic_write(results / "README.md", index(results))


def with_results(text: str, results_dir: str | Path = "") -> str:
    """The README's text with a new results section: Table 2 in ACC, of the runs that follow the recipes."""
    parts = []
    for preset, every in records.by_preset(results_dir).items():
        runs = as_runs([r for r in every if not records.departs(r)])
        shown = tables.table("main_results", runs).drop(columns="difference")
        parts += [tables.as_markdown(shown), f"Preset `{preset}`."] if len(shown) else []
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + rest.split(END)[1]


def index(results_dir: str | Path = "") -> str:
    """``results/README.md``: every claim with its verdict, every table with its rows that were run, their origin."""
    of_preset = records.by_preset(results_dir)
    every = [r for own in of_preset.values() for r in own]
    parts = [f"# Results\n\nMade by `make publish`. [How to read this](../docs/results.md).\n\n## What holds\n\n"
             f"{as_markdown(claims.table(every))}\n\n{claims.RULE}"]  # fmt: skip
    for preset, own in of_preset.items():
        runs = as_runs(own)
        parts.append(f"## Preset `{preset}`\n\n{provenance(own)}")
        for name in (n for n in TABLES if n == "main_results" or len(tables.table(n, runs)) > 1):
            parts += [tables.formatted(name, runs), tables.missing(name, runs)]
        compared = as_markdown(tables.heads_against_kmeans(own))
        parts.append(f"**k-means on the features in place of the cluster head**\n\n{compared}")
        links = [f"[`{kind}/{preset}`]({kind}/{preset})" for kind in ("tables", "figures", "notebooks")]
        parts.append(f"NMI, ARI, figures: {', '.join(links)}.")
    return "\n\n".join(filter(None, [*parts, tables.RULE])) + "\n"
