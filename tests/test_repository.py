"""What is written down twice must agree: README and results, environment.yml and pyproject.toml, help and Makefile."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from ccrepro import errors, report, results, run, tables
from ccrepro.config import RECIPES, recipe

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "results/runs").rglob("*.json"))


def test_readme_shows_the_published_results():
    text = (ROOT / "README.md").read_text()
    assert report.readme_with_results(text) == text, "README.md is stale: run `make tables`"


@pytest.mark.parametrize("name", tables.TABLES)
@pytest.mark.parametrize("profile", [p for p in RECIPES if results.load_records(p)])
def test_tables_follow_from_the_run_records(profile, name):
    saved = (ROOT / f"results/tables/{profile}/{name}.md").read_text()
    assert tables.with_rule(name, results.load_runs(profile)) == saved, "run `make tables`"


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: "/".join(p.parts[-3:]))
def test_run_records_are_of_todays_recipes(path):
    record = json.loads(path.read_text())
    config = recipe(record["dataset"], record["profile"], record["variant"], record["seed"])
    assert f"{config.cell}.json" == "/".join(path.parts[-3:])
    assert record["overrides"] == {}
    assert recipe(**record["config"]).overrides() == {}


def test_records_with_other_settings_say_which():
    for path in (ROOT / "results/tried").rglob("*.json"):
        record = json.loads(path.read_text())
        config = recipe(**record["config"])
        assert record["overrides"] == json.loads(json.dumps(config.overrides())), path
        assert record["overrides"], f"{path}: it is today's recipe: bring it home again, and it goes to results/runs"
        assert f"{run.run_name(config)}.json" == "/".join(path.parts[-3:])
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]), f"{path}: committed code must have made it"
        assert record["hardware"]
        assert sum(record["history"]["seconds"]) > 0


def test_demo_has_three_seeds_and_beats_kmeans():
    runs = results.load_runs("demo")
    acc = runs.groupby("variant").acc
    assert (acc.size() >= 3).all()
    cc = runs[runs.variant == "cc"][["acc", "nmi", "ari"]].mean()
    assert (cc >= [0.96, 0.93, 0.92]).all()
    assert acc.mean()["cc"] > acc.mean()["kmeans-pixels"] + 0.15


def test_environment_installs_what_pyproject_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert environment["dependencies"] == [f"python{project['requires-python']}", "pip", {"pip": ["-e .[dev]"]}]


def test_every_dependency_says_why_it_is_there():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert [line for line in lines if re.match(r'    "[\w-]+>=', line) and "  # " not in line] == []


def test_make_help_lists_every_target_a_reader_is_told_of():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    told = set(re.findall(r"`make (\w+)", (ROOT / "README.md").read_text()))
    assert told <= set(re.findall(r"^  make (\w+)", shown, flags=re.M))
    assert {"reproduce", "test", "tables", "report", "plan", "lab"} <= told


def test_makefile_runs_the_papers_data_sets():
    shown = subprocess.run(
        ["make", "help", "PROFILE=paper"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r'DATASETS="(.*?)"', shown)[1].split() == list(RECIPES["paper"])


def test_bad_name_stops_make_before_anything_is_written():
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    done = subprocess.run(["make", "reproduce", "DATASETS=mnist"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "ccrepro: error: unknown data set 'mnist'" in done.stderr
    assert subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout == before


def test_docs_explain_every_exit_code():
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs/results.md").read_text(), flags=re.M)
    told = {int(code) for row in rows for code in row.split(",")}
    assert {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")} <= told


def modules(readme):
    """The package's modules in the order of the README's table; a folder is one."""
    _, first, rest = (ROOT / readme).read_text().partition("| [`errors.py`]")
    return re.findall(r"\(ccrepro/(\w+)(?:\.py)?\)", first + rest)


def imported(path):
    """The modules that a file imports, wherever in it; not those that only its type annotations name."""
    tree = ast.parse(path.read_text())
    types = {id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.unparse(b.test)
             for n in ast.walk(b)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in types and node.module.split(".")[0] == "ccrepro":
            yield from [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]


@pytest.mark.parametrize("readme", report.READMES)
def test_imports_point_up_the_readmes_list(readme):
    order = modules(readme)
    files = [p for p in sorted((ROOT / "ccrepro").rglob("*.py")) if p.parent.name != "ccrepro" or p.stem[:2] != "__"]
    homes = {p: p.stem if p.parent.name == "ccrepro" else p.parent.name for p in files}
    assert sorted(order) == sorted(set(homes.values()))
    place = order.index
    down = [f"{p.relative_to(ROOT)}: {m}" for p, home in homes.items() for m in imported(p) if place(m) > place(home)]
    assert down == []
