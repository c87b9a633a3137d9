"""Errors that a user can act on. Each is one or two sentences: what is wrong, and what to do."""

import difflib
from collections.abc import Iterable


class CcreproError(Exception):
    """Base class; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: in a notebook the error is its own line, without the stack above it."""
        return [f"ccrepro: error: {self}"]


class ConfigError(CcreproError, ValueError):
    """A setting, a name or a parameter that is not allowed."""

    exit_code = 2


class DataError(CcreproError):
    """A data set that is missing, incomplete or damaged."""

    exit_code = 3


class ImageError(DataError, ValueError):
    """A user's images that cannot be clustered as they are."""


class CheckpointError(CcreproError):
    """Weights or a checkpoint that cannot be read, written or used."""

    exit_code = 4


class NumericalError(CcreproError):
    """A loss or a gradient that is not a finite number."""

    exit_code = 5


class LockedError(CcreproError):
    """A folder that another process writes to, or that cannot be locked."""

    exit_code = 6


class Stopped(CcreproError):
    """The process got SIGTERM, and saved its work."""

    exit_code = 143


class StoppedByUser(Stopped):
    """The user pressed Ctrl-C, and the work was saved."""

    exit_code = 130


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among the known ones. It proposes the nearest, or lists all."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    help_ = f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(map(repr, known))}."
    return ConfigError(f"Unknown {kind} {name!r}. {help_}")
