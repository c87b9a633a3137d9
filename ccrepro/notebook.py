"""Run a parameterized notebook with papermill so that a half-made or misled run never counts.

papermill alone accepts unknown parameters, writes its output in place and calls a notebook that stopped early with
``sys.exit(0)`` a success; here each of these is an error.
"""

import ast
import base64
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from ccrepro import errors
from ccrepro.errors import CcreproError, ConfigError, Stopped
from ccrepro.files import ROOT, atomic_write
from ccrepro.interrupt import StopSignal
from ccrepro.parameters import check_names

START_SECONDS = 300  # for a kernel to start in; a second or two are usual
WIDGET = "application/vnd.jupyter.widget-view+json"


KINDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}


class NotebookError(CcreproError):
    """A notebook that did not run to its end."""


def run(path: str | Path, output: str | Path, parameters: dict[str, Any]) -> Path:
    """Execute a notebook into ``output``, written only when its last cell has run. Its prints go to our output.

    Raises `ConfigError` for a parameter the notebook does not have, before anything runs; the package's own error
    where a cell raised one; `NotebookError` otherwise, with the executed copy kept in ``runs/failed``.
    """
    path, output = Path(path), Path(output)
    check_parameters(path, parameters)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, path.name)
        try:
            _execute(path, scratch, parameters)
        except CcreproError:
            atomic_write(_failed(output), scratch.read_bytes())
            raise
        atomic_write(output, nbformat.writes(_reproducible(nbformat.read(scratch, as_version=4))))
    return output


def _failed(output: Path) -> Path:
    """Where the executed copy of a failed notebook is kept."""
    return ROOT / "runs" / "failed" / f"{output.parent.name}-{output.name}"


def _execute(path: Path, scratch: Path, parameters: dict[str, Any]) -> None:
    with StopSignal(then=_pass_on) as stop:
        try:
            _on_a_kernel(path, scratch, parameters, stop)
        except (PapermillExecutionError, DeadKernelError) as error:
            found = _translated(error, path) if isinstance(error, PapermillExecutionError) else _dead(path)
            if stop.signal and not isinstance(found, Stopped):
                raise stop.error(path.name, "Nothing of this notebook was written") from error
            raise found from error
    cells = [c for c in nbformat.read(scratch, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    skipped = sum(c.execution_count is None for c in cells)
    if skipped:
        what = f"{skipped} of {len(cells)} cells did not run"
        raise NotebookError(what, path.name, "Every cell must run", "Look for an early exit in runs/failed")


def _on_a_kernel(path: Path, scratch: Path, parameters: dict[str, Any], stop: StopSignal, starts: int = 3) -> None:
    """Run all cells. A kernel that starts may find a port taken, by another that starts at that moment, which was free
    when it was chosen: then another kernel is started, up to ``starts`` in all."""
    try:
        papermill.execute_notebook(
            str(path), str(scratch), parameters, kernel_name="python3", cwd=str(ROOT), start_timeout=START_SECONDS,
            progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
            extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
    except RuntimeError as error:
        if isinstance(error, DeadKernelError) or not str(error).startswith("Kernel "):
            raise
        if starts == 1 or stop.signal:
            raise DeadKernelError(str(error)) from error
        _on_a_kernel(path, scratch, parameters, stop, starts - 1)


def _pass_on(number: int) -> None:
    """Tell the kernel of a signal: training finishes its step and saves, anything else ends."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ipykernel" in argument for argument in child.cmdline()):
                child.send_signal(number)


def _dead(path: Path) -> NotebookError:
    what = "the kernel died, perhaps for want of memory"
    return NotebookError(what, path.name, "Every cell must run", "See dmesg, and run it again")


def check_parameters(path: str | Path, parameters: dict[str, Any]) -> None:
    """Raise `ConfigError` unless the notebook is there and has a parameters cell with all these names."""
    if not Path(path).exists():
        raise ConfigError(f"no notebook {path}", "notebook", "Give the path of an .ipynb file", "See notebooks/")
    known = papermill.inspect_notebook(str(path))
    if not known:
        fix = "Tag one cell 'parameters'"
        raise ConfigError("notebook without parameters cell", str(path), "It must have exactly one", fix)
    check_names(parameters, known, str(path))
    for name, value in parameters.items():
        default = ast.literal_eval(known[name]["default"])
        if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
            kind = KINDS.get(type(default), type(default).__name__)
            what, fix = (
                f"{name} is {value!r}",
                f"Quote it, {name}='\"{value}\"'" if isinstance(default, str) else "Correct it",
            )
            raise ConfigError(what, str(path), f"It must be {kind}, as {known[name]['default']} is", fix)


def _translated(error: PapermillExecutionError, path: Path) -> CcreproError:
    """The package's own error with its own line where a cell raised one; otherwise where to look."""
    kind = getattr(errors, error.ename, None)
    if isinstance(kind, type) and issubclass(kind, CcreproError):
        return kind.from_line(error.evalue)
    what = f"cell {error.cell_index} failed: {error.ename}: {' '.join(str(error.evalue).split())}"
    return NotebookError(what, path.name, "Every cell must run", "See its copy in runs/failed")


def _reproducible(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without times, machine, random ids and dead widgets, figures small: two equal runs give equal files."""
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            data.pop(WIDGET, None)  # a view of what died with the kernel; its picture stays
            if "image/png" in data:
                data["image/png"] = _small(data["image/png"])
    return notebook


def _small(png: str) -> str:
    """A base64 PNG in 256 colours, a third of the size: GitHub shows no notebooks of many megabytes."""
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
