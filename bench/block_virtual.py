"""Emulated I/O in virtual time: ``python -m bench.block_virtual [--rounds N] [--only NAME] [--quick]``.

Random reads of 4 KiB, 32 in flight, from a client in the kernel through the block layer, the driver's queue pair, the
NVMe submission and completion queues and the medium; every request is booked, every frame encoded, checked and hashed,
and its data land in the client's memory.  Beside it the same device in SimPy (:mod:`bench.block_simpy`).  All blocks
were written before, so that the host's page faults are not measured.  Rates are per second of CPU time: nothing waits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from time import process_time_ns
from typing import Any, Final

import trio

import uxk
from bench.__main__ import SAMPLE_NS, SAMPLE_QUICK_NS
from bench.block_simpy import Disk, LeanDisk, Shape, offsets_of, reads
from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.runner import Case, Contender, Result, Target, run_case
from uxk.subsystems.blk.layer import BlockLayer

STEM: Final = "block-virtual-"
SHAPE: Final = Shape()
OVER_SIMPY: Final = 5.0
GOALS: Final[Mapping[str, int]] = {"uxk": 300_000, "uxk ftl": 80_000}
"""Reads a second that are demanded of a contender."""
SIMPLE: Final = {"medium": "simple"}
DRAWN: Final = {"medium": "simple", "read_percentiles": "50:70us 90:95us 99:200us 99.9:2ms"}
FILL_BYTES: Final = 128 << 10
FTL: Final = {"medium": "ftl", "precondition": "sequential"}


def uxk_reads(layer: bool, params: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Reads on the virtual clock, with or without the block layer, from module nvme with these parameters."""
    return trio.run(_uxk_reads, layer, params, count)


async def _uxk_reads(layer: bool, params: Mapping[str, Any], count: int) -> tuple[int, int]:
    offsets = offsets_of(SHAPE, count)
    block_bytes = SHAPE.block_bytes
    async with uxk.Kernel(seed=1) as kernel:
        if layer:
            BlockLayer(kernel)
        module = await kernel.modprobe("nvme", size=SHAPE.size_bytes, **params)
        device = kernel.devices.get("nvme0n1")
        await _fill(kernel)
        answered = 0
        with kernel.dma_pool("bench", SHAPE.depth * block_bytes) as pool:
            region = pool.cap_for(device.agent)
            slots: dict[int, int] = {}
            left = list(reversed(offsets))

            def send(buffers: Sequence[int]) -> None:
                requests = [
                    uxk.Request(0, uxk.Op.READ, b"", left.pop(), block_bytes, region, 0, 0, buffer)
                    for buffer in buffers
                ]
                port.submit_batch(requests)
                for request in requests:
                    slots[request.cid] = request.buffer

            def on_completions(completions: list[uxk.Completion]) -> None:
                nonlocal answered
                assert not any(completion.status for completion in completions)
                free = [slots.pop(completion.cid) for completion in completions]
                answered += len(free)
                if left:
                    send(free[: len(left)])

            port = kernel.open_port("nvme0n1", on_completions)
            before = module.account.read_bytes
            began_ns = process_time_ns()
            send([number * block_bytes for number in range(SHAPE.depth)])
            await kernel.run()
            took_ns = process_time_ns() - began_ns
            assert answered == len(offsets)
            assert module.account.read_bytes - before == answered * block_bytes
            port.close()
    return answered, took_ns


async def _fill(kernel: uxk.Kernel) -> None:
    """Writes every block."""
    starts = iter(range(0, SHAPE.size_bytes, FILL_BYTES))
    data = bytes(range(256)) * (FILL_BYTES >> 8)

    def write(completions: list[uxk.Completion]) -> None:
        assert not any(completion.status for completion in completions)
        if (start := next(starts, None)) is not None:
            port.submit_batch([uxk.Request(0, uxk.Op.WRITE, data, start, FILL_BYTES)])

    port = kernel.open_port("nvme0n1", write)
    write([])
    await kernel.run()
    port.close()


def cases() -> list[Case]:
    """With SimPy beside it where both model the same, and the full flash model alone."""
    simple = Case(
        "virtual/simple",
        "reads/s",
        [
            Contender("uxk", partial(uxk_reads, True, SIMPLE)),
            Contender("uxk drawn", partial(uxk_reads, True, DRAWN), "latencies drawn: hardly two reads end together"),
            Contender("uxk no block layer", partial(uxk_reads, False, SIMPLE), "straight to the driver"),
            Contender("SimPy", partial(reads, Disk, SHAPE)),
            Contender("SimPy lean", partial(reads, LeanDisk, SHAPE), "lanes and pipe only: no tags, queue, controller"),
        ],
        [Target("uxk", "SimPy", OVER_SIMPY)],
    )
    return [simple, Case("virtual/ftl", "reads/s", [Contender("uxk ftl", partial(uxk_reads, True, FTL))])]


def goals_text(result: Result) -> str:
    """The absolute goals of a case, and whether the medians meet them."""
    rows = [(row, GOALS[row.name]) for row in result.rows if row.name in GOALS]
    return "".join(
        f"  {row.name}: goal ≥ {goal / 1e3:,.0f} k{' ✔' if row.spread.median >= goal else ' ✘'}\n" for row, goal in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.block_virtual", description="Emulated I/O in virtual time.")
    add_options(parser, STEM, "samples of 30 ms instead of 300")
    args = parsed(parser, argv)
    wanted = chosen(cases(), args.only, lambda case: case.name)
    if not wanted:
        return 2
    report = begun(rounds=args.rounds, goals=GOALS)
    for case in wanted:
        result = run_case(case, rounds=args.rounds, sample_ns=SAMPLE_QUICK_NS if args.quick else SAMPLE_NS)
        print(show(result) + goals_text(result), flush=True)
        report["cases"].append(plain(result))
    save(report, args.json, STEM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
