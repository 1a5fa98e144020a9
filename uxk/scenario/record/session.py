"""One recording from beginning to end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

import trio

from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.scenario.record.columns import Columns
from uxk.scenario.record.device import Device, device_at
from uxk.scenario.record.tracing import tracer
from uxk.scenario.record.volume import (
    MKFS,
    SIZE_MIN_BYTES,
    check_tools,
    loop_device,
    mounted,
    scratch_folder,
    sweep,
    tool,
)

SPOOL_NAME: Final = "events"
GRACE_S: Final = 10.0
"""What COMMAND gets between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Plan:
    """What to record: ``command`` on a new volume, or an existing ``device``, which is never written to."""

    command: tuple[str, ...] = ()
    fs: str = "ext4"
    size_bytes: int = 2 << 30
    seconds: float | None = None
    mount_options: str = ""
    device: str | None = None
    backing: Path | None = None
    """Where the volume's sparse file lies; the machine's place for temporary files if None."""
    stdout: int | None = None
    """File descriptor for what COMMAND prints, if not standard output."""

    def check(self) -> None:
        """Raises :class:`UsageError` on what cannot be, before anything is touched."""
        if self.fs not in MKFS:
            hint = did_you_mean(self.fs, MKFS)
            raise UsageError(f"file system {self.fs!r}{hint}: expected one of {', '.join(MKFS)}")
        if self.seconds is not None and not 0 < self.seconds < 1e9:
            raise UsageError(f"{self.seconds:g} seconds: expected more than 0")
        if self.device is None and not self.command:
            raise UsageError("nothing to record: give a command behind `--`, or an existing device with --device")
        if self.device is None and self.size_bytes < SIZE_MIN_BYTES[self.fs]:
            least = SIZE_MIN_BYTES[self.fs] >> 20
            raise UsageError(f"size of {self.size_bytes} bytes: {self.fs} needs at least {least}MiB")
        if self.backing is not None and not self.backing.is_dir():
            raise UsageError(f"{self.backing}: no folder for the volume's file", errno=errno.ENOENT)
        if os.geteuid() != 0:
            raise UsageError(
                "needs root, to trace the kernel's block layer and for the loop device and its mount: try sudo",
                errno=errno.EPERM,
            )
        check_tools(("mount", "umount", *(("losetup", "sync", MKFS[self.fs][0]) if self.device is None else ())))
        if self.command and shutil.which(self.command[0]) is None:
            raise UsageError(f"{self.command[0]}: no such command", errno=errno.ENOENT)


@dataclass(frozen=True)
class Recording:
    """What came of it."""

    columns: Columns
    device: Device
    lost: int
    """Events that the kernel had to drop."""
    exit_code: int | None
    """Of COMMAND; negative for a signal; None if it was ended, or there was none."""
    signal: int | None
    """The signal that ended the recording early, if one did."""


async def record(plan: Plan) -> Recording:
    """Records as planned and leaves nothing behind, whatever happens, SIGINT and SIGTERM included.

    A signal ends the recording early; what was recorded is returned.  Raises :class:`UxkError`.
    """
    plan.check()
    sweep()
    with ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        scratch = stack.enter_context(scratch_folder(plan.backing))
        spool = stack.enter_context((scratch / SPOOL_NAME).open("w+b"))
        device, workdir = stack.enter_context(_target(plan, scratch))
        tracing = stack.enter_context(tracer(device.disk, spool, scratch))
        work = _Work(plan, workdir)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tracing.drain)
            nursery.start_soon(work.end_on_signal, signals)
            tracing.begin()
            await work.run()
            if workdir is not None:
                await trio.to_thread.run_sync(partial(tool, "sync", "--file-system", str(workdir)))
            nursery.cancel_scope.cancel()
        lost = tracing.end()
        columns = _read(spool, device)
    return Recording(columns, device, max(lost, columns.lost), work.exit_code, work.signal)


@contextmanager
def _target(plan: Plan, scratch: Path) -> Iterator[tuple[Device, Path | None]]:
    """The device to record, and the folder for COMMAND if it is a new volume."""
    if plan.device is not None:
        yield device_at(plan.device), None
        return
    with loop_device(scratch, plan.size_bytes) as path, mounted(path, plan.fs, plan.mount_options, scratch) as point:
        yield device_at(path), point


class _Work:
    """The time that is recorded: until COMMAND ends, the seconds are over, or a signal comes."""

    def __init__(self, plan: Plan, workdir: Path | None) -> None:
        self._plan = plan
        self._workdir = workdir
        self._scope = trio.CancelScope()
        self.exit_code: int | None = None
        self.signal: int | None = None

    async def end_on_signal(self, signals: AsyncIterator[int]) -> None:
        """Ends the work at the first signal; further ones change nothing, as cleaning up is under way."""
        async for number in signals:
            self.signal = self.signal or int(number)
            self._scope.cancel()

    async def run(self) -> None:
        """Returns when the time to record is over and all of COMMAND's processes are gone."""
        with self._scope:
            if self._plan.seconds is not None:
                self._scope.deadline = trio.current_time() + self._plan.seconds
            if not self._plan.command:
                await trio.sleep_forever()
            environment = dict(os.environ)
            if self._workdir is not None:
                environment["UXK_MOUNT"] = str(self._workdir)
            process = await trio.lowlevel.open_process(
                self._plan.command, cwd=self._workdir, env=environment, start_new_session=True, stdout=self._plan.stdout
            )
            try:
                await process.wait()
                self.exit_code = process.returncode
            finally:
                with trio.CancelScope(shield=True):
                    await _end_session(process)


async def _end_session(process: trio.Process) -> None:
    """Ends whatever still runs in the process group of ``process``, politely first."""
    for number in (int(signal.SIGTERM), int(signal.SIGKILL)):
        with trio.move_on_after(GRACE_S):
            asked = number
            while _signal_group(process.pid, asked):
                asked = 0  # asked once; then only looked at
                if process.returncode is None:
                    with trio.move_on_after(0.1):
                        await process.wait()
                else:
                    await trio.sleep(0.02)
            return


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anyone to send it to."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False


def _read(spool: IO[bytes], device: Device) -> Columns:
    columns = Columns()
    spool.seek(0)
    lines = (line.decode(errors="replace") for line in spool)
    columns.feed(lines, start=device.start_sector, end=device.end_sector)
    return columns
