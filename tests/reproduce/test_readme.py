import json
import shutil

import pytest
from in_place import ROOT, run_all
from made_records import records, write

from ccrepro.cli import main
from ccrepro.config import Config
from ccrepro.model import build
from ccrepro.recipes import run_name
from ccrepro.reproduce import claims, pool, readme, tables
from ccrepro.runs.weights import load_model, save_model

TEXT = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"


@pytest.fixture
def finished(root, monkeypatch):
    """Two finished runs in a clone, and notebooks that are executed without a kernel."""
    monkeypatch.setattr(pool, "run_all", run_all)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "README.md").write_text(TEXT)
    for seed, acc in enumerate((0.123, 0.321)):
        place(root, seed, scores={"nmi": 0.5, "acc": acc, "ari": 0.5})
    return root


def place(root, seed, overrides=None, **changes):
    """Put a published record, with changes, where that of a finished run lies."""
    record = json.loads((ROOT / f"results/runs/demo/digits/kmeans-pixels-seed{seed}.json").read_text())
    config, overrides = record["config"] | (overrides or {}), overrides or {}
    path = root / f"runs/{run_name(Config(**config))}/run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes | {"config": config, "overrides": overrides}))


def test_what_is_published_follows_from_finished_runs(finished):
    place(finished, 1, {"sample": 500}, scores={"nmi": 0.5, "acc": 0.9, "ari": 0.5})
    assert main(["publish"]) == 0
    results = finished / "results"
    names = {"kmeans-pixels-seed0", "kmeans-pixels-seed1", "kmeans-pixels-sample=500-seed1"}
    assert {path.stem for path in results.rglob("runs/**/*.json")} == names
    for path in (results / "README.md", results / "tables/demo/main_results.md"):
        assert "0.222 ± 0.140 (2)" in path.read_text()
    assert (results / "figures/demo/main_results.png").exists()
    assert {path.stem for path in results.glob("notebooks/demo/*")} == {"00_table1_datasets", "03_table2_main_results"}
    table = (results / "tables/demo/main_results.md").read_text()
    assert "sample=500" not in table  # runs by the recipe go before
    text = (finished / "README.md").read_text()
    assert "| Digits        | –            | –  " in text  # no run of the full method
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert readme.with_results(text) == text


def test_weights_are_published_of_the_full_methods_seed_0_where_they_are_small(finished, monkeypatch):
    for name in ("cc-seed0", "cc-seed1"):
        record = json.loads((ROOT / f"results/runs/demo/digits/{name}.json").read_text())
        path = finished / f"runs/demo/digits/{name}/model.safetensors"
        save_model(build(Config(**record["config"]), 1), Config(**record["config"]), path)
        path.with_name("run.json").write_text(json.dumps(record))
    monkeypatch.setattr(readme.plan, "render", lambda *arguments, **more: None)
    for largest, published in ((1000, []), (10_000_000, ["weights/demo/digits.safetensors"])):
        monkeypatch.setattr(readme, "MODEL_BYTES", largest)
        assert main(["publish"]) == 0
        results = finished / "results"
        assert [str(path.relative_to(results)) for path in results.rglob("*.safetensors")] == published
    assert load_model(results / published[0])[1].seed == 0


@pytest.mark.parametrize("commit", ["c" * 40 + "-dirty", "unknown"])
def test_what_no_committed_code_has_made_is_not_published(finished, capsys, commit):
    place(finished, 1, commit=commit)
    assert main(["publish"]) == 2
    assert "kmeans-pixels-seed1 was made by code" in capsys.readouterr().err
    assert not (finished / "results").exists()
    assert (finished / "README.md").read_text() == TEXT


def test_index_has_every_claim_once_and_only_rows_that_were_run(root):
    write(root / "results", records(cc=[0.9, 0.8], views_one=[0.5]))
    write(root / "results", records("cifar10", "paper", kmeans_pixels=[0.2, 0.2]))
    run, holds, table, views, _, _, _ = readme.index().split("\n## ")[1:]
    assert "| Digits        | –            | 0.850 ± 0.071 (2) " in run
    assert all(holds.count(claim.sentence) == 1 for claim in claims.CLAIMS)
    assert "| 0.850 ± 0.071 (2) " in table
    assert "| T(x) and x    | –          | 0.500 (1) " in views
    assert tables.TABLES["heads"].caption not in readme.index()
    assert "| 0.200 ± 0.000 (2) | −0.029       | below" in table
    assert "| STL-10 " not in table


def test_the_readme_shows_the_run_nearest_to_the_papers_settings():
    of_preset = {p: records("cifar10", p, cc=accs) for p, accs in {"laptop": [0.5, 0.5], "fast": [0.7]}.items()}
    of_preset["fast"][0] |= {"hardware": {"gpu": "H200", "threads": 1}, "seconds": 36_000.0}
    of_preset["demo"] = [r | {"overrides": {"epochs": 1}} for r in records(cc=[0.9])]
    shown = readme.summary(of_preset).set_index("data set")
    assert shown.loc["CIFAR-10"].tolist() == ["0.790", "0.700 (1)", "10 h, H200", readme.NEAREST["fast"]]
    assert shown.loc["Digits"].tolist() == ["–", "–", "–", "not run yet: needs a GPU"]  # a departure from the recipe
    assert len(shown) == 7
    assert (readme.index() + TEXT).count(tables.RULE) == 1
