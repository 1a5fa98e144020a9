"""Walking a folder without ever leaving it: each step from the descriptor of the last, no link followed by the system.

What openat2(2) calls RESOLVE_BENEATH and RESOLVE_NO_XDEV, by hand, since Python has no openat2: a name is opened with
O_PATH and O_NOFOLLOW in its folder's descriptor, a link is read and its components are walked in turn, ``..`` goes back
to the descriptor before, and never above the first.  All here blocks; call it in a thread.
"""

from __future__ import annotations

import errno
import os
import stat as st
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from uxk.core.kobject import split_path, tree_error
from uxk.core.tree import LINKS_FOLLOWED_MAX

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
SYSTEM_TYPES: Final = frozenset({
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl",
    "mqueue", "proc", "pstore", "resctrl", "securityfs", "selinuxfs", "sysfs", "tracefs",
})  # fmt: skip
"""File systems whose files are the machine's own kernel."""


class Descriptor:
    """A file descriptor with one owner.  Closing one may ask the file system, and so must happen in a thread."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close_elsewhere(self) -> None:
        """Closes it in a thread and does not wait: a mount may be served by the very thread that calls this."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            trio.lowlevel.start_thread_soon(lambda: os.close(fd), lambda outcome: None)

    def __del__(self) -> None:
        if self.fd >= 0:  # its owner was cancelled before it had it
            self.close_elsewhere()


class Place(Descriptor):
    """One that was opened with O_PATH: the file system never hears of it being closed."""

    __slots__ = ()

    def __del__(self) -> None:
        self.close()


@dataclass
class Found:
    """What a path leads to: a descriptor good for ``fstat`` and :func:`reopen`, its status, its path without links."""

    at: Place
    status: os.stat_result
    names: tuple[str, ...]


class Walk:
    """Finds files below ``root``, which is opened anew each time, so that nothing keeps it from being unmounted."""

    def __init__(self, root: Path, *, system: bool) -> None:
        self._root = root
        self._system = system
        self._harmless: set[int] = set()

    def find(self, path: str, *, follow: bool = True) -> Found:
        """ENOENT, ENOTDIR, ELOOP; EXDEV for what leaves the folder or its file system; EPERM for the machine's own."""
        todo = deque(split_path(path))
        stack = [Place(os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))]
        statuses, names, followed = [os.fstat(stack[0].fd)], list[str](), 0
        self._check_root(path, statuses[0].st_dev)
        while todo:
            name = todo.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                if not names:
                    raise tree_error(path, f"a link leads out of {self._root}", errno.EXDEV)
                stack.pop()
                statuses.pop()
                names.pop()
                continue
            at = Place(os.open(name, _STEP, dir_fd=stack[-1].fd))
            status = os.fstat(at.fd)
            if status.st_dev != statuses[0].st_dev:
                raise tree_error(path, f"{name!r} is another file system", errno.EXDEV)
            if st.S_ISLNK(status.st_mode) and (todo or follow):
                followed += 1
                if followed > LINKS_FOLLOWED_MAX:
                    raise tree_error(path, f"more than {LINKS_FOLLOWED_MAX} links on the way", errno.ELOOP)
                target = os.readlink("", dir_fd=at.fd)
                if target.startswith("/"):
                    raise tree_error(path, f"a link leads out of {self._root}", errno.EXDEV)
                todo.extendleft(reversed(target.split("/")))
                continue
            stack.append(at)
            statuses.append(status)
            names.append(name)
        return Found(stack[-1], statuses[-1], tuple(names))

    def _check_root(self, path: str, device: int) -> None:
        if self._system or device in self._harmless:
            return
        kind = file_system_type(device)
        if kind in SYSTEM_TYPES:
            complaint = f"{self._root} is the machine's own ({kind}): only with system=True"
            raise tree_error(path, complaint, errno.EPERM)
        self._harmless.add(device)


def reopen(found: Found, flags: int) -> Descriptor:
    """Opens exactly what was found, never what has taken its place; nothing blocks, nothing becomes a terminal."""
    more = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return Descriptor(os.open(f"/proc/self/fd/{found.at.fd}", flags | more))


def link_text(found: Found) -> str:
    """Where a link points."""
    return os.readlink("", dir_fd=found.at.fd)


def file_system_type(device: int) -> str:
    """The type of the file system with that device number, "" if it is not mounted here (proc(5): mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if before.split(" ", 3)[2] == number:
                return after.split(" ", 1)[0]
    return ""
