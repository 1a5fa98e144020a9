"""What looking costs: ``python -m bench.observing [--rounds N] [--only NAME] [--quick]``.

Requests through a driver, 32 in flight, with and without a trace; log lines with and without a file; scrapes of a
kernel with a hundred instances.  ``uxk off`` is ``plain`` once more: how far its ratio is from 1 is the noise.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import trio

import uxk
from bench.__main__ import SAMPLE_NS, SAMPLE_QUICK_NS
from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.runner import Case, Contender, run_case
from bench.uxk_side import Echo
from uxk.bridges.logs.settings import LogFormat
from uxk.bridges.metrics.families import render
from uxk.bridges.metrics.snapshot import take_snapshot

STEM = "observing-"
DEPTH = 32
PAYLOAD = b"12345678"
INSTANCES = 100
Observe = Callable[[uxk.Kernel], AbstractContextManager[object]]


@contextmanager
def traced(kernel: uxk.Kernel) -> Iterator[None]:
    """A trace into a file that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="uxk-bench-") as folder, uxk.TraceRecorder(Path(folder, "trace"), kernel):
        yield


@contextmanager
def logged(form: LogFormat, kernel: uxk.Kernel) -> Iterator[None]:
    """A log file that is thrown away; everything is on its way to the disk when it ends."""
    with tempfile.TemporaryDirectory(prefix="uxk-bench-") as folder, uxk.LogFile(Path(folder, "log"), form) as log:
        log.follow(kernel)
        yield


def untouched(kernel: uxk.Kernel) -> AbstractContextManager[object]:
    """Nobody looks."""
    return nullcontext()


def requests(observe: Observe, count: int) -> tuple[int, int]:
    """Requests answered by an extension, :data:`DEPTH` in flight; writing the trace is part of it."""

    async def main() -> int:
        kernel = uxk.Kernel()
        left = count

        def on_completions(completions: list[uxk.Completion]) -> None:
            nonlocal left
            more = min(len(completions), left)
            if more:
                left -= more
                port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in range(more)])

        with observe(kernel):
            async with kernel:
                await kernel.insmod(Echo)
                port = kernel.open_port("bench_echo0", on_completions, "bench")
                began_ns = perf_counter_ns()
                left -= min(DEPTH, left)
                port.submit_batch([uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in range(min(DEPTH, count))])
                await kernel.run()
                return perf_counter_ns() - began_ns

    return count, trio.run(main)


def lines(observe: Observe, count: int) -> tuple[int, int]:
    """Log lines, until the last is written."""

    async def main() -> int:
        async with uxk.Kernel() as kernel:
            began_ns = perf_counter_ns()
            with observe(kernel):
                for number in range(count):
                    kernel.machine.log("info", "bench", "a line of the usual length, or thereabouts", number=number)
            return perf_counter_ns() - began_ns

    return count, trio.run(main)


def scrapes(write: bool, count: int) -> tuple[int, int]:
    """Instances in snapshots of a kernel that has many, alone (what holds the kernel), or formatted as well."""
    times = -(-count // INSTANCES)

    async def main() -> int:
        async with uxk.Kernel() as kernel:
            for number in range(INSTANCES):
                await kernel.insmod(Echo, instance=f"echo{number}")
            began_ns = perf_counter_ns()
            for _ in range(times):
                snapshot = take_snapshot(kernel)
                if write:
                    render(snapshot)
            return perf_counter_ns() - began_ns

    return times * INSTANCES, trio.run(main)


def all_cases() -> list[Case]:
    """Every question."""
    json, syslog = partial(logged, "json"), partial(logged, "syslog")
    return [
        Case("requests/32", "requests/s", [
            Contender("plain", partial(requests, untouched)),
            Contender("uxk off", partial(requests, untouched), "the same once more: the noise"),
            Contender("uxk trace", partial(requests, traced)),
        ]),
        Case("log", "lines/s", [
            Contender("plain", partial(lines, untouched), "kmsg's ring alone"),
            Contender("uxk off", partial(lines, untouched), "the same once more: the noise"),
            Contender("uxk json", partial(lines, json)),
            Contender("uxk syslog", partial(lines, syslog)),
        ]),
        Case(f"scrape/{INSTANCES}", "instances/s", [
            Contender("snapshot", partial(scrapes, False), "what holds the kernel"),
            Contender("uxk snapshot and text", partial(scrapes, True)),
        ]),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.observing", description="Measures what looking costs.")
    add_options(parser, STEM, "samples of 30 ms instead of 300")
    args = parsed(parser, argv)
    cases = chosen(all_cases(), args.only, lambda case: case.name)
    if not cases:
        return 2
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    report = begun(rounds=args.rounds, sample_ns=sample_ns)
    for case in cases:
        result = run_case(case, rounds=args.rounds, sample_ns=sample_ns)
        print(show(result), flush=True)
        report["cases"].append(plain(result))
    save(report, args.json, STEM)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
