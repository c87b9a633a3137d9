"""Errors that a user can act on. Each is one or two sentences: what is wrong, and what to do."""

import difflib
from collections.abc import Iterable


class CcreproError(Exception):
    """Base class; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __init_subclass__(cls, exit_code: int | None = None):
        cls.exit_code = exit_code or cls.exit_code

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: in a notebook the error is its own line, without the stack above it."""
        return [f"ccrepro: error: {self}"]


class ConfigError(CcreproError, ValueError, exit_code=2):
    """A setting, a name or a parameter that is not allowed."""


class NotInstalled(ConfigError):
    """A package that is needed for what was asked for."""


class DataError(CcreproError, exit_code=3):
    """A data set that is missing, incomplete or damaged."""


class ImageError(DataError, ValueError):
    """A user's images that cannot be clustered as they are."""


class CheckpointError(CcreproError, exit_code=4):
    """Weights or a checkpoint that cannot be read, written or used."""


class NumericalError(CcreproError, exit_code=5):
    """A loss or a gradient that is not a finite number."""


class LockedError(CcreproError, exit_code=6):
    """A folder that another process writes to, or that cannot be locked."""


class Stopped(CcreproError, exit_code=143):
    """The process got SIGTERM, and saved its work."""


class StoppedByUser(Stopped, exit_code=130):
    """The user pressed Ctrl-C, and the work was saved."""


def unknown(kind: str, name: object, known: Iterable[str], more: str = "") -> ConfigError:
    """The error for a name that is not among the known ones. It proposes the nearest, or lists all; then ``more``."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    help_ = f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(map(repr, known))}."
    return ConfigError(f"Unknown {kind} {name!r}. {help_} {more}".strip())
