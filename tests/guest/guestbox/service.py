"""A uxk kernel in a process of its own that exports a disk, as a user would start it from a shell."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from uxk.bridges.control_client import ControlClient

START_SECONDS = 60
STOP_SECONDS = 30


class Service:
    """``uxk serve``, as a context manager."""

    def __init__(self, folder: Path, *words: str) -> None:
        """``folder`` takes its control socket and its output; ``words`` are those behind ``uxk serve``."""
        self.socket = folder / "uxk.sock"
        self._log = folder / "uxk.log"
        self._words = ("serve", *words, "--socket", str(self.socket), "--json")
        self.said: dict[str, Any] = {}
        """What it printed when clients could connect: the address, among others."""

    def __enter__(self) -> Service:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uxk", *self._words],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], START_SECONDS)
        line = stdout.readline() if ready else b""
        if not line:
            self._process.kill()
            self._process.wait()
            stdout.close()
            raise AssertionError(f"uxk {' '.join(self._words)} did not start: {self.complaints}")
        self.said = json.loads(line)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if error is None:
            assert code == 0, f"exit code {code} after Ctrl-C\n{self.complaints}"

    @property
    def complaints(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text(errors="replace")

    # --- looking into it --------------------------------------------------------------------------------

    def uxk(self, *words: str, ok: Sequence[int] = (0,)) -> str:
        """What ``uxk -k SOCKET WORDS`` printed."""
        command = [sys.executable, "-m", "uxk", "-k", str(self.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode in ok, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def account(self, instance: str) -> dict[str, Any]:
        """An instance's account."""

        async def ask() -> dict[str, Any]:
            async with ControlClient(self.socket) as kernel:
                return await kernel.statistics(instance)

        return trio.run(ask)

    def read(self, path: str) -> str:
        """An attribute of its /sys."""

        async def ask() -> str:
            async with ControlClient(self.socket) as kernel:
                return await kernel.read(path)

        return trio.run(ask)

    def write(self, path: str, value: str) -> None:
        """Writes an attribute of its /sys."""

        async def tell() -> None:
            async with ControlClient(self.socket) as kernel:
                await kernel.write(path, value)

        trio.run(tell)

    def log(self) -> str:
        """Its kernel log."""
        return self.uxk("dmesg")

    def json(self, *words: str) -> Any:
        """What a verb prints with ``--json``."""
        return json.loads(self.uxk(*words, "--json"))
