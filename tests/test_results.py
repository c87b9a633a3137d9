import json
import subprocess

import pandas as pd
import pytest

from ccrepro import files, results
from ccrepro.errors import DataError
from ccrepro.files import atomic_write


def runs_of(**acc_by_variant):
    rows = [
        {"dataset": "digits", "variant": v.replace("_", "-"), "seed": s, "nmi": acc / 2, "acc": acc, "ari": acc / 4}
        for v, accs in acc_by_variant.items()
        for s, acc in enumerate(accs)
    ]
    return pd.DataFrame(rows, columns=["dataset", "variant", "seed", "nmi", "acc", "ari"])


@pytest.mark.parametrize(
    ("values", "text"), [([], "not run"), ([0.5], "0.500"), ([0.9, 0.8], "0.850 ± 0.071"), ([1, 1, 1], "1.000 ± 0.000")]
)
def test_mean_sd(values, text):
    assert results.mean_sd(values) == text


def test_main_table_prints_the_paper_beside_ours():
    frame = results.table("main_results", runs_of(cc=[0.9, 0.8], kmeans_pixels=[0.7])).set_index(["data set", "method"])
    digits = frame.loc[("Digits", "CC")]
    assert digits["ACC ours"] == "0.850 ± 0.071"
    assert digits["ACC reported"] == "–"
    assert digits["seeds"] == "2"
    assert frame.loc[("Digits", "k-means on pixels"), "ACC ours"] == "0.700"
    paper = {
        "CIFAR-10": ("0.705", "0.790", "0.637"),
        "CIFAR-100": ("0.431", "0.429", "0.266"),
        "STL-10": ("0.764", "0.850", "0.726"),
        "ImageNet-10": ("0.859", "0.893", "0.822"),
        "ImageNet-Dogs": ("0.445", "0.429", "0.274"),
        "Tiny-ImageNet": ("0.340", "0.140", "0.071"),
    }
    for dataset, values in paper.items():
        row = frame.loc[(dataset, "CC")]
        assert tuple(row[f"{m} reported"] for m in ("NMI", "ACC", "ARI")) == values
        assert row["ACC ours"] == "not run"
    assert frame.loc[("CIFAR-10", "k-means on pixels"), "ACC reported"] == "0.229"


def test_markdown_keeps_the_papers_digits():
    assert "| 0.030 " in results.markdown("augmentation", runs_of())


def test_data_sets_have_the_papers_counts():
    frame = results.data_sets()
    ours = frame[frame["samples reported"] != "–"]
    assert len(ours) == 6
    assert ours["samples reported"].astype(int).tolist() == ours["images ours"].tolist()
    assert ours["classes reported"].astype(int).tolist() == ours["classes ours"].tolist()


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("augmentation", "CIFAR-10", ("0.790", "0.690", "0.169")),
        ("augmentation", "ImageNet-10", ("0.893", "0.892", "0.177")),
        ("heads", "CIFAR-10", ("0.790", "0.782", "0.657")),
        ("heads", "ImageNet-10", ("0.893", "0.888", "0.892")),
    ],
)
def test_ablation_tables_print_the_paper(name, column, values):
    frame = results.table(name, runs_of())
    assert tuple(frame[frame["data set"] == column]["ACC reported"]) == values


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.81, 0.82], "in the order of the paper"),
        ([0.8, 0.81, 0.82], [0.9, 0.91, 0.92], "NOT in the order of the paper"),
        ([0.7, 0.9, 0.8], [0.75, 0.85, 0.79], "not told apart by these seeds"),
        ([0.9], [0.8, 0.81], "not enough runs"),
        ([0.9, 0.91], [], "not enough runs"),
    ],
)
def test_order_is_judged_by_the_rule(high, low, verdict):
    notes = results.order_notes("heads", runs_of(cc=high, cluster_only=low))
    assert notes[1].endswith(f": {verdict}.")
    assert notes[-1] == results.ORDER_RULE


def test_tables_are_written_in_three_forms(root):
    results.save_table("heads", runs_of(cc=[0.9, 0.8]), "demo")
    folder = root / "results/tables/demo"
    assert "| 0.850 ± 0.071" in (folder / "heads.md").read_text()
    read = pd.read_csv(folder / "heads.csv", dtype=str)
    assert read.loc[0, "ACC ours"] == "0.850 ± 0.071"
    latex = (folder / "heads.tex").read_text()
    assert r"0.850 $\pm$ 0.071" in latex
    assert latex.count(r"\\") == len(read) + 1


def test_readme_section_is_replaced_and_nothing_else(root):
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    new = results.readme_with_results(text)
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert "No run yet" in new
    assert results.readme_with_results(new) == new


def test_comparison_with_the_last_commit(root):
    path = "results/runs/demo/digits/cc-seed0.json"
    record = {"dataset": "digits", "variant": "cc", "seed": 0, "scores": {"nmi": 0.5, "acc": 0.9, "ari": 0.5}}
    atomic_write(root / path, json.dumps(record))
    assert "–" in results.compare("demo")  # not a clone
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "."]):
        subprocess.run(git + command, check=True)
    record["scores"]["acc"] = 0.95
    atomic_write(root / path, json.dumps(record))
    assert results.compare("demo").split()[-4:] == ["demo/digits/cc-seed0", "0.9500", "0.9000", "+0.0500"]
    assert len(files.commit()) == 40


def test_damaged_record_is_named(root):
    atomic_write(root / "results/runs/demo/digits/cc-seed0.json", "{")
    with pytest.raises(DataError, match=r"cc-seed0.json is not JSON"):
        results.load_runs("demo")
