import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from records import HARDWARE, record, records

from ccrepro import tables
from ccrepro.config import recipe
from ccrepro.results import as_runs


def runs_of(dataset="digits", **accs):
    return as_runs(records(dataset, **accs))


def test_main_table_prints_the_paper_beside_ours():
    frame = tables.table("main_results", runs_of(cc=[0.9, 0.8], kmeans_pixels=[0.7])).set_index(["data set", "method"])
    digits = frame.loc[("Digits", "CC")]
    assert digits.tolist() == ["–", "0.850 ± 0.071 (2)", "–", "–"]
    assert frame.loc[("Digits", "k-means on pixels"), "ours"] == "0.700 (1)"
    paper = dict(zip(("CIFAR-10", "CIFAR-100", "STL-10", "ImageNet-10", "ImageNet-Dogs", "Tiny-ImageNet"),
                     ("0.790", "0.429", "0.850", "0.893", "0.429", "0.140"), strict=True))  # fmt: skip
    for dataset, acc in paper.items():
        assert frame.loc[(dataset, "CC")].tolist() == [acc, "not run", "–", "not run"]
    assert frame.loc[("CIFAR-10", "k-means on pixels"), "reported"] == "0.229"
    assert frame.loc[("STL-10", "agglomerative on pixels"), "reported"] == "0.332"


@pytest.mark.parametrize(("metric", "printed"), [("nmi", "0.705"), ("acc", "0.790"), ("ari", "0.637")])
def test_every_metric_has_its_reported_number(metric, printed):
    frame = tables.table("main_results", runs_of("cifar10", cc=[0.8, 0.8]), metric, only_run=True)
    assert frame.reported.tolist() == [printed]
    share = {"nmi": 2, "acc": 1, "ari": 4}[metric]
    assert frame.ours.tolist() == [f"{0.8 / share:.3f} ± 0.000 (2)"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.8], "not enough runs"),
        ([0.79, 0.79], "agrees"),
        ([0.80, 0.80], "agrees"),  # 0.01 away, the last that is near
        ([0.801, 0.801], "above"),
        ([0.779, 0.779], "below"),
        ([0.84, 0.80, 0.82], "agrees"),  # sd .02: two standard errors of the difference are .046
        ([0.86, 0.82, 0.84], "above"),
        ([0.74, 0.72, 0.73], "below"),
    ],
)
def test_verdict_follows_the_rule(values, verdict):
    assert tables.verdict(0.79, np.array(values)) == verdict
    frame = tables.table("main_results", runs_of("cifar10", cc=values), only_run=True)
    assert frame.verdict.tolist() == [verdict]
    assert frame.difference.tolist() == [f"{np.mean(values) - 0.79:+.3f}".replace("-", "−")]


def test_verdict_at_two_standard_errors_of_one_run_against_n():
    for n in (2, 3, 10):
        ours = 0.5 + 0.05 * np.where(np.arange(n) % 2, 1, -1) * np.linspace(0.5, 1, n)
        reach = 2 * ours.std(ddof=1) * math.sqrt((n + 1) / n)
        assert tables.verdict(ours.mean() - reach + 1e-6, ours) == "agrees"
        assert tables.verdict(ours.mean() - reach - 1e-6, ours) == "above"
        assert tables.verdict(ours.mean() + reach + 1e-6, ours) == "below"


def test_a_sample_of_the_data_set_is_told():
    runs = runs_of("cifar10", spectral_pixels=[0.2]).assign(n_images=10_000)
    assert tables.table("main_results", runs, only_run=True).ours[0] == "0.200 (1; 10,000 of 60,000 images)"


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("augmentation", "CIFAR-10", ("0.790", "0.690", "0.169")),
        ("augmentation", "ImageNet-10", ("0.893", "0.892", "0.177")),
        ("heads", "CIFAR-10", ("0.790", "0.782", "0.657")),
        ("heads", "ImageNet-10", ("0.893", "0.888", "0.892")),
        ("backbones", "CIFAR-10", ("0.736", "0.790", "0.747")),
        ("backbones", "ImageNet-10", ("0.889", "0.893", "0.895")),
    ],
)
def test_ablation_tables_print_the_paper(name, column, values):
    frame = tables.table(name, runs_of())
    assert tuple(frame[frame["data set"] == column].reported) == values


def test_what_the_paper_has_no_number_for_has_a_row_where_we_ran():
    frame = tables.table("heads", runs_of("cifar10", shared_head=[0.5, 0.6])).set_index(["data set", "method"])
    assert frame.loc[("CIFAR-10", "one shared head")].tolist() == ["–", "0.550 ± 0.071 (2)", "–", "–"]
    assert ("CIFAR-10", "no entropy term") not in frame.index


def test_backbones_tell_the_small_network_from_resnet34():
    runs = runs_of(cc=[0.9])
    frame = tables.table("backbones", runs, only_run=True)
    assert frame.method.tolist() == ["small (ours, for 8×8 pixels)"]
    frame = tables.table("backbones", runs.assign(dataset="cifar10", backbone="resnet34"), only_run=True)
    assert frame[["method", "reported"]].to_numpy().tolist() == [["ResNet34", "0.790"]]


def test_overview_has_all_18_methods_and_ours_below_theirs():
    frame = tables.overview(runs_of("cifar10", kmeans_pixels=[0.2, 0.22], cc=[0.8])).set_index("method")
    assert len([m for m in frame.index if not m.endswith(", ours")]) == 18
    assert frame.loc["K-means", "CIFAR-10"] == "0.229"
    assert frame.loc["K-means, ours", "CIFAR-10"] == "0.210 ± 0.014"
    assert frame.loc["CC, ours", "STL-10"] == "not run"
    assert frame.loc["IIC", "ImageNet-10"] == "–"
    assert frame.loc["PICA", "Tiny-ImageNet"] == "0.098"
    assert list(frame.index)[:2] == ["K-means", "K-means, ours"]


def test_markdown_keeps_the_papers_digits():
    assert "| 0.030 " in tables.markdown("augmentation", runs_of(), "ari")


def test_tables_are_written_in_three_forms(root):
    shown = tables.save_table("heads", runs_of(cc=[0.9, 0.8]), "demo")
    folder = root / "results/tables/demo"
    assert (folder / "heads.md").read_text() == shown
    assert "| 0.850 ± 0.071 (2)" in shown
    assert shown.endswith(tables.RULE + "\n")
    read = pd.read_csv(folder / "heads.csv", dtype=str, keep_default_na=False).set_index(
        ["metric", "data set", "method"]
    )
    assert read.loc[("ACC", "Digits", "both heads"), "ours"] == "0.850 ± 0.071 (2)"
    assert read.loc[("NMI", "Digits", "both heads"), "ours"] == "0.425 ± 0.035 (2)"
    assert read.loc[("ARI", "CIFAR-10", "cluster head"), "reported"] == "0.499"
    latex = (folder / "heads.tex").read_text()
    assert r"0.850 $\pm$ 0.071 (2)" in latex
    assert latex.count(r"\\") == len(read) + 3  # and a line of names for each metric
    assert latex.isascii()


def test_evolution_sets_equal_shares_of_training_beside_each_other():
    at = {"x": [0.0], "scores": {"nmi": 0.25}, "n_clusters_used": 3}
    made = records(cc=[0.5, 0.6])
    for r in made:
        r["evolution"] = [at | {"epoch": 0}, {"epoch": 1}, at | {"epoch": 5}, at | {"epoch": 50}]
    frame = tables.evolution(made).set_index("epoch, ours")
    assert frame["NMI reported (ImageNet-10)"].to_dict() == {"0": "0.183", "5": "0.737", "50": "–"}
    assert frame.loc["5"].tolist() == ["10%", "100", "0.737", "0.250 ± 0.000 (2)", "3.0"]


def test_heads_against_kmeans_shows_the_untrained_network_too():
    made = records(cc=[0.9, 0.8], untrained=[0.1])
    frame = tables.heads_against_kmeans(made)
    assert frame.network.tolist() == ["trained", "untrained"]
    assert frame["ACC, cluster head"].tolist() == ["0.850 ± 0.071 (2)", "0.100 (1)"]


def test_runs_with_other_settings_are_shown_with_what_differs():
    own = {"dataset": "cifar10", "profile": "fast", "n_images": 60_000}
    short, warm = (dataclasses.asdict(recipe("cifar10", "fast", **change)) for change in
                   ({"epochs": 90}, {"epochs": 90, "instance_temperature": 0.2}))  # fmt: skip
    gpu = HARDWARE | {"gpu": "a GPU"}
    pieces = [{"seconds": 100.0}, {"seconds": 80.0}]
    runs = [record("cc", 0.6 + 0.1 * s, s, config=short, hardware=gpu, pieces=pieces, **own) for s in range(2)]
    runs += [record("cc", 0.5, config=warm, seconds=60.0, **own)]
    frame = tables.tried(runs)
    assert frame["differs (recipe)"].tolist() == [
        "epochs 90 (400)",
        "instance_temperature 0.2 (0.5), epochs 90 (400)",
    ]
    assert frame["ACC"].tolist() == ["0.650 ± 0.071 (2); reported 0.790", "0.500 (1); reported 0.790"]
    assert frame["NMI"][1] == "0.250 (1); reported 0.705"
    assert frame["minutes of a run"].tolist() == ["3.0, a GPU", "1.0, 1 of 2 cores of a CPU"]
    assert tables.tried([record("no-entropy", 0.5, config=short, **own)])["ACC"][0] == "0.500 (1)"
