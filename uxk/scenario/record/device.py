"""Which device the kernel's requests name."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from uxk.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A block device and the sectors of its disk that are its own: all, or a partition's."""

    path: str
    major: int
    minor: int
    disk: int
    """The disk in the kernel's own encoding (``major << 20 | minor``), which events are filtered by."""
    start_sector: int = 0
    end_sector: int | None = None


def device_at(path: str, *, sys: Path = Path("/sys/dev/block")) -> Device:
    """The device of a special file.  Raises :class:`UsageError` if none that has requests of its own."""
    try:
        status = os.stat(path)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", errno=exc.errno) from exc
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{path}: no block device; expected one like /dev/sda, as `lsblk` lists them")
    return described(path, os.major(status.st_rdev), os.minor(status.st_rdev), sys)


def described(path: str, major: int, minor: int, sys: Path = Path("/sys/dev/block")) -> Device:
    """As :func:`device_at`, for known numbers; ``sys`` has a folder ``MAJOR:MINOR`` for each device."""
    folder = sys / f"{major}:{minor}"
    if not folder.exists():
        raise UsageError(f"{path}: the kernel knows no block device {major}:{minor}")
    start, end, disk = 0, None, folder
    if (folder / "partition").exists():
        start = int((folder / "start").read_text())
        end = start + int((folder / "size").read_text())
        disk = folder.resolve().parent
        major_of_disk, minor_of_disk = map(int, (disk / "dev").read_text().split(":"))
    else:
        major_of_disk, minor_of_disk = major, minor
    if not (disk / "mq").is_dir():
        below = sorted(entry.name for entry in (disk / "slaves").iterdir()) if (disk / "slaves").is_dir() else []
        hint = f": record what it lies on, {', '.join(below)}" if below else ""
        raise UsageError(f"{path}: this driver passes on bios and issues no requests that could be recorded{hint}")
    return Device(path, major, minor, major_of_disk << 20 | minor_of_disk, start, end)
