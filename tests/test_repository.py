"""What is written down twice must agree: README and results, environment.yml and pyproject.toml, help and Makefile."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from ccrepro import errors
from ccrepro.data import load
from ccrepro.evaluate import evaluate
from ccrepro.metrics import scores
from ccrepro.reproduce import notebooks, readme, records, tables
from ccrepro.runs import finished
from ccrepro.runs.weights import load_model

ROOT = Path(__file__).parents[1]
STALE = "run `make publish`"


def tell(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_readme_and_index_show_the_published_results():
    text = (ROOT / "README.md").read_text()
    assert readme.with_results(text) == text, STALE
    assert readme.index() == (ROOT / "results/README.md").read_text(), STALE


@pytest.mark.parametrize("path", sorted((ROOT / "results/tables").rglob("*.md")), ids=lambda p: "/".join(p.parts[-2:]))
def test_tables_follow_from_the_records(path):
    runs = records.as_runs(records.load_records(path.parent.name))
    assert tables.page(path.stem, runs) == path.read_text(), STALE


def test_every_published_record_counts_and_was_made_by_committed_code():
    counted = [record for made in records.by_preset(ROOT / "results").values() for record in made]
    assert len(counted) == len(sorted((ROOT / "results/runs").rglob("*.json")))
    assert all(re.fullmatch("[0-9a-f]{40}", record["commit"]) for record in counted)


def test_demo_has_three_seeds_and_beats_kmeans():
    runs = records.as_runs(records.load_records("demo"))
    acc = runs.groupby("variant").acc
    assert (acc.size() >= 3).all()
    assert acc.mean()["cc"] >= 0.955
    assert acc.mean()["cc"] > acc.mean()["kmeans-pixels"] + 0.15


def test_results_hold_what_was_run_and_one_form_of_it():
    tracked = [Path(name) for name in tell("git", "ls-files", "results").splitlines() if (ROOT / name).exists()]
    assert tracked
    assert {path.suffix for path in tracked} <= {".json", ".md", ".csv", ".png", ".ipynb", ".safetensors"}
    of_presets = {path.parts[2] for path in tracked if path.parts[1] in ("tables", "figures", "notebooks")}
    assert of_presets - {"bench"} == set(records.by_preset())
    told = tell("git", "grep", "-c", "not run").splitlines()
    assert sum(int(line.rsplit(":")[-1]) for line in told) < 30, told


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "results/weights").rglob("*.safetensors")), ids=lambda path: path.stem)
def test_published_weights_score_what_their_record_says(path):
    if path.stem != "digits" and "CCREPRO_DATA" not in os.environ:
        pytest.skip("needs the data set in $CCREPRO_DATA")
    name = f"{path.parent.name}/{path.stem}/cc-seed0"
    model, config, _ = load_model(path)
    data = load(config.dataset)
    found = scores(data.labels, evaluate(config, data, model).labels_pred)
    record = finished.read(ROOT / f"results/runs/{name}.json", name)
    assert found == pytest.approx(record["scores"], abs=0.002)  # half precision moves a few images


def test_executed_copies_are_small_and_those_of_the_lesson_of_todays_notebook():
    for path in (ROOT / "results/notebooks").rglob("*.ipynb"):
        assert path.stat().st_size < 1_000_000, path.name  # GitHub shows no larger ones
        assert notebooks.WIDGET not in path.read_text()
    for name in readme.LESSONS:
        book, executed = (
            nbformat.read(ROOT / folder / f"{name}.ipynb", as_version=4)
            for folder in ("notebooks", "results/notebooks/demo")
        )
        made = [c.source for c in executed.cells if not c.source.startswith("# Parameters\n")]
        assert made == [c.source for c in book.cells], STALE


def test_dependencies_stand_in_one_list_with_why_and_without_where_from():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    text = (ROOT / "pyproject.toml").read_text()
    python = tomllib.loads(text)["project"]["requires-python"]
    assert environment["dependencies"] == [f"python{python}", "pip", {"pip": ["-r requirements.lock"]}]
    assert f"--python-version {python.strip('>=')} " in (ROOT / "Makefile").read_text()
    assert [line for line in text.splitlines() if re.match(r'    "[\w-]+>=', line) and "  # " not in line] == []
    assert tell("git", "grep", "-lEi", "index[-_]url[ =:]+[^ ]*:|pypi[.]|pythonho[s]ted|/simple[/]|find[-]links") == ""


def test_lock_has_every_dependency_by_version_and_hash_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    versions = dict(re.findall(r"^([\w-]+)==(\S+) .*\n    --hash=sha256:[0-9a-f]{64}\b", lock, flags=re.M))
    assert set(re.findall(r"^[^ #=]+", lock, flags=re.M)) == set(versions)
    assert "://" not in lock
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        assert needed.specifier.contains(versions[needed.name.lower()]), f"{needed}: run `make upgrade`"


@pytest.mark.slow
def test_training_and_scoring_need_none_of_the_packages_for_reports(tmp_path):
    """As on a machine that has little more than PyTorch."""
    needed = {"torch", "torchvision", "numpy", "scipy", "scikit-learn", "joblib", "pandas", "safetensors", "pyyaml",
              "pydantic", "pillow", "tqdm", "cyclopts", "filelock"}  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = {Requirement(text).name.lower() for text in project["dependencies"]} - needed
    packages = importlib.metadata.packages_distributions().items()
    absent = [module for module, names in packages if others & {name.lower() for name in names}]
    assert {"papermill", "matplotlib", "openTSNE", "pooch"} <= {*absent}
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); from ccrepro.cli import main; "
        "sys.exit(main(['train', 'digits', '--epochs', '1', '--sample', '200', '--runs-dir', '.']) or "
        "main(['evaluate', 'demo/digits/cc-1ep-sample=200-seed0']))"
    )
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", program], **settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_does_what_readers_are_told():
    shown = set(re.findall(r"^  make ([\w-]+)", tell("make", "help"), flags=re.M))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    told = {target for page in pages for target in re.findall(r"(?m)(?:^|`)make ([a-z-]+)", page.read_text())}
    assert {"reproduce", "test"} <= told <= shown
    line = tell("make", "-n", "reproduce", "PRESET=paper", "DATASETS=cifar10 stl10", "SEEDS=3 4")
    options = "--preset paper --seeds 3 4 --jobs 0 --datasets cifar10 stl10"
    assert f"ccrepro reproduce {options}" in " ".join(line.split())


def test_docs_explain_every_exit_code():
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs/results.md").read_text(), flags=re.M)
    told = {int(code) for row in rows for code in row.split(",")}
    assert {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")} <= told


def test_lower_layers_import_no_higher_ones():
    assert "1 kept, 0 broken" in tell(Path(sys.executable).with_name("lint-imports"), "--no-cache")
