"""fio over NBD against uxk, nbdkit and qemu-nbd, side by side: ``python -m bench.block_serve [--only NAME] [--quick]``.

All three keep 256 MiB in memory, every block of which was written before; all of uxk's accounting is on.  qemu-nbd,
which has no disk in memory of its own, gets a file in /dev/shm.  The same fio runs against each in turn, for as long as
``--seconds`` says; see :mod:`bench.runner` for how rounds and ratios are made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.runner import Case, Contender, Target, run_case

STEM = "block-serve-"
SIZE_BYTES = 256 << 20
NEEDED = ("fio", "nbdkit", "qemu-nbd", "nbdinfo")
START_SECONDS = 20

SHALLOW, DEEP, SEQUENTIAL = 0.3, 0.7, 0.8
"""Demanded of uxk, as a part of nbdkit's rate: at depth 1, at depth 32, and of long sequential requests."""


class Pattern(NamedTuple):
    """What fio does."""

    rw: str
    block_bytes: int
    depth: int
    floor: float | None
    """Demanded of uxk over nbdkit."""

    @property
    def name(self) -> str:
        """Of the case."""
        return f"nbd/{self.rw}/{self.block_bytes >> 10}k/{self.depth}"


_FLOORS = {1: SHALLOW, 8: None, 32: DEEP}
PATTERNS = (
    *(
        Pattern(rw, 4 << 10, depth, _FLOORS[depth])
        for rw in ("randread", "randwrite", "randrw")
        for depth in (1, 8, 32)
    ),
    *(Pattern(rw, 128 << 10, 8, SEQUENTIAL) for rw in ("read", "write")),
)


# --- the servers --------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A disk that can be reached through a Unix socket: ``command(socket path, folder)``."""

    name: str
    command: Callable[[Path, Path], list[str]]
    note: str = ""


def _uxk(path: Path, folder: Path) -> list[str]:
    del folder
    return [sys.executable, "-m", "uxk", "serve", "nbd", "nvme", "-p", f"size={SIZE_BYTES}", "--unix", str(path)]


def _nbdkit(path: Path, folder: Path) -> list[str]:
    del folder
    return ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(path), "memory", str(SIZE_BYTES)]


def _qemu_nbd(path: Path, folder: Path) -> list[str]:
    image = folder / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return [
        "qemu-nbd",
        "--persistent",
        "--shared=8",
        "--format=raw",
        "--cache=writeback",
        "--socket",
        str(path),
        str(image),
    ]


SERVERS = (Server("uxk", _uxk), Server("nbdkit", _nbdkit, "memory"), Server("qemu-nbd", _qemu_nbd, "file in /dev/shm"))


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Starts it, fills its disk, and gives its address; SystemExit with its complaints if it does not start."""
    with tempfile.TemporaryDirectory(prefix="uxk-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        path = folder / "nbd.sock"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(server.command(path, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            uri = f"nbd+unix:///?socket={path}"
            while not (
                path.exists() and subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode == 0
            ):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"bench: {server.name} does not answer: {(folder / 'log').read_text()}")
                time.sleep(0.05)
            fio(uri, "--rw=write", "--bs=128k", "--iodepth=8", f"--size={SIZE_BYTES}")
            yield uri
        finally:
            process.terminate()
            process.wait()


# --- fio ----------------------------------------------------------------------------------------------


def fio(uri: str, *options: str) -> dict[str, Any]:
    """Runs one job and returns fio's figures of it.  Raises CalledProcessError."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    found: dict[str, Any] = job
    return found


def measure(uri: str, pattern: Pattern, run_ms: int, count: int) -> tuple[int, int]:
    """Requests that were answered, and the time they took; ``count`` is left to the clock."""
    del count
    job = fio(
        uri, f"--rw={pattern.rw}", f"--bs={pattern.block_bytes}", f"--iodepth={pattern.depth}", "--time_based",
        f"--runtime={run_ms}ms", f"--size={SIZE_BYTES}", "--norandommap",
    )  # fmt: skip
    return job["read"]["total_ios"] + job["write"]["total_ios"], job["job_runtime"] * 1_000_000


# --- the program --------------------------------------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.block_serve", description="fio over NBD, side by side.")
    add_options(parser, STEM, "two rounds of a third of a second")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long fio runs each time (2)")
    args = parsed(parser, argv)
    if args.quick:
        args.rounds, args.seconds = 2, 0.35
    if not 0.1 <= args.seconds <= 600:
        parser.error(f"--seconds {args.seconds}: expected 0.1 to 600")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if a program is missing or no case has such a name."""
    args = _parse(argv)
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        print(f"bench: needs {', '.join(missing)}: .ci/run lists the Debian packages", file=sys.stderr)
        return 2
    patterns = chosen(PATTERNS, args.only, lambda pattern: pattern.name)
    if not patterns:
        return 2
    run_ms = int(args.seconds * 1000)
    print(f"{os.cpu_count()} CPUs, {args.rounds} rounds, servers interleaved, fio for {run_ms} ms each time\n")
    report = begun(rounds=args.rounds, run_ms=run_ms)
    with running(SERVERS[0]) as first, running(SERVERS[1]) as second, running(SERVERS[2]) as third:
        for pattern in patterns:
            contenders = [
                Contender(server.name, partial(measure, uri, pattern, run_ms), server.note)
                for server, uri in zip(SERVERS, (first, second, third), strict=True)
            ]
            targets = [] if pattern.floor is None else [Target("uxk", "nbdkit", pattern.floor)]
            result = run_case(Case(pattern.name, "requests/s", contenders, targets), rounds=args.rounds, sample_ns=1)
            print(show(result), flush=True)
            report["cases"].append(plain(result))
    save(report, args.json, STEM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
