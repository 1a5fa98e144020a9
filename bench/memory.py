"""What an idle extension weighs: many are loaded in a fresh process, and the difference is divided.

Resident memory is what the machine pays; Python's own count (tracemalloc) says how much of it are live objects.
They need a process each, since tracemalloc itself takes memory.  ``python -m bench.memory COUNT rss|tracemalloc``.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import trio

import uxk

ROOT = Path(__file__).resolve().parent.parent


class Idle(uxk.Extension):
    """Has nothing to do; one queue pair each way with the default depth, and one device."""

    manifest = uxk.Manifest(name="bench-idle", budget=uxk.Budget(memory_bytes=0))


class Weight(NamedTuple):
    """Of ``count`` instances: bytes and load time of one."""

    instances: int
    rss_bytes: int
    traced_bytes: int
    load_ns: int
    load_max_ns: int
    """Of one instance among the last tenth: loading should not get slower with their number."""


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _load(count: int, traced: bool) -> dict[str, int]:
    async with uxk.Kernel(seed=1) as kernel:
        for number in range(min(count, 16)):
            await kernel.insmod(Idle, instance=f"warm{number}")
        gc.collect()
        if traced:
            tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0] if traced else _rss_bytes()
        began_ns = late_ns = perf_counter_ns()
        for number in range(count):
            if number == count * 9 // 10:
                late_ns = perf_counter_ns()
            await kernel.insmod(Idle, instance=f"idle{number}")
        ended_ns = perf_counter_ns()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0] if traced else _rss_bytes()
        assert len(kernel.lsmod()) == count + min(count, 16)
        # The process ends here: unloading is not the question.
        figures = {
            "bytes": (after - before) // count,
            "load_ns": (ended_ns - began_ns) // count,
            "load_max_ns": (ended_ns - late_ns) // (count - count * 9 // 10),
        }
        print(json.dumps(figures), flush=True)
        os._exit(0)


def _in_fresh_process(count: int, how: str) -> dict[str, int]:
    path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", str(count), how],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"bench.memory {count} {how}: {done.stderr}")
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def weigh(count: int) -> Weight:
    """Loads ``count`` instances twice, in two fresh processes."""
    rss = _in_fresh_process(count, "rss")
    traced = _in_fresh_process(count, "tracemalloc")
    return Weight(count, rss["bytes"], traced["bytes"], rss["load_ns"], rss["load_max_ns"])


if __name__ == "__main__":
    trio.run(_load, int(sys.argv[1]), sys.argv[2] == "tracemalloc")
