"""Where a file system is mounted: checks before, and the way out."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import trio

from uxk.errors import UsageError

SUBTYPE: Final = "uxk"
FSTYPE: Final = f"fuse.{SUBTYPE}"
"""As /proc/self/mountinfo calls it."""
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_PROC_SELF: Final = Path("/proc/self")
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_UNMOUNT_TIMEOUT_S: Final = 10


class Entry(NamedTuple):
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    folder: str
    fstype: str
    minor: str
    """Minor number of its device: fusectl's name for the connection."""


def mounts() -> list[Entry]:
    """What is mounted, as this process sees it, the newest last."""
    found = []
    for line in (_PROC_SELF / "mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        _, _, device, _, place, *_ = before.split(" ")
        folder = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), place)
        found.append(Entry(folder, after.split(" ", 1)[0], device.split(":")[1]))
    return found


def fstype_at(folder: str) -> str:
    """The type of the file system mounted exactly there, or ``""``."""
    return next((entry.fstype for entry in reversed(mounts()) if entry.folder == folder), "")


def prepare(folder: str | os.PathLike[str]) -> str:
    """The real path of a folder that can be mounted on.  A mount of ours whose server died is taken away first.

    UsageError: ENOENT, ENOTDIR, EBUSY if something is mounted there already, and whatever else stat(2) says.
    """
    path = real_path(folder)
    if fstype_at(path) == FSTYPE and _dead(path):
        detach(path)
    if fstype := fstype_at(path):
        raise UsageError(f"{path}: {fstype} is mounted there already", errno=errno.EBUSY)
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        hint = f" (make it first: mkdir -p {path})" if exc.errno == errno.ENOENT else ""
        raise UsageError(f"{path}: {exc.strerror}{hint}", errno=exc.errno or errno.EIO) from exc
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{path}: expected a folder", errno=errno.ENOTDIR)
    return path


def unmount(folder: str | os.PathLike[str], *, lazy: bool = False, force: bool = False) -> None:
    """Ends a mount of uxk, whichever process serves it.

    ``lazy`` also takes away one that is in use, for those who come later.  ``force`` ends one whose server hangs, too:
    whoever waits for it gets ECONNABORTED.  UsageError: EINVAL if no such is there, EBUSY if it is in use, EPERM,
    ETIMEDOUT.
    """
    path = real_path(folder)
    entry = next((entry for entry in reversed(mounts()) if entry.folder == path), None)
    if entry is None or entry.fstype != FSTYPE:
        what = "nothing is mounted there" if entry is None else f"{entry.fstype} is mounted there, expected {FSTYPE}"
        raise UsageError(f"{path}: {what}", errno=errno.EINVAL)
    if force:
        abort(entry)
    detach(path, lazy=lazy or force)


def abort(entry: Entry) -> None:
    """Ends a connection, by the file that Linux has for that (Documentation/filesystems/fuse.rst)."""
    file = _CONNECTIONS / entry.minor / "abort"
    try:
        file.write_text("1")
    except FileNotFoundError:  # fusectl is not mounted
        if os.geteuid() == 0:
            run(["umount", "-f", "-l", entry.folder], entry.folder)  # without -l it ends it, and then says EBUSY
        else:
            raise UsageError(f"{file}: there is none; root can force it", errno=errno.EPERM) from None
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}", errno=exc.errno or errno.EIO) from exc


def detach(path: str, *, lazy: bool = True) -> None:
    """Unmounts, by umount(8) for root and fusermount3(1) for others.  No error if it is gone already."""
    own = shutil.which("fusermount3")
    if os.geteuid() == 0 or own is None:
        run(["umount", *(["-l"] if lazy else []), path], path)
    else:
        run([own, "-u", *(["-z"] if lazy else []), path], path)


def run(command: list[str], path: str) -> None:
    """Runs a command that unmounts ``path``.  UsageError with what it says, unless nothing is there afterwards."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_UNMOUNT_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise UsageError(f"{path}: needs {command[0]}", errno=errno.ENOPKG) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path}: {command[0]} does not end", errno=errno.ETIMEDOUT) from None
    if done.returncode and fstype_at(path) == FSTYPE:
        busy = "busy" in done.stderr
        hint = " (it is in use: `-l` detaches it all the same)" if busy else ""
        text = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UsageError(f"{path}: {text[0]}{hint}", errno=errno.EBUSY if busy else errno.EPERM)


def real_path(folder: str | os.PathLike[str]) -> str:
    """An absolute path without links, which asks nothing of what is mounted at its end: that may hang."""
    absolute = os.path.abspath(folder)
    parent, name = os.path.split(absolute)
    path = os.path.join(os.path.realpath(parent), name)
    return path if fstype_at(path) else os.path.realpath(absolute)


def _dead(path: str) -> bool:
    """Whether nobody serves a mount any more.  One that hangs is not dead; so another process asks it."""
    try:
        done = subprocess.run(["stat", path], capture_output=True, timeout=2, check=False, env={"LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return False
    return os.strerror(errno.ENOTCONN).encode() in done.stderr


class Helper:
    """fusermount3, which unmounts when this process dies in whatever way: libfuse's ``auto_unmount``.

    libfuse holds on to its socket, the sign of life, and to the process until it exits; so they are noted here while
    it makes them, and end with the mount.
    """

    def __init__(self) -> None:
        self._sockets: set[int] = set()
        self._children: set[int] = set()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What is made meanwhile is the helper's.  Nothing else may run in this process."""
        sockets, children = _sockets(), _children()
        yield
        self._sockets, self._children = _sockets() - sockets, _children() - children

    async def end(self) -> None:
        """Lets it go.  It finds nothing to unmount, and is buried."""
        for number in self._sockets:
            with suppress(OSError):
                os.close(number)
        self._sockets.clear()
        with trio.move_on_after(1):
            while self._children:
                self._children = {pid for pid in self._children if _lives(pid)}
                if self._children:
                    await trio.sleep(0.005)


def _sockets() -> set[int]:
    found = set()
    for name in os.listdir(_PROC_SELF / "fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def _children() -> set[int]:
    found = set[int]()
    for task in (_PROC_SELF / "task").iterdir():
        with suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _lives(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False
