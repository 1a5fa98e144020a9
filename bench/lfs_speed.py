"""User writes per second of the log-structured volume: ``python -m bench.lfs_speed [--rounds N] [--only NAME]``.

Every contender writes the same pages in turn, round by round: 262,144 pages filled in order, then ten times as many
writes by zipf 1.0, segments of 512 blocks, 15 % garbage, the frozen rule.  The alternative is what one would write for
a quick answer, a greedy simulator in C: it is compiled here with ``cc -O2``, if there is one, and must move exactly as
many blocks.  Time is that of the process's own CPU, since only one process computes; loading the writes is left out.

``agent in the loop`` is a whole run of ``uxk_gc`` on a kernel, miniatures and learning included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import process_time_ns
from typing import NamedTuple

import numpy as np

from bench.lfs_runs import GP_PPM, SCALES, Scale
from bench.report import plain
from bench.runner import Case, Contender, Result, Spread, run_case
from uxk.scenario.lfs.agent import run_agent
from uxk.scenario.lfs.attach import load
from uxk.scenario.lfs.entrants import resolve
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.fast import pools
from uxk.subsystems.lfs.fast.arrays import Words
from uxk.subsystems.lfs.fast.jit import COMPILED
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import make_volume, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policy import parse_policy
from uxk.subsystems.lfs.reference import Volume

SEED = 1
LOGS = 6
EVEN = (0, 2, 192, 40, 200, 40, 9, 5, 8, 8, 18, 16)
FADING = (10, 4, 176, 40, 184, 40, 9, 5, -8, 0, 16, 16)
"""Parameters of ``rate/learned``, as the agent has them: counts that never fade, and counts that do."""

C_SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* argv: file of int32 pages, pages, blocks of a segment, garbage in ppm.  One log, greedy, one victim at a time. */
int main(int argc, char **argv) {
    int32_t pages = atoi(argv[2]), size = atoi(argv[3]);
    int64_t ppm = atoll(argv[4]);
    FILE *file = fopen(argv[1], "rb");
    fseek(file, 0, SEEK_END);
    int64_t count = ftell(file) / 4, now, moved = 0, garbage = 0, total = 0;
    rewind(file);
    int32_t *ops = malloc(4 * count);
    if (fread(ops, 4, count, file) != (size_t)count) return 1;
    int32_t segments = pages * INT64_C(1000000) / (1000000 - ppm) / size + 16, most = size - size * ppm / 1000000;
    int32_t *block_of = malloc(4 * pages), *owner = malloc(INT64_C(4) * segments * size);
    int32_t *live = calloc(segments, 4), *sealed = calloc(segments, 4), *clean = malloc(4 * segments);
    int32_t cleans = segments, head = -1, used = 0;
    for (int32_t s = 0; s < segments; s++) clean[s] = segments - 1 - s;
    for (int32_t p = 0; p < pages; p++) block_of[p] = -1;
    for (int64_t b = 0; b < (int64_t)segments * size; b++) owner[b] = -1;

#define APPEND(page) do { \
        if (head < 0) { head = clean[--cleans]; used = 0; } \
        int32_t to = head * size + used++; \
        owner[to] = (page); block_of[page] = to; live[head]++; \
        if (used == size) { sealed[head] = 1; garbage += size - live[head]; head = -1; } \
    } while (0)

    clock_t began = clock();
    for (now = 0; now < count; now++) {
        int32_t page = ops[now], old = block_of[page];
        if (old >= 0) {
            owner[old] = -1;
            live[old / size]--;
            garbage += sealed[old / size];
        }
        APPEND(page);
        total++;
        while (garbage * 1000000 > ppm * total) {
            int32_t victim = -1, least = most + 1;
            for (int32_t s = 0; s < segments; s++)
                if (sealed[s] && live[s] < least) { least = live[s]; victim = s; }
            if (victim < 0) break;
            for (int32_t b = victim * size; b < (victim + 1) * size; b++)
                if (owner[b] >= 0) { APPEND(owner[b]); moved++; owner[b] = -1; }
            garbage -= size - live[victim];
            total -= size - live[victim];
            live[victim] = sealed[victim] = 0;
            clean[cleans++] = victim;
        }
    }
    printf("%lld %lld %.0f\n", (long long)count, (long long)moved, (clock() - began) * 1e9 / CLOCKS_PER_SEC);
    return 0;
}
"""


class Floor(NamedTuple):
    """User writes per second that a contender must reach by its median."""

    contender: str
    at_least: float


FLOORS = (
    Floor("uxk nosep/greedy", 10e6), Floor("uxk rate/learned", 5e6), Floor("uxk rate/learned, fading", 5e6),
    Floor("uxk agent in the loop", 1e6), Floor("uxk reference nosep/greedy", 0.4e6),
)  # fmt: skip


class Bench:
    """The writes, and who does them; blocks moved are kept by contender."""

    def __init__(self, scale: Scale) -> None:
        workload = WorkloadSpec(name="zipf1.0", pages=scale.pages)
        params = StudyParams(segment_blocks=scale.segment_blocks, gp_ppm=GP_PPM, logs=LOGS)
        self.study = Study(name="speed", lfs=params, workload=workload, seed=SEED)
        self.ops: Words = np.ascontiguousarray(load(self.study.volume, SEED).pages, np.int32)
        self.scale = scale
        self.moved: dict[str, int] = {}

    def batch(self, name: str, policy: str, args: Sequence[int] = (), shared: bool = False) -> Contender:
        """The batch kernel; ``shared``: with the default's pool beside, whose placement learns from every write."""
        scale = self.scale

        def measure(_: int) -> tuple[int, int]:
            volume = make_volume(scale.pages, scale.segment_blocks, GP_PPM, LOGS, pools=1 + shared)
            set_policy(volume, *parse_policy(policy, args).codes, pool=int(shared))
            if shared:
                set_policy(volume, *parse_policy(policies.DEFAULT).codes)
                pools.share(volume, c.BUCKETS)
            began_ns = process_time_ns()
            run(*volume, self.ops, 0, len(self.ops))
            took_ns = process_time_ns() - began_ns
            self.moved[name] = int(volume.reg[c.MOVED])
            return len(self.ops), took_ns

        return Contender(name, measure)

    def reference(self, name: str, policy: str) -> Contender:
        """The engine in plain Python."""
        geometry = Geometry(self.scale.pages, self.scale.segment_blocks, GP_PPM, LOGS)

        def measure(_: int) -> tuple[int, int]:
            volume = Volume(geometry, policies.lookup(policy))
            began_ns = process_time_ns()
            volume.run(self.ops)
            took_ns = process_time_ns() - began_ns
            self.moved[name] = volume.moved
            return len(self.ops), took_ns

        return Contender(name, measure)

    def agent(self, name: str) -> Contender:
        """As a study runs it."""
        entrant = resolve(["uxk_gc"], policies.DEFAULT)[0]

        def measure(_: int) -> tuple[int, int]:
            began_ns = process_time_ns()
            outcome = run_agent(entrant, self.study, SEED)
            took_ns = process_time_ns() - began_ns
            self.moved[name] = outcome.moved_blocks
            return outcome.user_blocks, took_ns

        return Contender(name, measure)

    def c_program(self, name: str, program: Path, writes: Path) -> Contender:
        """The alternative, a process for each sample that times itself."""
        words = [str(program), str(writes), str(self.scale.pages), str(self.scale.segment_blocks), str(GP_PPM)]

        def measure(_: int) -> tuple[int, int]:
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            count, moved, took_ns = map(int, done.stdout.split())
            self.moved[name] = moved
            return count, took_ns

        return Contender(name, measure)


@contextmanager
def compiled(ops: Words) -> Iterator[tuple[Path, Path] | None]:
    """The C program and a file with the writes; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, program, writes = (Path(folder, name) for name in ("greedy.c", "greedy", "writes"))
        source.write_text(C_SOURCE, encoding="utf-8")
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
        writes.write_bytes(ops.astype("<i4").tobytes())
        yield program, writes


def contenders(bench: Bench, files: tuple[Path, Path] | None) -> list[Contender]:
    """All of them; the fast ones first."""
    found = [
        bench.batch("uxk nosep/greedy", "nosep/greedy"),
        bench.batch("uxk sepbit/cb-age", "sepbit/cb-age"),
        bench.batch("uxk dac/cb-age", "dac/cb-age"),
        bench.batch("uxk rate/learned", "rate/learned", EVEN),
        bench.batch("uxk rate/learned, fading", "rate/learned", FADING),
        bench.batch("uxk rate/learned, shared", "rate/learned", EVEN, shared=True),
        bench.agent("uxk agent in the loop"),
        bench.reference("uxk reference nosep/greedy", "nosep/greedy"),
        bench.reference("uxk reference sepbit/cb-age", "sepbit/cb-age"),
    ]
    return [*found, bench.c_program("C greedy", *files)] if files is not None else found


def steady(contender: Contender) -> Contender:
    """The same, whose first sample is thrown away: it compiles, and fills caches."""
    warm: list[tuple[int, int]] = []

    def measure(count: int) -> tuple[int, int]:
        if not warm:
            warm.append(contender.measure(count))
        return contender.measure(count)

    return contender._replace(measure=measure)


def show(result: Result, moved: dict[str, int]) -> Iterator[str]:
    """Rates in millions, with their floors; ratios; whether who must agree did."""
    floors = {floor.contender: floor.at_least for floor in FLOORS}
    yield f"{'':<30}{'M writes/s':>10}  {'min .. max':<17}{'WA':>6}"
    for row in result.rows:
        mid, low, high = (value / 1e6 for value in row.spread)
        wa = 1 + moved[row.name] / row.operations
        line = f"{row.name:<30}{mid:10.2f}  {f'{low:.2f} .. {high:.2f}':<17}{wa:6.3f}"
        if row.name in floors:
            line += f"  target ≥ {floors[row.name] / 1e6:g} {'✔' if row.spread.median >= floors[row.name] else '✘'}"
        yield line
    for ratio in result.ratios:
        spread: Spread = ratio.spread
        pair = f"{ratio.of} / {ratio.over}"
        yield f"{pair:<42}{spread.median:7.3f}x  {spread.min:.3f} .. {spread.max:.3f}"
    for policy, names in agreeing(moved).items():
        same = len({moved[name] for name in names}) == 1
        yield f"{policy}: {', '.join(names)} moved {'the same' if same else 'DIFFERENT NUMBERS OF'} blocks"


def agreeing(moved: dict[str, int]) -> dict[str, list[str]]:
    """Contenders that must move the same number of blocks, by policy."""
    found = {
        policy: [name for name in moved if name.endswith(policy) or (name == "C greedy" and policy == "nosep/greedy")]
        for policy in ("nosep/greedy", "sepbit/cb-age")
    }
    return {policy: names for policy, names in found.items() if len(names) > 1}


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 if a floor is missed or engines disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="contenders whose name contains NAME; repeatable"
    )
    parser.add_argument("--scale", choices=SCALES, default="full", help="small: a quarter of the volume, for a try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where JSON goes")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")
    if not COMPILED:
        parser.error("the extra 'fast' (numba) is needed: without it there is no batch kernel to measure")
    bench = Bench(SCALES[options.scale])
    with compiled(bench.ops) as files:
        if files is None:
            print("no C compiler: nothing to compare with")
        chosen = [
            x for x in contenders(bench, files) if not options.only or any(part in x.name for part in options.only)
        ]
        if not chosen:
            parser.error(f"--only {' '.join(options.only)}: no such contender")
        case = Case("lfs", "user writes/s", [steady(each) for each in chosen])
        print(f"{len(bench.ops):,} writes of {bench.scale.pages:,} pages, {options.rounds} rounds, interleaved\n")
        result = run_case(case, rounds=options.rounds, sample_ns=1)
    rows = [row._replace(operations=len(bench.ops)) for row in result.rows]
    result = result._replace(rows=rows)
    print("\n".join(show(result, bench.moved)))
    met = {floor.contender: rate_of(result, floor.contender) for floor in FLOORS}
    missed = [f.contender for f in FLOORS if (rate := met[f.contender]) is not None and rate < f.at_least]
    if options.json is not None:
        report = {**plain(result), "moved": bench.moved, "floors": [floor._asdict() for floor in FLOORS]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    agree = all(len({bench.moved[name] for name in names}) == 1 for names in agreeing(bench.moved).values())
    return 0 if agree and not missed else 1


def rate_of(result: Result, name: str) -> float | None:
    """Median of a contender's rates."""
    return next((row.spread.median for row in result.rows if row.name == name), None)


if __name__ == "__main__":
    sys.exit(main())
