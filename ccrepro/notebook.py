"""Run a parameterized notebook with papermill so that a half-made or misled run never counts.

papermill alone accepts unknown parameters, writes its output in place and calls a notebook that stopped early with
``sys.exit(0)`` a success; here each of these is an error.
"""

import ast
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from ccrepro import errors
from ccrepro.checkpoint import atomic_write
from ccrepro.errors import CcreproError, ConfigError, unknown
from ccrepro.run import ROOT


class NotebookError(CcreproError):
    """A notebook that did not run to its end."""


def run(path: str | Path, output: str | Path, parameters: dict[str, Any]) -> Path:
    """Execute a notebook into ``output``, written only when its last cell has run. Its prints go to our output.

    Raises `ConfigError` for a parameter the notebook does not have, before anything runs; the package's own error
    where a cell raised one; `NotebookError` otherwise, with the executed copy kept beside ``runs/``.
    """
    path, output = Path(path), Path(output)
    check_parameters(path, parameters)
    failed = ROOT / "runs" / "failed" / path.name
    failed.parent.mkdir(parents=True, exist_ok=True)
    scratch = failed.with_name(f".{output.parent.name}-{output.name}")
    try:
        papermill.execute_notebook(
            str(path), str(scratch), parameters, kernel_name="python3", cwd=str(ROOT),
            progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        _require_complete(scratch)
    except PapermillExecutionError as error:
        scratch.replace(failed)
        raise _translated(error, path, failed) from error
    except CcreproError:
        scratch.replace(failed)
        raise
    atomic_write(output, nbformat.writes(_reproducible(nbformat.read(scratch, as_version=4))))
    scratch.unlink()
    return output


def check_parameters(path: str | Path, parameters: dict[str, Any]) -> None:
    """Raise `ConfigError` unless the notebook is there and has a parameters cell with all these names."""
    if not Path(path).exists():
        raise ConfigError(f"no notebook {path}", "notebook", "Give the path of an .ipynb file", "See notebooks/")
    known = papermill.inspect_notebook(str(path))
    if not known:
        fix = "Tag one cell 'parameters'"
        raise ConfigError("notebook without parameters cell", str(path), "It must have exactly one", fix)
    check_names(parameters, known, str(path))


def check_names(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise `ConfigError` for the first name that is not known."""
    for name in names:
        if name not in known:
            raise unknown("parameter", name, where, known)


def check_injected(cells: Sequence[str]) -> None:
    """For the top of a notebook: refuse what papermill, called by hand, injected under an unknown name.

    cells: the sources run so far (IPython's ``In``). papermill puts its cell, which begins with the comment
    "# Parameters", right after the one that holds the known names.
    """
    for defaults, source in itertools.pairwise(cells):
        if source.startswith("# Parameters\n"):
            check_names(_assigned(source), _assigned(defaults), "papermill's parameters")


def _assigned(source: str) -> list[str]:
    lines = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    return [target.id for line in lines for target in line.targets]


def _require_complete(path: Path) -> None:
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    skipped = [c for c in cells if c.execution_count is None]
    if skipped:
        what = f"{len(skipped)} of {len(cells)} cells did not run"
        raise NotebookError(what, path.name.lstrip("."), "Every cell must run", "Look for an early exit")


def _translated(error: PapermillExecutionError, path: Path, failed: Path) -> CcreproError:
    """The package's own error with its own line where a cell raised one; otherwise where to look."""
    kind = getattr(errors, error.ename, None)
    if isinstance(kind, type) and issubclass(kind, CcreproError):
        return kind.from_line(error.evalue)
    what = f"cell {error.cell_index} failed: {error.ename}: {' '.join(str(error.evalue).split())}"
    return NotebookError(what, path.name, "Every cell must run", f"Open {failed} to see it")


def _reproducible(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without times, machine and random ids: two equal runs give equal files."""
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
    return notebook
