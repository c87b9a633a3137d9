"""What a report notebook shows: the tables, figures and sentences of one preset's runs, a call each."""

from collections.abc import Sequence

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from ccrepro.config import Config
from ccrepro.data import at_hand, here, load
from ccrepro.data.registry import DATASETS
from ccrepro.recipes import suitable
from ccrepro.reproduce import claims, figures, tables
from ccrepro.reproduce.notebooks import check_injected
from ccrepro.reproduce.records import Record, as_runs, find_records, load_records, provenance

NONE = "*Nothing to show here: no such runs, or the data set is not on this machine.*"


class Report:
    """The runs of a preset. What is drawn and tabulated is saved too, below ``out_dir``. Where nothing can be drawn,
    a line says so.

    cells: IPython's ``In``, to find mistyped parameters. Raises `ConfigError` for these, and where there is no run.
    """

    def __init__(
        self,
        cells: Sequence[str],
        preset: str,
        results_dir: str = "",
        out_dir: str = "",
        datasets: Sequence[str] = (),
        seeds: Sequence[int] = (),
    ):
        check_injected(cells)
        self.preset, self.out_dir = preset, out_dir
        self.records = load_records(preset, results_dir, datasets, seeds)
        self.runs = as_runs(self.records)

    def table(self, name: str) -> Markdown:
        """A table of the paper beside ours, in ACC, and what of it nobody ran. The saved files have NMI and ARI too."""
        tables.save_table(name, self.records, self.preset, self.out_dir)
        return Markdown(f"{tables.formatted(name, self.runs)}\n\n{tables.missing(name, self.runs)}")

    def bars(self, name: str) -> Figure | Markdown:
        """A table's rows as bars."""
        return self._saved(figures.ablation(name, self.runs), name)

    def cost(self) -> Figure | Markdown:
        """ACC by hours of training."""
        return self._saved(figures.cost(self.runs), "cost")

    def figure(self, name: str, variant: str = "cc") -> Figure | Markdown:
        """A figure of `figures`, of a variant's runs on the first data set that has any."""
        drawn = getattr(figures, name)(find_records(self.records, variant))
        return self._saved(drawn, name if variant == "cc" else f"{name}_{variant.replace('-', '_')}")

    def streaming(self) -> Figure | Markdown:
        """What was measured on streams."""
        return self._saved(figures.streaming(self.streamed()), "streaming")

    def streamed(self) -> list[Record]:
        """The runs of the full method that were measured on a stream, on the first data set that has any."""
        return find_records([r for r in self.records if "streaming" in r], "cc")

    def examples(self, kind: str, data_dir: str = "") -> Figure | Markdown:
        """Images that the first run of the full method is surest of and right ("right"), surest of and "wrong", or
        undecided on ("between")."""
        own = find_records(self.records, "cc")[:1]
        return self._saved(figures.examples(own, kind, at_hand(own, data_dir)), f"examples_{kind}")

    def views(self, data_dir: str = "") -> Figure | Markdown:
        """Images of the first data set and two augmented views of each."""
        from ccrepro.batches import first_pairs  # late, as torch: most reports need none

        own = find_records(self.records, "cc")[:1]
        if not own or not here(own[0]["dataset"], data_dir):
            return Markdown(NONE)
        data = load(own[0]["dataset"], data_dir)
        shown = first_pairs(data, Config.stored(own[0]["config"]))
        return self._saved(figures.view_pairs(f"{data.name}: x and two draws of T(x)", *shown, n=8), "views")

    def overview(self) -> Markdown:
        """All methods of Table 2, and below each that we ran our number."""
        return Markdown(tables.as_markdown(tables.overview(self.runs)))

    def against_kmeans(self) -> Markdown:
        """The cluster head beside k-means on the instance head's output, of trained and of untrained networks."""
        return Markdown(tables.as_markdown(tables.heads_against_kmeans(self.records)))

    def unseen(self) -> Markdown:
        """ACC on images that runs left out."""
        return Markdown(tables.as_markdown(tables.on_unseen(self.records)))

    def assignment(self) -> Markdown:
        """How a stream was assigned, by the number of images that come at once: medians over the seeds."""
        parts = [pd.DataFrame(r["streaming"]["assign"]) for r in self.streamed()]
        found = pd.concat(parts).groupby("batch_size")[["same", "milliseconds"]].median().reset_index()
        found.columns = ["images at once", "same cluster", "milliseconds"]
        return Markdown(found.to_markdown(index=False, floatfmt=("", ".3f", ".1f")))

    def claims(self, name: str) -> Markdown:
        """What our runs say of the claims that a table or figure rests on."""
        return Markdown(claims.told(self.records, name))

    def origin(self, name: str) -> Markdown:
        """What the runs of a table cost, and how to make them for another data set."""
        rows = dict.fromkeys(row.variant for row in tables.TABLES[name].rows)
        variants = [variant for variant in rows if variant in suitable(self.preset)]
        own = [r for r in self.records if r["variant"] in rows]
        command = f"ccrepro reproduce --preset {self.preset} --datasets NAME --variants {' '.join(variants)}"
        told = provenance(own) if own else "Nobody ran any of this."
        return Markdown(f"{told} For another data set: `{command}`.")

    def networks(self) -> Markdown:
        """The networks that were trained: weights, hours of a run, ACC."""
        from ccrepro.model import build

        found = tables.cost(self.runs)
        first = {r["config"]["backbone"]: r["config"] for r in self.records if not r["config"]["baseline"]}
        count = {name: sum(w.numel() for w in build(Config.stored(c)).parameters()) for name, c in first.items()}
        found = found.assign(
            dataset=[DATASETS[name].title for name in found.dataset],
            hours=found.hours.map("{:.2f}".format),
            weights=found.backbone.map(count).map("{:,}".format),
        )
        columns = {"dataset": "data set", "backbone": "network", "weights": "weights", "epochs": "epochs"}
        columns |= {"hours": "hours of a run", "ours": "ACC"}
        return Markdown(tables.as_markdown(found[[*columns]].rename(columns=columns)))

    def _saved(self, drawn: Figure | None, name: str) -> Figure | Markdown:
        return figures.save(drawn, name, self.preset, self.out_dir) or Markdown(NONE)
