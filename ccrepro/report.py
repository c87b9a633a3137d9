"""A whole reproduction on one page: claims, tables, figures, what was not run, and where every number comes from.

The same sections become the HTML and the Markdown of a profile; the README's results are a part of them.
"""

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd

from ccrepro import claims, files, tables
from ccrepro.config import PROFILES
from ccrepro.errors import ConfigError
from ccrepro.results import Record, as_runs, find_records, load_records, load_runs, load_tried, origins, provenance
from ccrepro.tables import TABLES, as_markdown

# Figures that the notebooks save, by section, in the order in which they are shown.
FIGURES = {
    "main_results": {
        "main_results": "ACC of each method: a dot per seed, and the paper's number.",
        "confusion": "Images by class and by matched cluster.",
        "tsne": "The instance head's output, by class and by cluster.",
        "tsne_pixels": "The raw pixels, which is what the classical methods see.",
        "losses": "Losses, and the entropy of the mean assignment, by epoch.",
    },
    "augmentation": {
        "augmentation": "ACC with two augmented views, one and none.",
        "tsne_views_none": "The instance head's output after training without augmentation.",
    },
    "heads": {
        "heads": "ACC with both heads, each alone, one shared head, and no entropy term.",
        "losses_cluster_only": "The cluster head alone.",
        "losses_no_entropy": "Without the entropy term.",
    },
    "backbones": {"backbones": "ACC by backbone."},
    "evolution": {
        "cosines": "Cosines of positive and negative pairs (Fig. 3).",
        "evolution": "The feature space at several epochs, in one embedding (Fig. 4).",
        "scores_by_epoch": "Scores by epoch.",
    },
    "cases": {
        "cases_right": "The surest right image of each class: its class, its cluster, the assignment to it.",
        "cases_wrong": "The surest wrong images.",
        "cases_between": "Images between two clusters.",
    },
    "online": {"online": "A stream: assignment, quality along it, and training on it."},
}


@dataclass
class Section:
    """A heading with its paragraphs, its tables (caption, data frame) and its figures (caption, path)."""

    title: str
    texts: list[str] = field(default_factory=list)
    frames: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: list[tuple[str, Path]] = field(default_factory=list)


def save_report(profile: str, results_dir: str | Path = "results") -> tuple[Path, Path]:
    """Write ``results/report/<profile>.html``, one file with all its figures in it, and ``.md`` beside it, whose
    figures are links. Raises `ConfigError` for a profile without runs."""
    parts = sections(profile, results_dir)
    folder = files.ROOT / results_dir / "report"
    title = f"Contrastive Clustering, reproduced: profile {profile}"
    html = files.atomic_write(folder / f"{profile}.html", _environment().get_template("report.html.j2").render(
        title=title, sections=parts, embedded=_embedded))  # fmt: skip
    text = "\n\n".join([f"# {title}", *(_section_markdown(part, folder) for part in parts)])
    return html, files.atomic_write(folder / f"{profile}.md", text + "\n")


def sections(profile: str, results_dir: str | Path = "results") -> list[Section]:
    """What the report of a profile holds, in its order."""
    records = load_records(profile, results_dir)
    if not records:
        fix = f"Run make reproduce PROFILE={profile}"
        raise ConfigError(f"no run of profile {profile}", f"{results_dir}/runs", "A report needs one", fix)
    runs, folder = as_runs(records), files.ROOT / results_dir / "figures" / profile
    tried = load_tried(profile, results_dir)
    return [
        Section("What this is", [provenance(profile, results_dir), HOW_TO_READ]),
        Section("Claims of the paper", [claims.RULE], [("Each claim, and what holds", claims.table(records))]),
        *(_table_section(name, runs, records, folder) for name in TABLES),
        *(_other_sections(records, folder)),
        *([Section(TRIED, [ABOUT_TRIED], [("Runs", tables.tried(tried))])] if tried else []),
        Section("What was not run", ["Rows of the tables above for which there is no run."], [_not_run(runs)]),
        Section("Where every number comes from", [ORIGINS], [("Runs", _origins(records))]),
    ]


HOW_TO_READ = (
    "Ours are means over seeds ± the sample's standard deviation, with the number of seeds in brackets. Reported is "
    "what the paper prints, one number per cell and without repeated seeds; it copied the rows of the other methods "
    "from earlier papers. All images of a data set are clustered and scored together, as in the paper; labels are "
    "read for scoring only, and the last epoch is what is reported. Digits, Imagenette and Imagewoof are not among the "
    "paper's data sets: there is no reported number for them, and what they say of a claim is no verdict on it."
)
ORIGINS = (
    "One row per run; all are recipes without overrides. Settings is a hash of every setting, which the run's record "
    "under results/runs spells out; commit is that of the code; seconds are those of training, or of clustering where "
    "nothing is trained. Energy is known only where the hardware reports it."
)


def _table_section(name: str, runs: pd.DataFrame, records: list[Record], folder: Path) -> Section:
    frames = [("ACC", tables.table(name, runs))]
    for metric in ("nmi", "ari"):
        frames.append((f"{metric.upper()}, rows that were run", tables.table(name, runs, metric, only_run=True)))
    if name == "main_results":
        frames.insert(0, ("ACC of all 18 methods, as reported and by us", tables.overview(runs)))
        frames.append(("k-means on the features in place of the cluster head", tables.heads_against_kmeans(records)))
    texts = [tables.RULE] if name == next(iter(TABLES)) else []  # once is enough
    return Section(TABLES[name].caption, texts, frames, _figures(name, folder))


def _other_sections(records: list[Record], folder: Path) -> list[Section]:
    """What the paper shows as figures, or not at all; of the first data set that the full method was run on."""
    own = find_records(records, "cc")
    online = [r for r in own if "online" in r]
    return [
        Section("While it trains (Figures 3 and 4 of the paper)", [], [("NMI", tables.evolution(own))],
                _figures("evolution", folder)),
        Section("Cases", ["The paper shows none."], [], _figures("cases", folder)),
        Section("Clustering a stream", [], [("Assignment as images arrive", tables.online(online)),
                ("Refitting k-means instead", tables.refits(online))], _figures("online", folder)),
    ]  # fmt: skip


def _figures(name: str, folder: Path) -> list[tuple[str, Path]]:
    shown = [(caption, folder / f"{figure}.png") for figure, caption in FIGURES[name].items()]
    return [(caption, path) for caption, path in shown if path.exists()]


def _not_run(runs: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    lines = []
    for name, spec in TABLES.items():
        frame = tables.table(name, runs)
        for title in dict.fromkeys(frame["data set"]):
            missing = frame[(frame["data set"] == title) & (frame.ours == "not run")].method
            if len(missing):
                lines.append({"table": spec.caption, "data set": title, "not run": ", ".join(missing)})
    return "Not run", pd.DataFrame(lines)


def _origins(records: list[Record]) -> pd.DataFrame:
    """`origins`, and the tables that each run is part of."""
    used = [
        ", ".join(name for name, spec in TABLES.items() if r["variant"] in {row.variant for row in spec.rows}) or "–"
        for r in records
    ]
    return origins(records).assign(tables=used)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _embedded(path: Path) -> str:
    """A picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _section_markdown(part: Section, folder: Path) -> str:
    frames = [f"**{caption}**\n\n{as_markdown(frame)}" for caption, frame in part.frames]
    figures = [f"![{caption}]({Path(os.path.relpath(path, folder)).as_posix()})" for caption, path in part.figures]
    return "\n\n".join([f"## {part.title}", *part.texts, *frames, *figures])


READMES = ("README.md", "README.ko.md")  # both hold the same generated results
BEGIN, END = "<!-- results: made by `make tables`, do not edit -->", "<!-- end of results -->"


def readme_with_results(text: str, results_dir: str | Path = "results") -> str:
    """The README's text with its results section made anew from the published records of every profile."""
    profiles = [p for p in PROFILES if load_records(p, results_dir) or load_tried(p, results_dir)]
    parts = [_readme_results(profiles, results_dir)] if profiles else ["No run yet.\n"]
    before, rest = text.split(BEGIN)
    return "\n".join((before + BEGIN, *parts, END + rest.split(END)[1]))


def _readme_results(profiles: list[str], results_dir: str | Path) -> str:
    """The claims, then for each profile its figure and the rows that were run, in ACC."""
    records = [r for p in profiles for r in load_records(p, results_dir)]
    parts = [f"### What holds\n\n{as_markdown(claims.table(records))}\n\n{claims.RULE}\n"]
    for profile in profiles:
        parts.append(f"### Profile `{profile}`\n")
        parts += _paper_tables(profile, results_dir) if load_records(profile, results_dir) else []
        parts += _tried(profile, results_dir)
    return "\n".join([*parts, tables.RULE + "\n"])


def _paper_tables(profile: str, results_dir: str | Path) -> list[str]:
    runs = load_runs(profile, results_dir)
    figure = f"results/figures/{profile}/main_results.png"
    compared = tables.heads_against_kmeans(load_records(profile, results_dir))
    return [
        f"{provenance(profile, results_dir)}\n",
        f"![ACC of each method by data set]({figure})\n",
        *(_brief(name, runs) for name in TABLES if _any_run(name, runs)),
        f"**k-means on the features in place of the cluster head**\n\n{as_markdown(compared)}\n",
        f"NMI, ARI and the rows that were not run: [`results/tables/{profile}`](results/tables/{profile}).\n",
    ]


TRIED = "Runs with other settings than the recipe's"
ABOUT_TRIED = "They are part of no table of the paper and decide no claim; in brackets what the recipe has."


def _tried(profile: str, results_dir: str | Path) -> list[str]:
    """The runs of a profile that differ from its recipes, if there are any."""
    records = load_tried(profile, results_dir)
    return [f"**{TRIED}.** {ABOUT_TRIED}\n\n{as_markdown(tables.tried(records))}\n"] if records else []


def _brief(name: str, runs: pd.DataFrame) -> str:
    """The rows of a table that were run, in ACC, without columns that say nothing."""
    frame = tables.table(name, runs, only_run=True)
    return f"**{TABLES[name].caption}: ACC**\n\n{as_markdown(frame.loc[:, (frame != '–').any()])}\n"


def _any_run(name: str, runs: pd.DataFrame) -> bool:
    """Whether a run says something in this table that the main one does not."""
    return name == "main_results" or len(set(runs.variant) & {row.variant for row in TABLES[name].rows} - {"cc"}) > 0
