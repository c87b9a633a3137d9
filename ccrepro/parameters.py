"""Refuse parameters that a notebook does not have; papermill alone would pass them on in silence."""

import ast
import itertools
from collections.abc import Iterable, Sequence

from ccrepro.errors import unknown


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
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
