"""Notebooks executed in this process, without a kernel, which takes seconds to start; and a clone to reproduce in."""

import ast
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from ccrepro.runtime import storage

ROOT = Path(__file__).parents[2]


def code_cells(path: Path) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def execute(path: Path, parameters: dict[str, Any]) -> list[Any]:
    """Run the cells of a notebook; returns what each that ends with an expression shows."""
    names, shown = {"In": []}, []
    for cell in code_cells(path):
        *body, last = ast.parse(cell.source).body
        is_value = isinstance(last, ast.Expr)
        exec(compile(ast.Module(body if is_value else [*body, last], []), path.name, "exec"), names)
        shown += [eval(compile(ast.Expression(last.value), path.name, "eval"), names)] if is_value else []
        names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
    return shown


def run_all(function: Any, jobs: Sequence[Any], *settings: Any) -> None:
    """In the place of `ccrepro.reproduce.pool.run_all`, for notebooks."""
    for path, output, parameters in jobs:
        execute(path, parameters)
        storage.atomic_write(output, path.read_bytes())


def clone(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """A copy of the package and the notebooks; how its command line is called there."""
    for name in ("ccrepro", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return [sys.executable, "-m", "ccrepro"], {"cwd": folder, "env": env, "text": True}
