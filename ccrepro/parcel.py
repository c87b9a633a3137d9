"""Files cut into loads that small transfers take, each part with its SHA-256, and put together again where they arrive.

A parcel is a folder of loads 1, 2, …; a load is a folder that goes in one transfer. Every load holds the whole parcel's
``manifest.json``: its name, facts, and of each file its SHA-256 and its parts, each with its own and its load.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ccrepro.errors import DataError
from ccrepro.files import atomic_write

MANIFEST = "manifest.json"
SAFE = re.compile(r"[A-Za-z0-9._-]+")  # what a name may hold on its way


class Limits(NamedTuple):
    """What one transfer takes: bytes of a part, bytes of a load, files of a load, its manifest counted in."""

    part: int
    load: int
    files: int


def pack(
    name: str, sources: Mapping[str, bytes | Path], folder: Path, limits: Limits, facts: dict[str, Any] | None = None
) -> list[Path]:
    """Write files as the loads of a parcel, in their order, into a folder that is emptied first; the loads' folders.

    Raises `DataError` for a name that transfers may not take.
    """
    for each in sources:
        if not SAFE.fullmatch(each):
            raise DataError(f"file name {each!r}", name, "Letters, digits, dots, _ and - only", "Rename it")
    shutil.rmtree(folder, ignore_errors=True)
    manifest: dict[str, Any] = {"name": name, "facts": facts or {}, "files": {}}
    load, size, count = 1, 0, 1
    for each, source in sources.items():
        blob = source.read_bytes() if isinstance(source, Path) else source
        pieces = [blob[i : i + limits.part] for i in range(0, max(1, len(blob)), limits.part)]
        parts = []
        for number, piece in enumerate(pieces, 1):
            if size + len(piece) > limits.load or count == limits.files:
                load, size, count = load + 1, 0, 1
            size, count = size + len(piece), count + 1
            part = each if len(pieces) == 1 else f"{each}.part{number}of{len(pieces)}"
            atomic_write(folder / str(load) / part, piece)
            parts.append({"name": part, "load": load, "bytes": len(piece), "sha256": _sha256(piece)})
        manifest["files"][each] = {"bytes": len(blob), "sha256": _sha256(blob), "parts": parts}
    manifest["loads"] = load
    text = json.dumps(manifest, indent=1)
    for number in range(1, load + 1):
        atomic_write(folder / str(number) / MANIFEST, text)
    return [folder / str(number) for number in range(1, load + 1)]


def read_manifest(load: Path) -> dict[str, Any]:
    """The manifest in a load's folder. Raises `DataError` where there is none, or a damaged one."""
    try:
        manifest = json.loads((load / MANIFEST).read_text())
        manifest["files"], manifest["loads"], manifest["name"], manifest["facts"]
    except OSError:
        raise DataError("no manifest.json", str(load), "A load of a parcel has one", "Give its folder") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "manifest.json is damaged", str(load), "It must be as it was written", "Send it again"
        ) from None
    return manifest


def receive(load: Path, inbox: Path) -> tuple[Path, dict[str, Any]]:
    """Check what a load holds and keep it; files of which all parts are there are put together.

    Returns the parcel's folder below ``inbox``, named by its contents, and its manifest. Raises `DataError` for a
    part that is damaged, of which nothing is kept; what is absent is told by `missing`.
    """
    manifest = read_manifest(load)
    place = inbox / f"{manifest['name']}-{_sha256(json.dumps(manifest).encode())[:12]}"
    for part in (p for file in manifest["files"].values() for p in file["parts"]):
        arrived = load / part["name"]
        if arrived.exists():
            blob = arrived.read_bytes()
            if _sha256(blob) != part["sha256"]:
                what = f"{part['name']} is damaged: its {len(blob):,} bytes do not match their SHA-256"
                raise DataError(what, str(load), f"{part['bytes']:,} bytes as they were sent", "Send it again")
            atomic_write(place / part["name"], blob)
    for name, file in manifest["files"].items():
        _join(place, name, file)
    return place, manifest


def _join(place: Path, name: str, file: dict[str, Any]) -> None:
    """Put a file together once all its parts are there, and drop these."""
    paths = [place / part["name"] for part in file["parts"]]
    if len(paths) == 1 or (place / name).exists() or not all(path.exists() for path in paths):
        return
    blob = b"".join(path.read_bytes() for path in paths)
    if _sha256(blob) != file["sha256"]:
        raise DataError(f"{name} is damaged", str(place), "Its parts are sound, its whole is not", "Pack it again")
    atomic_write(place / name, blob)
    for path in paths:
        path.unlink()


def missing(place: Path, manifest: dict[str, Any]) -> list[int]:
    """The loads of which something has not arrived, or, once all has, none."""
    absent = [file for name, file in manifest["files"].items() if not (place / name).exists()]
    return sorted({p["load"] for file in absent for p in file["parts"] if not (place / p["name"]).exists()})


def describe(loads: Iterable[Path]) -> str:
    """A line for each load: its folder, files and bytes."""
    lines = []
    for load in loads:
        sizes = [path.stat().st_size for path in sorted(load.iterdir())]
        lines.append(f"{load}  {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
    return "\n".join(lines)


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()
