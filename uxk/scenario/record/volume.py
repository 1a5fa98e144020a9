"""A file system to record on: a sparse file behind a loop device, made, mounted and taken away again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from uxk.errors import UsageError, UxkError

MKFS: Final[dict[str, tuple[str, ...]]] = {
    # Blocks of 4 KiB whatever the size, and nothing left for the kernel to initialise in the background.
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K", "-b", "size=4096"),
}
"""How each file system is made; the device follows."""
SIZE_MIN_BYTES: Final[dict[str, int]] = {"ext4": 16 << 20, "xfs": 300 << 20}
PACKAGES: Final[dict[str, str]] = {
    "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "losetup": "util-linux (mount)", "mount": "util-linux (mount)",
    "umount": "util-linux (mount)", "sync": "coreutils",
}  # fmt: skip
"""Where a missing tool comes from."""
LOOP_MAJOR: Final = 7
"""Of every loop device (Documentation/admin-guide/devices.txt)."""
_PATIENCE_S: Final = 1.0
"""How long a file system may be busy before its users are killed."""
_BUSY_S: Final = 6.0
_RETRY_S: Final = 0.1
_OWN: Final = re.compile(r"(?P<folder>/.*/uxk-record-(?P<pid>\d+)-[^/ ]*)/(?P<what>mnt|tracing|volume)(?: .*)?")


def check_tools(tools: Sequence[str]) -> None:
    """Raises :class:`UsageError` naming each missing tool and its package."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        listed = ", ".join(f"{tool} (package {PACKAGES.get(tool, tool)})" for tool in missing)
        raise UsageError(f"not found: {listed}", errno=2)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder of one's own, which others may pass through but not list; removed with what is in it."""
    path = Path(tempfile.mkdtemp(prefix=f"uxk-record-{os.getpid()}-", dir=parent))
    path.chmod(0o711)  # a COMMAND may run as another user
    try:
        yield path
    finally:
        # Never into something that is still mounted.
        if not any(entry.is_mount() for entry in path.iterdir() if entry.is_dir()):
            shutil.rmtree(path)


@contextmanager
def loop_device(folder: Path, size_bytes: int) -> Iterator[str]:
    """The path of a loop device upon a new sparse file, whose name is gone at once so that it cannot be left."""
    backing = folder / "volume"
    with backing.open("xb") as file:
        file.truncate(size_bytes)
    try:
        device = tool("losetup", "--find", "--show", str(backing)).strip()
    finally:
        backing.unlink()
    try:
        yield device
    finally:
        tool("losetup", "--detach", device)
        _wait_detached(device, backing)


def _wait_detached(device: str, backing: Path) -> None:
    """The kernel lets go of a loop device when its last user has closed it, which umount may leave to be done later."""
    named = Path("/sys/block", Path(device).name, "loop", "backing_file")
    until_s = time.monotonic() + _BUSY_S
    with suppress(OSError):  # gone
        while named.read_text().startswith(str(backing)) and time.monotonic() < until_s:
            time.sleep(_RETRY_S)


@contextmanager
def mounted(device: str, fs: str, options: str, folder: Path) -> Iterator[Path]:
    """Makes a file system and mounts it below ``folder``.  Raises :class:`UxkError`, :class:`UsageError`."""
    tool(*MKFS[fs], device)
    point = folder / "mnt"
    point.mkdir()
    tool("mount", "-t", fs, *(("-o", options) if options else ()), device, str(point))
    try:
        yield point
    finally:
        unmount(point)
        point.rmdir()


def unmount(point: Path) -> None:
    """Unmounts; whoever still holds a file there is killed: as a rule a daemon that COMMAND has left behind."""
    device = point.stat().st_dev
    start_s = time.monotonic()
    # Once unmounted, by whomever, `point` is a folder of the file system below, whose users are nobody's business.
    while point.is_mount() and os.major(device) == LOOP_MAJOR:
        if not (done := _run("umount", str(point))).returncode:
            return
        waited_s = time.monotonic() - start_s
        if waited_s > _BUSY_S:
            tool("umount", "--lazy", str(point))
            raise UxkError(f"{point}: {done.stderr.strip()}; it goes when its last user does", errno=16)
        for pid in holders(device) if waited_s > _PATIENCE_S else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                print(f"# killed process {pid}, which still used the volume", file=sys.stderr)
        time.sleep(_RETRY_S)


def sweep(*, proc: Path = Path("/proc"), block: Path = Path("/sys/block")) -> None:
    """Takes away what a recorder that was killed has left: mounts, loop devices and folders that bear its number."""

    def dead(text: str) -> re.Match[str] | None:
        found = _OWN.fullmatch(text)
        return found if found and not (proc / found["pid"]).exists() else None

    folders = set()
    for line in (proc / "self/mounts").read_text().splitlines():
        if found := dead(line.split(" ")[1]):
            point = Path(found[0])
            # Its last user's end may have taken the mount away meanwhile: then there is nothing to do.
            if point.is_mount():
                tool("umount", "--lazy", str(point)) if found["what"] == "tracing" else unmount(point)
            folders.add(found["folder"])
    for backing in block.glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached meanwhile
            if found := dead(backing.read_text().strip()):
                tool("losetup", "--detach", f"/dev/{backing.parent.parent.name}")
                folders.add(found["folder"])
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def holders(device: int, *, proc: Path = Path("/proc")) -> list[int]:
    """Processes, but this one, with a file or folder on ``device`` (``st_dev``)."""
    others = (entry for entry in proc.iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid())
    return [int(entry.name) for entry in others if _holds(entry, device)]


def _holds(process: Path, device: int) -> bool:
    with suppress(OSError):
        for link in (process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()):
            with suppress(OSError):
                if link.stat().st_dev == device:
                    return True
    return False


def tool(*command: str) -> str:
    """Runs a tool and returns what it prints; raises :class:`UxkError` with what it complains of."""
    done = _run(*command)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UxkError(f"`{' '.join(command)}`: {said}")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    # In a session of its own: Ctrl-C ends the recording, not the tools that clean up after it.
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True, stdin=subprocess.DEVNULL)
