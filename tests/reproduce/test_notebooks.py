import json
import re
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import pytest
from in_place import ROOT, clone, code_cells, execute
from matplotlib.figure import Figure
from PIL import Image

from ccrepro.errors import ConfigError, DataError
from ccrepro.reproduce import notebooks, plan, pool, report
from ccrepro.reproduce.notebooks import NotebookError
from ccrepro.runs.checkpoints import Checkpoints

DRAWS = r"show\.(?:figure|bars|cost|views|examples|streaming)\(|figures\.heads\("  # each may have nothing to draw
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def made(tmp_path):
    """Write a notebook of the given code cells, the first being its parameters."""

    def make(*sources):
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "made.ipynb")
        return tmp_path / "made.ipynb"

    return make


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_keeps_the_conventions(path):
    book, cells = nbformat.read(path, as_version=4), code_cells(path)
    nbformat.validate(book)
    assert book.cells[0].source.startswith("# ")
    assert all(not c.outputs and c.execution_count is None for c in cells), "not stripped"
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert all("#" in line for line in cells[0].source.splitlines()), "a parameter without its comment"
    assert re.search(r"(check_injected|Report)\(In\b", cells[1].source)
    lines = [re.findall(r"^(?!import |from ).+", c.source, flags=re.M) for c in cells]  # of imports there may be more
    assert max(map(len, lines)) <= 10
    own = [c for c in cells if "exercise" not in c.metadata.get("tags", [])]  # in which students write functions
    assert not any(re.search(r"^\s*(def|class) |\bplt\.", c.source, flags=re.M) for c in own)
    notebooks.check_injected(["", cells[0].source, cells[1].source])
    with pytest.raises(ConfigError, match="Unknown parameter 'prest'"):
        notebooks.check_injected(["", cells[0].source, "# Parameters\nprest = 1\n"])


@pytest.mark.parametrize("name", plan.REPORTS)
def test_report_notebook_saves_every_figure_and_table(name, tmp_path):
    path = ROOT / f"notebooks/{name}.ipynb"
    shown, source = execute(path, {"out_dir": str(tmp_path)}), path.read_text()
    saved = len(list(tmp_path.glob("figures/demo/*.png")))
    drawn = sum(isinstance(value, Figure) for value in shown)
    empty = sum(getattr(value, "data", "") == report.NONE for value in shown)
    if calls := len(re.findall(DRAWS, source)):
        assert drawn + empty == calls
        assert saved == drawn - source.count("figures.heads()") > 0
    else:
        assert saved == source.count("figures.save(") > 0
    assert len(list(tmp_path.glob("tables/demo/*.md"))) == source.count("show.table(")


def test_training_notebook_writes_a_run_record(tmp_path):
    parameters = {"overrides": {"epochs": 1, "sample": 320, "batch_size": 64}, "runs_dir": str(tmp_path)}
    shown = execute(ROOT / "notebooks/02_train.ipynb", parameters)
    record = json.loads((tmp_path / "demo/digits/cc-1ep-sample=320-batch_size=64-seed0/run.json").read_text())
    assert record["epochs"] == 1
    assert 0 < record["scores"]["acc"] < 1
    assert sum(isinstance(value, Figure) for value in shown) == 4


def test_your_images_ends_with_a_gallery_and_predictions(tmp_path):
    """On nine small images, which are trained on from scratch: the pretrained way takes a minute."""
    for i in range(9):
        Image.fromarray(np.full((12, 12), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    made = {"folder": str(tmp_path), "n_clusters": 2, "out": str(tmp_path.with_name("made"))}
    *_, clusters = execute(ROOT / "notebooks/10_your_images.ipynb", made)
    assert len(clusters) == 8
    assert (tmp_path.with_name("made") / "index.html").exists()
    assert len((tmp_path.with_name("made") / "clusters.csv").read_text().splitlines()) == 10


@pytest.mark.slow
def test_papermill_by_hand_stops_at_an_unknown_parameter_too(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="Unknown parameter 'sede'"):
        papermill.execute_notebook(ROOT / "notebooks/09_streaming.ipynb", tmp_path / "o.ipynb", {"sede": 1})


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("1 / 0", NotebookError, "Cell 2 of made.ipynb failed: ZeroDivisionError"),
        ("import os; os._exit(1)", NotebookError, "kernel of made.ipynb died"),
        ("from ccrepro.errors import DataError\nraise DataError('Gone. Look.')", DataError, "^Gone. Look.$"),
    ],
    ids=["error", "death", "ours"],
)
def test_a_notebook_that_fails_keeps_nothing_half_made(made, root, source, error, says):
    with pytest.raises(error, match=says) as raised:
        notebooks.run(made("seed = 0", source, "seed"), root / "results/out.ipynb", {"seed": 1})
    assert raised.value.exit_code == (3 if error is DataError else 1)
    assert [p.name for p in root.rglob("*") if p.is_file() and p.name != "made.ipynb"] == ["results-out.ipynb"]


def test_a_notebook_that_exits_early_is_not_finished(made, tmp_path):
    with pytest.raises(NotebookError, match="stopped before its last cell"):
        notebooks.run(made("seed = 0", "import sys; sys.exit(0)", "seed"), tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_equal_runs_give_equal_files(made, tmp_path):
    path = made("seed = 0", "seed + 1")
    one, two = (notebooks.run(path, tmp_path / f"{name}.ipynb", {"seed": 4}) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert code_cells(one)[-1].outputs[0]["data"]["text/plain"] == "5"


@pytest.mark.slow
def test_several_run_at_once_each_on_its_gpu_until_one_fails(made, tmp_path):
    path = made("fail = False", "import os, time\nassert not fail\ntime.sleep(1)\nos.environ['CUDA_VISIBLE_DEVICES']")
    through = []
    jobs = [(path, tmp_path / f"{n}.ipynb", {}) for n in range(2)]
    pool.run_all(notebooks.run, jobs, 2, ["4", "GPU-ab"], through.append)
    shown = [code_cells(output)[-1].outputs[0]["data"]["text/plain"] for _, output, _ in jobs]
    assert sorted(shown) == ["'4'", "'GPU-ab'"]
    assert through == [1, 2]
    jobs = [(path, tmp_path / f"late{n}.ipynb", {"fail": n == 0}) for n in range(3)]
    with pytest.raises(NotebookError, match="AssertionError"):
        pool.run_all(notebooks.run, jobs, 1, ["0"])
    assert not any(output.exists() for _, output, _ in jobs)
    (ROOT / f"runs/failed/{tmp_path.name}-late0.ipynb").unlink()  # the failed copy


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_training_under_way(tmp_path, number, code):
    command, settings = clone(tmp_path)
    more = ["reproduce", "--variants", "cc", "kmeans-pixels", "--seeds", "0", "1", "--jobs", "1"]
    process = subprocess.Popen(command + more, **settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "runs/demo/digits/cc-seed0"
    while not ((folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate()[1]
    assert (process.returncode, error.count("\n")) == (code, 1), error
    assert Checkpoints(folder).load() is not None
    assert list(tmp_path.glob("runs/demo/**/run.json")) == list(tmp_path.glob("runs/demo/**/*.ipynb")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_that_is_still_importing(tmp_path, number):
    (tmp_path / "heavy.py").write_text(
        "import multiprocessing, pathlib, time\n"
        "if multiprocessing.parent_process(): pathlib.Path('began').touch(); time.sleep(60)\n"
        "def job(): pass\n"
    )
    (tmp_path / "main.py").write_text(
        "from ccrepro.errors import Stopped\nfrom ccrepro.reproduce import pool\n"
        "if __name__ == '__main__':\n"
        "    import heavy\n"
        "    try: pool.run_all(heavy.job, [()], 1)\n"
        "    except Stopped as error: print(error)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (tmp_path / "began").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    said, error = process.communicate(timeout=30)
    assert said.startswith(f"Stopped by {number.name} in reproduce.")
    assert not error
