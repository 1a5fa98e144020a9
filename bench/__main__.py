"""``python -m bench``: a table on standard output, JSON in a file."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

from bench.cases import IDLE_MAX_BYTES, all_cases
from bench.memory import Weight, weigh
from bench.report import add_options, begun, complain, mark, parsed, plain, save, show, wanted
from bench.runner import run_case

SAMPLE_NS = 300_000_000
SAMPLE_QUICK_NS = 30_000_000
IDLE_COUNT = 10_000
IDLE_QUICK_COUNT = 1_000


def show_weight(weight: Weight) -> str:
    """Memory as text."""
    kib = weight.rss_bytes / 1024
    met = mark(weight.rss_bytes <= IDLE_MAX_BYTES)
    return "\n".join([
        f"memory  ({weight.instances:,} idle extensions in a fresh process)",
        f"  resident, each          {kib:>10.2f} KiB  target ≤ {IDLE_MAX_BYTES >> 10} KiB{met}",
        f"  live objects, each      {weight.traced_bytes / 1024:>10.2f} KiB  (tracemalloc)",
        f"  loading, each           {weight.load_ns / 1e3:>10.1f} µs   (last tenth {weight.load_max_ns / 1e3:.1f} µs)",
        "",
    ])  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("trio", "msgspec", "numpy", "simpy", "pykka")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures uxk beside its alternatives.")
    add_options(parser, "", "samples of 30 ms instead of 300; 1,000 idle extensions")
    return parsed(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    args = _parse(argv)
    cases = [case for case in all_cases() if wanted(case.name, args.only)]
    if not cases and not wanted("memory", args.only):
        complain(args.only, [*(case.name for case in all_cases()), "memory"])
        return 2
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    versions = _versions()
    print(f"{os.cpu_count()} CPUs, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    print(f"{args.rounds} rounds, contenders interleaved, samples of {sample_ns // 1_000_000} ms or more\n")
    report = begun(versions=versions, rounds=args.rounds, sample_ns=sample_ns)
    for case in cases:
        result = run_case(case, rounds=args.rounds, sample_ns=sample_ns)
        print(show(result), flush=True)
        report["cases"].append(plain(result))
    if wanted("memory", args.only):
        weight = weigh(IDLE_QUICK_COUNT if args.quick else IDLE_COUNT)
        print(show_weight(weight))
        report["memory"] = {**weight._asdict(), "target_bytes": IDLE_MAX_BYTES}
    save(report, args.json, "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
