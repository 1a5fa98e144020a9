"""A tracefs instance of its own: nobody else's tracing is disturbed, and removing it removes every trace of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import trio

from uxk.errors import UsageError, UxkError
from uxk.scenario.record.lines import EVENT, lost_of_stats
from uxk.scenario.record.volume import tool

BUFFER_KIB: Final = 16 * 1024
"""Per CPU: some 200,000 events, a second or more of the busiest device."""
BUFFERS_MAX_KIB: Final = 512 * 1024
"""Of all CPUs together, as the kernel allocates them at once."""
DRAIN_S: Final = 0.05
_CHUNK_BYTES: Final = 1 << 16
_CHUNKS_AT_ONCE: Final = 64
_INSTANCE: Final = re.compile(r"uxk-record-(\d+)")


class Tracer:
    """Requests of one device, in a tracefs instance; made by :func:`tracer`."""

    def __init__(self, folder: Path, spool: BinaryIO) -> None:
        self._folder = folder
        self._spool = spool
        self._pipe = os.open(folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)

    def begin(self) -> None:
        """From now on requests are recorded."""
        _write(self._folder / f"events/block/{EVENT}/enable", "1")

    async def drain(self) -> None:
        """Copies events to the spool as they come, until cancelled."""
        while True:
            while self._copy(_CHUNKS_AT_ONCE):
                await trio.lowlevel.checkpoint()
            await trio.sleep(DRAIN_S)

    def end(self) -> int:
        """Stops, copies what is left, and returns how many events the kernel lost."""
        _write(self._folder / f"events/block/{EVENT}/enable", "0")
        while self._copy(_CHUNKS_AT_ONCE):
            pass
        self._spool.flush()
        return sum(lost_of_stats(stats.read_text()) for stats in self._folder.glob("per_cpu/cpu*/stats"))

    def close(self) -> None:
        """Lets go of the pipe, without which the instance cannot be removed."""
        os.close(self._pipe)

    def _copy(self, chunks: int) -> bool:
        """Whether there may be more."""
        for _ in range(chunks):
            try:
                chunk = os.read(self._pipe, _CHUNK_BYTES)
            except BlockingIOError:
                return False
            if not chunk:
                return False
            self._spool.write(chunk)
        return True


@contextmanager
def tracer(device: int, spool: BinaryIO, scratch: Path) -> Iterator[Tracer]:
    """Prepares the recording of ``device`` (kernel number, ``major << 20 | minor``) into ``spool``.

    tracefs is mounted under ``scratch`` meanwhile if it is not mounted anywhere.  Raises :class:`UxkError`.
    """
    with _tracefs(scratch) as root:
        if not (root / f"events/block/{EVENT}").is_dir():
            raise UsageError(
                f"{root}: the kernel has no tracepoint block:{EVENT}; it must be built with CONFIG_BLK_DEV_IO_TRACE "
                "(or another user of block tracepoints)"
            )
        _sweep(root)
        folder = root / "instances" / f"uxk-record-{os.getpid()}"
        folder.mkdir()
        try:
            _write(folder / "trace_clock", "mono")
            _write(folder / "buffer_size_kb", str(min(BUFFER_KIB, BUFFERS_MAX_KIB // (os.cpu_count() or 1))))
            _write(folder / f"events/block/{EVENT}/filter", f"dev == {device}")
            tracing = Tracer(folder, spool)
            try:
                yield tracing
            finally:
                tracing.close()
        finally:
            _remove(folder)


def tracefs_of(mounts: str) -> Path | None:
    """Where the text of ``/proc/self/mounts`` says that tracefs is mounted.

    The copy below debugfs would do, too, but is mounted only on first use and so is not looked for; another
    recorder's goes when that recorder does.
    """
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == "tracefs" and "/uxk-record-" not in fields[1]:
            return Path(fields[1].encode().decode("unicode_escape"))
    return None


@contextmanager
def _tracefs(scratch: Path) -> Iterator[Path]:
    if (root := tracefs_of(Path("/proc/self/mounts").read_text())) is not None:
        yield root
        return
    root = scratch / "tracing"
    root.mkdir()
    try:
        tool("mount", "-t", "tracefs", "nodev", str(root))
    except UxkError as exc:
        raise UsageError(
            f"tracefs cannot be mounted: {exc}; a kernel with CONFIG_TRACING and the right to mount are needed "
            "(root of a container has not)"
        ) from None
    try:
        yield root
    finally:
        tool("umount", "--lazy", str(root))
        root.rmdir()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise UxkError(f"{path}: writing {text!r}: {exc.strerror}", errno=exc.errno) from exc


def _remove(folder: Path) -> None:
    with suppress(OSError, UxkError):
        _write(folder / f"events/block/{EVENT}/enable", "0")
    with suppress(OSError):
        folder.rmdir()  # the files inside are the kernel's


def _sweep(root: Path) -> None:
    """Removes instances of recorders that were killed."""
    for folder in (root / "instances").iterdir():
        found = _INSTANCE.fullmatch(folder.name)
        if found and not Path("/proc", found[1]).exists():
            _remove(folder)
