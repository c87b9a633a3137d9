import numpy as np
import pandas as pd
import pytest
from made_records import records

from ccrepro.reproduce import tables
from ccrepro.reproduce.records import as_runs


def runs_of(dataset="digits", **accs):
    return as_runs(records(dataset, **accs))


def test_only_what_was_run_has_a_row_and_one_line_names_the_rest():
    runs = pd.concat([runs_of(cc=[0.9, 0.8], kmeans_pixels=[0.7]), runs_of("stl10", agglomerative_pixels=[0.3, 0.3])])
    assert tables.table("main_results", runs).to_numpy().tolist() == [
        ["Digits", "k-means on pixels", "–", "0.700 (1)", "–", "–"],
        ["Digits", "CC", "–", "0.850 ± 0.071 (2)", "–", "–"],
        ["STL-10", "agglomerative on pixels", "0.332", "0.300 ± 0.000 (2)", "−0.032", "below"],
    ]
    told = tables.missing("main_results", runs)
    assert "CIFAR-10 (all); CIFAR-100 (all); STL-10 (k-means on pixels, spectral on pixels, NMF and" in told
    assert "\n" not in told
    whole = [runs_of(d, cc=[0.9], views_one=[0.8], views_none=[0.7]) for d in ("cifar10", "imagenet10")]
    assert tables.missing("augmentation", pd.concat(whole)) == ""
    sampled = runs_of("cifar10", spectral_pixels=[0.2]).assign(n_images=10_000)
    assert tables.table("main_results", sampled).ours[0] == "0.200 (1; 10,000 of 60,000 images)"


def test_what_departs_from_a_recipe_has_rows_of_its_own():
    """No mean mixes schedules. In Table 2 they stand in for a recipe that nobody ran, in an ablation beside it."""
    short = [{**r, "overrides": {"image_size": 16, "epochs": 10}} for r in records("cifar10", cc=[0.4, 0.42])]
    made = short + records("cifar10", cc=[0.52, 0.54])
    for runs, rows in ((made, [["CC", "0.530 ± 0.014 (2)"]]), (short, [["CC (10ep-16px)", "0.410 ± 0.014 (2)"]])):
        assert tables.table("main_results", as_runs(runs))[["method", "ours"]].to_numpy().tolist() == rows
    ablated = [r | {"overrides": short[0]["overrides"]} for r in records("cifar10", shared_head=[0.3])]
    frame = tables.table("heads", as_runs([*made, *ablated]))
    assert frame.method.tolist() == ["both heads (10ep-16px)", "one shared head (10ep-16px)"]
    assert "(CC" not in tables.missing("main_results", as_runs(short))  # it was run, if in a short form
    assert tables.overview(as_runs(made)).set_index("method").loc["CC, ours", "CIFAR-10"] == "0.530 ± 0.014"
    lines = tables.comparison(made, made).splitlines()
    assert [line.split()[1:3] for line in lines[2:]] == [["cc", "(10ep-16px)"], ["cc", "0.530"]]
    assert tables.heads_against_kmeans(made).network.tolist() == ["trained"]
    assert tables.heads_against_kmeans(short).network.tolist() == ["trained (10ep-16px)"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.8], "not enough runs"),
        ([0.80, 0.80], "agrees"),  # 0.01 away, the last that is near
        ([0.801, 0.801], "above"),
        ([0.779, 0.779], "below"),
        ([0.84, 0.80, 0.82], "agrees"),  # sd .02: two standard errors of the difference are .046
        ([0.86, 0.82, 0.84], "above"),
        ([0.74, 0.72, 0.73], "below"),
    ],
)
def test_verdict_follows_the_rule(values, verdict):
    frame = tables.table("main_results", runs_of("cifar10", cc=values))
    assert frame.verdict.tolist() == [verdict] == [tables.verdict(0.79, np.array(values))]
    assert frame.difference.tolist() == [f"{np.mean(values) - 0.79:+.3f}".replace("-", "−")]


@pytest.mark.parametrize(
    ("name", "cifar10", "imagenet10"),
    [
        ("augmentation", ["0.790", "0.690", "0.169"], ["0.893", "0.892", "0.177"]),
        ("heads", ["0.790", "0.782", "0.657", "–", "–"], ["0.893", "0.888", "0.892", "–", "–"]),
        ("backbones", ["0.736", "0.790", "0.747"], ["0.889", "0.893", "0.895"]),
    ],
)
def test_ablation_tables_print_the_paper(name, cifar10, imagenet10):
    accs = {row.variant.replace("-", "_"): [0.5] for row in tables.TABLES[name].rows if row.printed or name == "heads"}
    runs = pd.concat([runs_of(dataset, **accs) for dataset in ("cifar10", "imagenet10")])
    runs["backbone"] = runs.variant.where(runs.variant.str.startswith("resnet"), "resnet34")
    assert tables.table(name, runs).reported.tolist() == cifar10 + imagenet10


def test_overview_has_all_18_methods_and_ours_below_theirs():
    frame = tables.overview(runs_of("cifar10", kmeans_pixels=[0.2, 0.22], cc=[0.8])).set_index("method")
    assert len([m for m in frame.index if not m.endswith(", ours")]) == 18
    assert list(frame.index)[:2] == ["K-means", "K-means, ours"]
    assert frame["CIFAR-10"].iloc[:2].tolist() == ["0.229", "0.210 ± 0.014"]
    assert frame.loc["CC, ours", "STL-10"] == frame.loc["IIC", "ImageNet-10"] == "–"
    assert frame.loc["PICA", "Tiny-ImageNet"] == "0.098"
    assert frame.loc["CC"].tolist() == ["0.790", "0.429", "0.850", "0.893", "0.429", "0.140"]


def test_tables_are_saved_in_every_metric_and_come_in_other_formats(root):
    shown = tables.save_table("augmentation", records("imagenet10", views_none=[0.9, 0.7]), "demo")
    folder = root / "results/local/tables/demo"
    assert (folder / "augmentation.md").read_text() == shown
    assert "| 0.030 " in shown
    read = pd.read_csv(folder / "augmentation.csv", dtype=str).set_index("metric")
    assert read.ours.to_dict() == {"NMI": "0.400 ± 0.071 (2)", "ACC": "0.800 ± 0.141 (2)", "ARI": "0.200 ± 0.035 (2)"}
    assert read.reported.to_dict() == {"NMI": "0.063", "ACC": "0.177", "ARI": "0.030"}
    latex, csv = (
        tables.formatted("backbones", runs_of(cc=[0.7, 0.72], resnet18=[0.6]), kind=kind) for kind in ("latex", "csv")
    )
    assert "Digits & small (ours, for 8×8 pixels) & – & 0.710 ± 0.014 (2) & – & –" in latex
    assert csv.splitlines()[1] == 'Digits,"small (ours, for 8×8 pixels)",–,0.710 ± 0.014 (2),–,–'
    assert tables.table("backbones", runs_of(cc=[0.7])).empty  # nothing to compare it with


def test_heads_against_kmeans_shows_the_untrained_network_too():
    frame = tables.heads_against_kmeans(records(cc=[0.9, 0.8], untrained=[0.1]))
    assert frame.network.tolist() == ["trained", "untrained"]
    assert frame["ACC, cluster head"].tolist() == ["0.850 ± 0.071 (2)", "0.100 (1)"]


def test_unseen_images_have_a_row_for_each_way_of_leaving_images_out():
    made = records("cifar10", "paper", cc=[0.5, 0.6, 0.7])
    for r, acc in zip(made[:2], (0.5, 0.7), strict=True):
        r |= {"overrides": {"sample": 50_000}, "n_images": 50_000}
        r["streaming"] = {"unseen": {"n_images": 10_000, "images_per_second": 600.4, "acc": acc, "acc_seen": 0.8}}
    made[2]["streaming"] = {"assign": {}}
    (row,) = tables.on_unseen(made).to_numpy().tolist()
    assert row[:3] == ["CIFAR-10 (sample=50000)", "50,000", "0.800 ± 0.000 (2)"]
    assert row[3:] == ["10,000", "0.600 ± 0.141 (2)", "600"]


def test_yours_stand_beside_the_published_and_the_papers():
    text = tables.comparison(records("cifar10", cc=[0.8], no_entropy=[0.5]), records("cifar10", cc=[0.7, 0.7]))
    lines = [" ".join(line.split()) for line in text.splitlines()[2:]]
    assert lines == ["CIFAR-10 cc 0.800 (1) 0.700 ± 0.000 (2) 0.790", "CIFAR-10 no-entropy 0.500 (1) – –"]
