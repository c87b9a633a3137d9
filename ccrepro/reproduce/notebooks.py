"""Run parameterized notebooks with papermill, so that a half-made or mistyped run never counts.

papermill alone accepts unknown parameters and writes its output while it runs. Here the first is an error, raised by
`check_injected` at the top of each notebook, and the output appears when the last cell has run.
"""

import base64
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccrepro import errors
from ccrepro.errors import CcreproError, unknown
from ccrepro.runtime import storage

WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookError(CcreproError):
    """A notebook that did not run to its end."""


def run(path: Path, output: Path, parameters: dict[str, Any]) -> Path:
    """Execute a notebook into ``output``, which is written when the last cell has run, and returned. Prints what the
    notebook prints.

    Raises the package's own error where a cell raised one, and `NotebookError` for any other failure. The executed
    copy of a notebook that failed is kept in ``runs/failed``.
    """
    import nbformat  # late, as papermill: each kernel imports this module, and would wait two seconds for them
    import papermill
    from nbclient.exceptions import DeadKernelError

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, path.name)
        try:
            papermill.execute_notebook(
                path, scratch, parameters, kernel_name="python3", cwd=storage.place(""), progress_bar=False,
                stdout_file=sys.stdout, stderr_file=sys.stderr, extra_arguments=["--log-level=CRITICAL"],
                start_timeout=300,  # seconds: a kernel starts late on a busy machine
            )  # fmt: skip
        except (papermill.PapermillExecutionError, DeadKernelError) as error:
            kept = storage.place("", "runs/failed") / f"{output.parent.name}-{output.name}"
            storage.atomic_write(kept, scratch.read_bytes())
            if isinstance(error, DeadKernelError):
                raise NotebookError(f"The kernel of {path.name} died. Free some memory and run it again.") from error
            raise _translated(error, path) from error
        made = nbformat.read(scratch, as_version=4)
    if [cell for cell in made.cells if cell.cell_type == "code"][-1].execution_count is None:  # sys.exit(0) is no error
        raise NotebookError(f"{path.name} stopped before its last cell.")
    return storage.atomic_write(output, nbformat.writes(_reproducible(made)))


def parameters(path: Path) -> list[str]:
    """The names of a notebook's parameters."""
    import papermill  # late, as above

    return list(papermill.inspect_notebook(path))


def check_injected(cells: Sequence[str]) -> None:
    """For the top of a notebook: raise `ConfigError` for a parameter that it does not have.

    cells: the sources run so far (IPython's ``In``). papermill puts its cell, which begins with the comment
    "# Parameters", right after the cell that assigns the defaults.
    """
    for defaults, source in itertools.pairwise(cells):
        if source.startswith("# Parameters\n"):
            exec(defaults, {}, known := {})
            exec(source, {}, given := {})
            for name in given:
                if name not in known:
                    raise unknown("parameter", name, known)


def _translated(error: Any, path: Path) -> CcreproError:
    """The package's own error where a cell raised one; otherwise an error that says where to look."""
    kind = getattr(errors, error.ename, None)
    if isinstance(kind, type) and issubclass(kind, CcreproError):
        return kind(error.evalue)
    reason = f"{error.ename}: {' '.join(str(error.evalue).split())}"
    return NotebookError(f"Cell {error.cell_index} of {path.name} failed: {reason}. See its copy in runs/failed.")


def _reproducible(notebook: Any) -> Any:
    """The notebook without times, machine, random ids and widgets, with small figures: equal runs give equal files."""
    from ccrepro.drawing import small_png  # late: matplotlib

    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            data.pop(WIDGET, None)  # it needs the kernel; the image of it stays
            if "image/png" in data:
                data["image/png"] = base64.b64encode(small_png(base64.b64decode(data["image/png"]))).decode()
    return notebook
