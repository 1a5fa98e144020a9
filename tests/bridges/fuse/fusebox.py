"""A kernel mounted in a temporary folder, and the tools that are let loose on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

import uxk
from uxk.bridges.fuse.library import missing
from uxk.bridges.fuse.mountpoint import fstype_at
from uxk.core.cost import ClockKind

T = TypeVar("T")
WITHIN_S = 60
"""Bound of everything: what takes longer is stuck, however busy the machine."""

needs_fuse = pytest.mark.skipif(bool(missing()), reason=missing())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = 65534


@dataclass
class Mounted:
    """Where, and what."""

    kernel: uxk.Kernel
    folder: Path

    async def sh(self, script: str, *, status: int = 0) -> str:
        """What a shell in the mount prints, errors included."""
        return await sh(self.folder, script, status=status)

    async def call(self, function: Callable[..., T], path: str, *arguments: Any) -> T:
        """Calls ``function(path, ...)`` in a thread."""
        return await in_thread(function, self.folder / path, *arguments)

    async def errno(self, function: Callable[..., Any], path: str, *arguments: Any) -> int:
        """The errno that it fails with, 0 if it does not."""
        return await failing(function, self.folder / path, *arguments)


@asynccontextmanager
async def mounted(folder: Path, *modules: str, clock: ClockKind = "virtual", **options: Any) -> AsyncIterator[Mounted]:
    """A kernel with some modules, mounted below ``folder``; unmounted for sure at the end."""
    place = folder / "mnt"
    place.mkdir(exist_ok=True)
    async with uxk.Kernel(clock=clock) as kernel:
        for name in modules:
            await kernel.modprobe(name)
        async with kernel.mount(place, **options):
            yield Mounted(kernel, place)
    assert fstype_at(str(place.resolve())) == ""


async def sh(folder: Path, script: str, *, status: int = 0) -> str:
    """What a shell in ``folder`` prints, errors included."""
    with trio.fail_after(WITHIN_S):
        done = await trio.run_process(
            ["sh", "-c", script], cwd=folder, env={**os.environ, "LC_ALL": "C"}, check=False,
            capture_stdout=True, stderr=subprocess.STDOUT,
        )  # fmt: skip
    text = done.stdout.decode()
    assert done.returncode == status, text
    return text


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function that may wait for the mount: this thread serves it."""
    with trio.fail_after(WITHIN_S):
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


async def failing(function: Callable[..., Any], *arguments: Any) -> int:
    """The errno that a call in a thread fails with, 0 if it does not."""
    try:
        await in_thread(function, *arguments)
    except OSError as exc:
        return exc.errno or -1
    return 0


def put(path: Path, data: bytes, flags: int = os.O_WRONLY | os.O_TRUNC) -> None:
    """One write(2)."""
    fd = os.open(path, flags)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def get(path: Path, flags: int = os.O_RDONLY) -> bytes:
    """Everything, by read(2)."""
    fd = os.open(path, flags)
    try:
        return b"".join(iter(lambda: os.read(fd, 4096), b""))
    finally:
        os.close(fd)
