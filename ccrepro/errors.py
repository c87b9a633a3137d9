"""Errors a user can act on: one line that says what is wrong, where, what is allowed and how to mend it."""

import difflib
from collections.abc import Iterable


class CcreproError(Exception):
    """Base class; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, where: str, allowed: str, fix: str):
        super().__init__(f"{what} ({where}). {allowed}. {fix}.")

    @classmethod
    def from_line(cls, line: str) -> "CcreproError":
        """The error whose text is already composed, as it comes back from a notebook's kernel."""
        error = cls.__new__(cls)
        error.args = (line,)
        return error

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: in a notebook the error is its one line, without the stack above it."""
        return [f"ccrepro: error: {self}"]


class ConfigError(CcreproError, ValueError):
    """A setting, a name or a parameter that cannot be."""

    exit_code = 2


class DataError(CcreproError):
    """A data set that is missing, incomplete or damaged."""

    exit_code = 3


class PictureError(DataError, ValueError):
    """Pictures, given as arrays or as files, that cannot be clustered as they are."""


class CheckpointError(CcreproError):
    """Weights or a checkpoint that cannot be read, written or used."""

    exit_code = 4


class NumericalError(CcreproError):
    """A loss or a gradient that is not a finite number."""

    exit_code = 5


class LockedError(CcreproError):
    """A run's folder that another process writes to, or that cannot be locked."""

    exit_code = 6


class PeerError(CcreproError):
    """Another of the processes that train together is gone."""

    exit_code = 7


class Stopped(CcreproError):
    """SIGTERM, after what was under way has been saved."""

    exit_code = 143


class StoppedByUser(Stopped):
    """Ctrl-C, after what was under way has been saved."""

    exit_code = 130


def unknown(kind: str, name: object, where: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in ``known``: it proposes the nearest one, and lists all where they are few."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3)
    listed = known if len(known) <= 12 else near or known
    fix = f"Write {near[0]!r} if that is meant" if near else "Choose one of them"
    return ConfigError(f"unknown {kind} {name!r}", where, f"Known: {', '.join(map(repr, listed))}", fix)
