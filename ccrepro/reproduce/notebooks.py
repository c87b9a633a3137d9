"""Run parameterized notebooks with papermill so that a half-made or misled run never counts.

papermill alone accepts unknown parameters, writes its output in place and calls a notebook that stopped early with
``sys.exit(0)`` a success; here each of these is an error.
"""

import ast
import base64
import itertools
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccrepro import errors
from ccrepro.errors import CcreproError, ConfigError, Stopped, unknown
from ccrepro.reproduce.pool import pass_on
from ccrepro.runtime import storage
from ccrepro.runtime.signals import StopSignal

START_SECONDS = 300  # for a kernel to start in; a second or two are usual
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookError(CcreproError):
    """A notebook that did not run to its end."""


class Job(NamedTuple):
    """A notebook, where its executed copy goes, and its parameters."""

    path: Path
    output: Path
    parameters: dict[str, Any]


def run(path: str | Path, output: str | Path, parameters: dict[str, Any]) -> Path:
    """Execute a notebook into ``output``, written only when its last cell has run. Its prints go to our output.

    Raises `ConfigError` for a parameter the notebook does not have, before anything runs; the package's own error
    where a cell raised one; `NotebookError` otherwise, with the executed copy kept in ``runs/failed``.
    """
    import nbformat  # late, as papermill below: two seconds that a notebook's kernel, which imports this, would wait

    path, output = Path(path), Path(output)
    check_parameters(path, parameters)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, path.name)
        try:
            _execute(path, scratch, parameters)
        except CcreproError:
            if scratch.exists():
                kept = storage.ROOT / "runs" / "failed" / f"{output.parent.name}-{output.name}"
                storage.atomic_write(kept, scratch.read_bytes())
            raise
        storage.atomic_write(output, nbformat.writes(_reproducible(nbformat.read(scratch, as_version=4))))
    return output


def _execute(path: Path, scratch: Path, parameters: dict[str, Any]) -> None:
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    with StopSignal(then=lambda number: pass_on(number, "ipykernel")) as stop:
        try:
            papermill.execute_notebook(
                str(path), str(scratch), parameters, kernel_name="python3", cwd=str(storage.ROOT),
                start_timeout=START_SECONDS, progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
                extra_arguments=["--log-level=CRITICAL"],
            )  # fmt: skip
        except (PapermillExecutionError, RuntimeError) as error:
            if isinstance(error, PapermillExecutionError):
                found = _translated(error, path)
            elif isinstance(error, DeadKernelError) or str(error).startswith("Kernel "):
                found = NotebookError(f"The kernel of {path.name} died, perhaps for want of memory. Run it again.")
            else:
                raise
            if stop.signal and not isinstance(found, Stopped):
                raise stop.error(path.name, "") from error
            raise found from error
    cells = [c for c in nbformat.read(scratch, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    skipped = sum(c.execution_count is None for c in cells)
    if skipped:
        raise NotebookError(f"{skipped} of {len(cells)} cells of {path.name} did not run. See its copy in runs/failed.")


def check_parameters(path: str | Path, parameters: dict[str, Any]) -> None:
    """Raise `ConfigError` unless the notebook is there and has a parameters cell with all these names."""
    import papermill

    if not Path(path).exists():
        raise ConfigError(f"There is no notebook {path}. See notebooks/.")
    known = papermill.inspect_notebook(str(path))
    if not known:
        raise ConfigError(f"{path} has no parameters. Tag one cell 'parameters'.")
    check_names(parameters, known)
    for name, value in parameters.items():
        default = ast.literal_eval(known[name]["default"])
        if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
            raise ConfigError(f"{name} is {value!r}. It must be of the kind of {default!r}.")


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first name that is not known."""
    for name in names:
        if name not in known:
            raise unknown("parameter", name, known)


def check_injected(cells: Sequence[str]) -> None:
    """For the top of a notebook: refuse what papermill, called by hand, injected under an unknown name.

    cells: the sources run so far (IPython's ``In``). papermill puts its cell, which begins with the comment
    "# Parameters", right after the one that holds the known names.
    """
    for defaults, source in itertools.pairwise(cells):
        if source.startswith("# Parameters\n"):
            check_names(_assigned(source), _assigned(defaults))


def _assigned(source: str) -> list[str]:
    lines = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return [target.id for line in lines for target in line.targets]


def _translated(error: Any, path: Path) -> CcreproError:
    """The package's own error with its own text where a cell raised one; otherwise where to look."""
    kind = getattr(errors, error.ename, None)
    if isinstance(kind, type) and issubclass(kind, CcreproError):
        return kind(error.evalue)
    reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
    return NotebookError(f"Cell {error.cell_index} of {path.name} failed: {reason}. See its copy in runs/failed.")


def _reproducible(notebook: Any) -> Any:
    """Without times, machine, random ids and dead widgets, figures small: two equal runs give equal files."""
    from ccrepro.figure_style import small_png  # late: matplotlib

    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            data.pop(WIDGET, None)  # a view of what died with the kernel; its picture stays
            if "image/png" in data:
                png = small_png(base64.b64decode(data["image/png"]))
                data["image/png"] = base64.b64encode(png).decode()
    return notebook
