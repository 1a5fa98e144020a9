"""Microseconds of processor time that a command takes on each medium: ``python -m uxk_nvme.medium.bench``.

Random commands of 4 KiB in a closed loop at depth 32 on 64 MiB of memory; the copy of the data is part of it.
"""

from __future__ import annotations

import random
import time
from heapq import heapreplace
from typing import Final

import numpy as np

from uxk_nvme.medium import Medium, MediumParams, open_medium

DEPTH: Final = 32
COMMANDS: Final = 30_000
REPEATS: Final = 5
"""The best counts: what else the machine does is not the model's cost."""
CASES: Final[dict[str, dict[str, object]]] = {
    "none": {},
    "simple": {"medium": "simple"},
    "ftl, new": {"medium": "ftl", "precondition": "sequential", "over_provisioning_ppm": 4_000_000},
    "ftl, used, 28 % spare": {"medium": "ftl", "precondition": "random", "over_provisioning_ppm": 280_000},
    "ftl, used, 7 % spare": {"medium": "ftl", "precondition": "random"},
}


def run(medium: Medium, reads_percent: int) -> float:
    """Microseconds of one command."""
    draw = random.Random(3)
    units = medium.store.size_bytes // 4096
    commands = [(draw.randrange(units) * 4096, draw.randrange(100) < reads_percent) for _ in range(COMMANDS)]
    data, into, ready_ns = bytes(4096), memoryview(bytearray(4096)), [0] * DEPTH
    took = []
    for _ in range(REPEATS):
        begun = time.process_time_ns()
        for offset, reading in commands:
            now_ns = ready_ns[0]
            done_ns = medium.read(offset, into, now_ns) if reading else medium.write(offset, data, now_ns)
            heapreplace(ready_ns, done_ns)
        took.append(time.process_time_ns() - begun)
    return min(took) / COMMANDS / 1000


def main() -> None:
    """Prints the table."""
    print(f"{'medium':24} {'read':>6} {'mixed':>6} {'write':>6}   write amplification")
    for name, given in CASES.items():
        took, amplification = [], 1.0
        for reads_percent in (100, 50, 0):
            medium = open_medium(MediumParams(**given), np.random.default_rng(1))  # type: ignore[arg-type]
            took.append(run(medium, reads_percent))
            amplification = medium.figures().get("write_amplification_ppm", 1_000_000) / 1_000_000
        print(f"{name:24} {took[0]:6.2f} {took[1]:6.2f} {took[2]:6.2f}   {amplification:.2f}")


if __name__ == "__main__":
    main()
