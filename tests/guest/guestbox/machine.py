"""The virtual machine: boot it, run commands in it, look at its kernel log."""

from __future__ import annotations

import base64
import contextlib
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from guestbox.image import initramfs, kernel, program

BOOT_SECONDS = 120
"""Usually ten to twenty; a machine that other tests keep busy takes longer."""
COMMAND_SECONDS = 90
MEMORY_MIB = 768
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 random.trust_cpu=on mitigations=off nokaslr raid=noautodetect"
HOST = "10.0.2.2"
"""This machine, as the guest sees it."""


class GuestError(AssertionError):
    """A command failed, or the guest did not answer; the message has what it printed and the end of the kernel log."""


class Answer(NamedTuple):
    """What a command did."""

    code: int
    text: str


class Guest:
    """A running virtual machine, as a context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder`` takes its sockets and its kernel log.

        Raises NotHere if qemu, the kernel package or one of the programs is missing.
        """
        self.log = folder / "kernel.log"
        self._channel_path = folder / "commands.sock"
        self._monitor_path = folder / "monitor.sock"
        image, _ = kernel()
        self._command = [
            str(program("qemu-system-x86_64")), "-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max", "-smp",
            "2", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(image), "-initrd", str(initramfs()), "-append", KERNEL_ARGUMENTS,
            "-serial", f"file:{self.log}", "-serial", f"unix:{self._channel_path},server=on,wait=off",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-monitor", f"unix:{self._monitor_path},server=on,wait=off",
        ]  # fmt: skip
        self._answers: dict[int, Answer] = {}
        self._pending = bytearray()
        self._number = 0
        self._complaints = folder / "qemu.err"

    def __enter__(self) -> Guest:
        began = time.monotonic()
        with self._complaints.open("wb") as errors:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            self._channel = self._connect(began + BOOT_SECONDS)
            self._await(0, began + BOOT_SECONDS, "boot")
        except BaseException:
            self._stop()
            raise
        self.boot_seconds = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _connect(self, deadline: float) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        while True:
            with contextlib.suppress(OSError):
                channel.connect(str(self._channel_path))
                return channel
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"qemu did not start: {self._complaints.read_text()}")
            time.sleep(0.05)

    # --- commands -------------------------------------------------------------------------------------

    def run(self, command: str, *, seconds: int = COMMAND_SECONDS, ok: Sequence[int] | None = (0,)) -> str:
        """What a shell command printed (both streams); GuestError unless its exit code is one of ``ok`` (None: any)."""
        return self.wait(self.start(command, seconds=seconds), command, seconds=seconds, ok=ok)

    def start(self, command: str, *, seconds: int = COMMAND_SECONDS) -> int:
        """Starts a command beside others, to be killed after so many seconds; give the number to :meth:`wait`."""
        self._number += 1
        text = base64.b64encode(command.encode()).decode()
        self._channel.settimeout(seconds)
        self._channel.sendall(f"{self._number} {seconds} {text}\n".encode())
        return self._number

    def wait(
        self, number: int, command: str = "", *, seconds: int = COMMAND_SECONDS, ok: Sequence[int] | None = (0,)
    ) -> str:
        """What a command that was started printed, once it has ended."""
        answer = self._await(number, time.monotonic() + seconds + 10, command)
        if ok is not None and answer.code not in ok:
            raise GuestError(f"{command}: exit code {answer.code}\n{answer.text}{self._tail()}")
        return answer.text

    def fails(self, command: str, *, seconds: int = COMMAND_SECONDS) -> str:
        """What a command printed that must fail, but end by itself."""
        answer = self._await(self.start(command, seconds=seconds), time.monotonic() + seconds + 10, command)
        if answer.code in (0, 137):
            raise GuestError(f"{command}: exit code {answer.code}, expected a failure\n{answer.text}{self._tail()}")
        return answer.text

    def until(self, command: str, *, seconds: int = 30) -> str:
        """Repeats a command in the guest until it succeeds; what it printed then."""
        return self.run(f"until sh -c {shlex.quote(command)}; do sleep 0.2; done", seconds=seconds)

    def _await(self, number: int, deadline: float, what: str) -> Answer:
        while number not in self._answers:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                chunk = self._channel.recv(1 << 16)
            except TimeoutError:
                raise GuestError(f"{what}: no answer in time{self._tail()}") from None
            if not chunk:
                raise GuestError(f"{what}: the guest is gone: {self._complaints.read_text()}{self._tail()}")
            self._pending += chunk
            if b"\n" not in chunk:
                continue
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                key, code, text = line.split(b" ")
                self._answers[int(key)] = Answer(int(code), base64.b64decode(text).decode(errors="replace"))
        return self._answers.pop(number)

    # --- hardware -------------------------------------------------------------------------------------

    def monitor(self, command: str) -> str:
        """What qemu's monitor answers: ``device_add`` and the like."""
        prompt = b"\n(qemu) "
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(COMMAND_SECONDS)
            monitor.connect(str(self._monitor_path))
            text = b""
            for line in (b"", command.encode() + b"\n"):
                monitor.sendall(line)
                text = b""
                while not text.endswith(prompt):
                    if not (chunk := monitor.recv(1 << 16)):
                        raise GuestError(f"qemu has ended: {self._complaints.read_text()}")
                    text += chunk
            return text.decode(errors="replace").replace("\r", "").removesuffix(prompt.decode()).partition("\n")[2]

    # --- the kernel log -------------------------------------------------------------------------------

    def dmesg(self) -> str:
        """All of the kernel's messages so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _tail(self) -> str:
        return "\n--- kernel log ---\n" + "\n".join(self.dmesg().splitlines()[-25:])
