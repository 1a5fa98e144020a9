"""Traces that come with the package: data files beside the code, found by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(__file__).resolve().parent.parent / "traces"
_FORMATS: Final = ((".blkparse", "blkparse"), (".pages.npy", "pages"))
_PACKED: Final = (".xz", ".gz", ".bz2")


class Bundled(NamedTuple):
    """One trace of the package."""

    name: str
    """As a workload: the file's name without its suffixes."""
    path: Path
    format: str


def bundled(folder: Path = FOLDER) -> dict[str, Bundled]:
    """The traces in ``folder`` by name: files ``NAME.blkparse`` or ``NAME.pages.npy``, packed or not."""
    found: dict[str, Bundled] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        plain = path.name
        for suffix in _PACKED:
            plain = plain.removesuffix(suffix)
        for suffix, form in _FORMATS:
            if (name := plain.removesuffix(suffix)) != plain and name and path.is_file():
                found.setdefault(name, Bundled(name, path, form))
    return found
