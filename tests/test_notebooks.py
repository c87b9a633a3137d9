import base64
import io
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from jupyter_client.connect import LocalPortCache
from PIL import Image

from ccrepro import cli, notebook, report
from ccrepro.checkpoint import Checkpoints
from ccrepro.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPORTS = {
    "03_main_results": ("main_results", "losses", "confusion", "tsne", "tsne_pixels"),
    "04_augmentation": ("augmentation", "tsne_views_none"),
    "05_heads": ("heads", "losses_cluster_only", "losses_no_entropy"),
    "06_backbones": ("backbones", "backbones_by_epoch"),
    "07_evolution": ("cosines", "evolution", "scores_by_epoch"),
    "08_cases": ("cases_right", "cases_wrong", "cases_between", "cases_confusion"),
    "09_online": ("online",),
}


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.fixture
def made(tmp_path):
    """Write a notebook of the given code cells, the first being its parameters."""

    def make(*sources, tagged=True):
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        cells[0].metadata["tags"] = ["parameters"] if tagged else []
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, tmp_path / "made.ipynb")
        return tmp_path / "made.ipynb"

    return make


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_keeps_the_conventions(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = code_cells(path)
    assert all(not c.outputs and c.execution_count is None for c in cells), "not stripped"
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert "check_injected(In)" in cells[1].source
    assert all(len(c.source.splitlines()) <= 10 for c in cells)
    own = [c for c in cells if "exercise" not in c.metadata.get("tags", [])]  # in which students write functions
    assert not any(re.search(r"^\s*(def|class) |\bplt\.", c.source, flags=re.M) for c in own)
    assert book.cells[0].source.startswith("# ")
    assert all("#" in line for line in cells[0].source.splitlines()), "a parameter without its comment"


def test_training_notebook_writes_a_run_record(tmp_path):
    parameters = {
        "overrides": {"epochs": 1, "sample": 320, "batch_size": 64},
        "runs_dir": str(tmp_path / "runs"),
        "results_dir": str(tmp_path / "results"),
    }
    output = notebook.run(ROOT / "notebooks/02_train.ipynb", tmp_path / "02.ipynb", parameters)
    record = json.loads((tmp_path / "runs/demo/digits/cc-seed0+sample=320+batch_size=64+epochs=1/run.json").read_text())
    assert record["epochs"] == 1
    assert 0 < record["scores"]["acc"] < 1
    assert not (tmp_path / "results").exists()
    pictures = [o for c in code_cells(output) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A copy of the published records, and what was measured of streams."""
    results = tmp_path_factory.mktemp("published") / "results"
    for name in ("runs", "online"):
        if (ROOT / "results" / name).exists():
            shutil.copytree(ROOT / "results" / name, results / name)
    return results


FIGURES_SO_FAR = """\
from pathlib import Path
print("", *(path.name for path in Path(results_dir).glob("figures/demo/*")))"""


def one_after_another(names, parameters, folder):
    """Execute notebooks in one kernel, which starts and imports but once; the outputs of each, and
    the figures that it saved.

    The first has all parameters of the others, whose cells of them are left out. What one lacks and another before it
    has would be hidden; ruff sees it.
    """
    book = nbformat.read(ROOT / f"notebooks/{names[0]}.ipynb", as_version=4)
    book.cells, given = [], []
    for name in names:
        for cell in code_cells(ROOT / f"notebooks/{name}.ipynb"):
            tags = cell.metadata.get("tags", [])
            given += [{line.split("#")[0] for line in cell.source.splitlines()}] * ("parameters" in tags)
            if "parameters" not in tags or len(given) == 1:
                book.cells.append(nbformat.v4.new_code_cell(cell.source, metadata={"tags": [name, *tags]}))
        book.cells.append(nbformat.v4.new_code_cell(FIGURES_SO_FAR, metadata={"tags": [f"after {name}"]}))
    assert all(given[0] >= others for others in given)
    nbformat.write(book, folder / "all.ipynb")
    executed = code_cells(notebook.run(folder / "all.ipynb", folder / "out.ipynb", parameters))
    outputs = {name: [o for c in executed if name in c.metadata.tags for o in c.outputs] for name in names}
    so_far = [set(), *(set(c.outputs[0].text.split()) for c in executed if c.source == FIGURES_SO_FAR)]
    saved = {name: after - before for name, (before, after) in zip(names, itertools.pairwise(so_far), strict=True)}
    return outputs, saved


@pytest.fixture(scope="module")
def reported(published):
    """The outputs and figures of each report notebook, all executed on the published records."""
    return one_after_another(sorted(REPORTS, key="08_cases".__ne__), {"results_dir": str(published)}, published.parent)


@pytest.mark.parametrize("name", REPORTS)
def test_report_notebook_makes_its_figures(name, reported):
    outputs, saved = reported
    assert sum("image/png" in output.get("data", {}) for output in outputs[name]) == len(REPORTS[name])
    assert saved[name] == {f"{figure}.{kind}" for figure in REPORTS[name] for kind in ("png", "svg")}


@pytest.mark.usefixtures("reported")
def test_tables_follow_from_the_records(published):
    made, committed = (
        {path.name: path.read_text() for path in (results / "tables/demo").glob("*.md")}
        for results in (published, ROOT / "results")
    )
    assert made == committed


def test_every_figure_of_the_report_is_made_by_a_notebook():
    made = {figure for figures in REPORTS.values() for figure in figures}
    assert {figure for figures in report.FIGURES.values() for figure in figures} <= made


def test_report_notebooks_of_a_profile_without_runs_say_so(tmp_path):
    outputs, _ = one_after_another(["07_evolution", "09_online"], {"results_dir": str(tmp_path)}, tmp_path)
    for shown in (list(map(str, found)) for found in outputs.values()):
        assert any("not run" in text or "No run yet" in text or "image/png" in text for text in shown)


def test_data_set_notebook_shows_pictures(tmp_path):
    output = notebook.run(ROOT / "notebooks/00_datasets.ipynb", tmp_path / "o.ipynb", {"results_dir": str(tmp_path)})
    assert (tmp_path / "figures/demo/samples_digits.png").exists()
    assert any("image/png" in o.get("data", {}) for c in code_cells(output) for o in c.outputs)


def test_equal_runs_give_equal_files(made, tmp_path):
    path = made("seed = 0  # any", "seed + 1")
    for name in "ab":
        notebook.run(path, tmp_path / f"{name}.ipynb", {"seed": 4})
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()
    assert code_cells(tmp_path / "a.ipynb")[-1].outputs[0]["data"]["text/plain"] == "5"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_unknown_parameter_fails_before_anything_runs(path, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown parameter 'profle'.*(Write 'profile'|Choose one)"):
        notebook.run(path, tmp_path / "out.ipynb", {"profle": 1})
    assert list(tmp_path.iterdir()) == []


def test_notebook_without_parameters_cell(made, tmp_path):
    with pytest.raises(ConfigError, match="without parameters cell"):
        notebook.run(made("seed = 0", tagged=False), tmp_path / "out.ipynb", {"seed": 1})


def test_papermill_by_hand_fails_at_an_unknown_parameter_too(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'sede'"):
        papermill.execute_notebook(
            str(ROOT / "notebooks/09_online.ipynb"), str(tmp_path / "o.ipynb"), {"sede": 1}, progress_bar=False
        )


def test_bad_dataset_in_a_notebook_is_one_line_and_exit_2(tmp_path, capfd):
    arguments = ["notebook", str(ROOT / "notebooks/02_train.ipynb"), str(tmp_path / "o.ipynb"), "dataset=mnist"]
    assert cli.main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("ccrepro: error: unknown data set 'mnist'")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "did not run"),
        ("raise KeyError('x')", "KeyError"),
    ],
)
def test_failed_notebook_leaves_no_output(made, tmp_path, source, says):
    with pytest.raises(notebook.NotebookError, match=says):
        notebook.run(made("seed = 0  # any", source, "seed"), tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_port_that_another_kernel_took_costs_a_start_and_not_the_notebook(made, tmp_path, monkeypatch):
    real, asked = LocalPortCache.find_available_port, []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def taken_once(self, ip):
            asked.append(ip)
            return other.getsockname()[1] if len(asked) == 1 else real(self, ip)

        monkeypatch.setattr(LocalPortCache, "find_available_port", taken_once)
        output = notebook.run(made("seed = 0  # any", "seed + 1"), tmp_path / "out.ipynb", {"seed": 4})
    assert code_cells(output)[-1].outputs[0]["data"]["text/plain"] == "5"
    assert len(asked) == 10


def test_a_kernel_that_never_comes_up_is_one_line(made, tmp_path, monkeypatch):
    starts = []

    def execute_notebook(path, output, *more, **settings):
        starts.append(path)
        shutil.copy(path, output)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    with pytest.raises(notebook.NotebookError, match=r"the kernel died"):
        notebook.run(made("seed = 0  # any", "seed"), tmp_path / "out.ipynb", {})
    assert len(starts) == 3


def test_error_of_the_package_keeps_its_kind(made, tmp_path):
    source = "from ccrepro.errors import DataError\nraise DataError('gone', 'here', 'There', 'Look')"
    with pytest.raises(DataError, match=r"^gone \(here\). There. Look.$"):
        notebook.run(made("seed = 0  # any", source), tmp_path / "out.ipynb", {})


def test_figures_in_executed_copies_are_small_and_look_the_same():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.kron(rng.integers(0, 255, (12, 12, 3)), np.ones((20, 20, 1))).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    small = base64.b64decode(notebook._small(base64.b64encode(buffer.getvalue()).decode()))
    shown = Image.open(io.BytesIO(small))
    assert shown.mode == "P"
    assert np.abs(np.asarray(shown.convert("RGB"), float) - np.asarray(picture)).max() <= 8


def test_executed_copies_are_small_enough_for_github_and_hold_no_widget():
    for path in (ROOT / "results/notebooks").rglob("*.ipynb"):
        assert path.stat().st_size < 1_000_000, path.name
        assert notebook.WIDGET not in path.read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results/notebooks/demo").glob("01_method*.ipynb")), ids=lambda p: p.stem
)
def test_executed_lesson_is_of_todays_notebook(path):
    book, executed = (nbformat.read(p, as_version=4) for p in (ROOT / "notebooks" / path.name, path))
    injected = [c.source for c in executed.cells if not c.source.startswith("# Parameters\n")]
    assert injected == [c.source for c in book.cells], "run `make lesson`"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_training_in_a_notebook(tmp_path, number, code):
    command = [sys.executable, "-m", "ccrepro", "notebook", "notebooks/02_train.ipynb", str(tmp_path / "o.ipynb")]
    command += [f"runs_dir={tmp_path}", f"results_dir={tmp_path}", "overrides={checkpoint_seconds: 0}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "demo/digits/cc-seed0"
    while not list(folder.glob("checkpoint-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == code
    assert error.count("\n") == 1
    assert "The step under way was finished and saved in" in error
    assert Checkpoints(folder).load() is not None
    assert not (tmp_path / "o.ipynb").exists()
    assert not (folder / "run.json").exists()


def test_your_images_ends_with_a_gallery_and_predictions(tmp_path):
    parameters = {"epochs": 1, "out": str(tmp_path / "out")}
    output = notebook.run(ROOT / "notebooks/10_your_images.ipynb", tmp_path / "10.ipynb", parameters)
    assert (tmp_path / "out/index.html").exists()
    assert len((tmp_path / "out/clusters.csv").read_text().splitlines()) == 401
    pictures = [o for c in code_cells(output) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
