"""What an honest extension loses by each attack of a hostile neighbour: ``python -m bench.attacks``.

On the real clock, both in processes of their own, beside one kernel.  Samples of the honest extension's round trips are
taken in turn: without the neighbour, while it attacks, without it again, and so on; the ratio is that of each attack to
the mean of the two samples around it, so that what else the machine does hits all alike.  An attack that ends with the
attacker's death is sampled from its first blow on, whatever becomes of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Final, NamedTuple

import trio

import uxk
from bench.report import add_options, begun, chosen, mark, parsed, save
from bench.runner import Spread

FOLDER: Final = Path(__file__).resolve().parent.parent / "examples/attacks"
HONEST: Final = FOLDER / "honest.py"
HOSTILE: Final = FOLDER / "hostile.py"
DEPTH: Final = 32
PAYLOAD: Final = b"12345678"
SAMPLE_NS: Final = 500_000_000
SAMPLE_QUICK_NS: Final = 100_000_000
SETTLE_NS: Final = 50_000_000
AT_LEAST: Final = 0.8
"""Of its throughput that an honest extension keeps."""


class Sample(NamedTuple):
    """Round trips a second, and for each second of the kernel's own processor time; and the longest of them."""

    rate: float
    cpu_rate: float
    latency_max_ns: int


class Round(NamedTuple):
    """One round of one attack."""

    ratio: float
    """Of rates, by the host's clock: includes what the processors were busy with."""
    cpu_ratio: float
    """Of rates for each second that the kernel's process has run: what the kernel spends on the attacker."""
    calm: float
    attacked: float
    latency_max_ns: int
    calm_latency_max_ns: int
    rejects: int
    alive: bool
    """Whether the attacker was still there when the sample ended."""


class Attack(NamedTuple):
    """All rounds of one attack."""

    name: str
    rounds: list[Round]

    def spread(self, of: str) -> Spread:
        """Of a figure of its rounds."""
        return Spread.of([getattr(each, of) for each in self.rounds])


def attacks() -> list[str]:
    """Names, beginning with ``none``: a neighbour that only wakes up."""
    spec = importlib.util.spec_from_file_location("hostile", HOSTILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.ATTACKS)


async def sample(kernel: uxk.Kernel, honest: uxk.Module, sample_ns: int) -> Sample:
    """A closed loop of :data:`DEPTH` requests for so long."""
    count, answered, longest_ns, began = 0, 0, 0, dict[int, int]()
    over = kernel.dispatcher.goal("all answers")
    until_ns = perf_counter_ns() + sample_ns

    def on_answers(answers: list[uxk.Completion]) -> None:
        nonlocal answered, longest_ns
        now_ns = perf_counter_ns()
        for answer in answers:
            if answer.status or answer.payload != PAYLOAD:
                raise AssertionError(f"answer {answer.cid}: status {answer.status}")
            longest_ns = max(longest_ns, now_ns - began.pop(answer.cid))
        answered += len(answers)
        if now_ns < until_ns:
            submit(len(answers))
        elif answered == count:
            over.reach()

    def submit(number: int) -> None:
        nonlocal count
        requests = [uxk.Request(0, uxk.Op.CALL, PAYLOAD) for _ in range(number)]
        port.submit_batch(requests)
        began.update(dict.fromkeys([request.cid for request in requests], perf_counter_ns()))
        count += number

    port = honest.open_port(on_answers)
    began_ns, cpu_began_ns = perf_counter_ns(), process_time_ns()
    submit(DEPTH)
    await kernel.dispatcher.wait(over)
    took_ns, cpu_ns = perf_counter_ns() - began_ns, process_time_ns() - cpu_began_ns
    port.close()
    return Sample(answered * 1e9 / took_ns, answered * 1e9 / max(1, cpu_ns), longest_ns)


async def beside(kernel: uxk.Kernel, honest: uxk.Module, attack: str, sample_ns: int) -> tuple[Sample, int, bool]:
    """A sample beside a hostile neighbour, its refusals, and whether it has lived to the end of it."""
    hostile = await kernel.insmod(HOSTILE, placement="process", attack=attack)
    account = hostile.account
    port = hostile.open_port(lambda answers: None)
    port.submit(uxk.Request(0))
    found = await sample(kernel, honest, sample_ns)
    port.close()
    alive = account.faults == 0
    if any(row.name == "hostile" for row in kernel.lsmod()):
        await kernel.rmmod("hostile")
    await kernel.sleep_ns(SETTLE_NS)
    return found, account.rejected, alive


async def one_round(names: Sequence[str], sample_ns: int) -> list[Round]:
    """Calm, attack, calm, attack, ... on one kernel, which must be whole at the end."""
    rounds: list[Round] = []
    async with uxk.Kernel(seed=1, clock="real") as kernel:
        honest = await kernel.insmod(HONEST, placement="process")
        await sample(kernel, honest, sample_ns)
        before = await sample(kernel, honest, sample_ns)
        for name in names:
            print(name.ljust(20), end="\r", file=sys.stderr, flush=True)
            during, rejects, alive = await beside(kernel, honest, name, sample_ns)
            after = await sample(kernel, honest, sample_ns)
            calm = (before.rate + after.rate) / 2
            cpu_ratio = 2 * during.cpu_rate / (before.cpu_rate + after.cpu_rate)
            longest_ns = max(before.latency_max_ns, after.latency_max_ns)
            rounds.append(
                Round(
                    during.rate / calm, cpu_ratio, calm, during.rate, during.latency_max_ns, longest_ns, rejects, alive
                )
            )
            before = after
        account = honest.account
        if account.faults or account.rejected or account.inflight:
            raise AssertionError(f"the honest one has {account.to_dict()}")
    return rounds


def shown(attack: Attack) -> str:
    """A row of the table."""
    clock, cpu = attack.spread("ratio"), attack.spread("cpu_ratio")
    calm, attacked = attack.spread("calm").median, attack.spread("attacked").median
    usual_ns, worst_ns = attack.spread("calm_latency_max_ns").median, attack.spread("latency_max_ns").median
    ends = "lives" if all(each.alive for each in attack.rounds) else "dies"
    return (
        f"| {attack.name} | {calm / 1e3:.1f} | {attacked / 1e3:.1f} | {clock.median:.2f} ({clock.min:.2f} .. "
        f"{clock.max:.2f}){mark(clock.median >= AT_LEAST)} | {cpu.median:.2f} ({cpu.min:.2f} .. {cpu.max:.2f})"
        f"{mark(cpu.median >= AT_LEAST)} | {usual_ns / 1e6:.0f} | {worst_ns / 1e6:.0f} | "
        f"{max(each.rejects for each in attack.rounds):,} | {ends} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no attack has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__)
    add_options(parser, "attacks-", "samples of 100 ms instead of 500")
    args = parsed(parser, argv)
    names = chosen(attacks(), args.only, str)
    if not names:
        return 2
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    results = [Attack(name, []) for name in names]
    print(
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {args.rounds} rounds, samples of {sample_ns / 1e9:g} s"
    )
    for _ in range(args.rounds):
        for attack, found in zip(results, trio.run(one_round, names, sample_ns), strict=True):
            attack.rounds.append(found)
    print(
        "| attack | k/s without | k/s with | ratio by the clock | by the kernel's processor time | longest ms without "
        "| with | refusals | attacker |"
    )
    for attack in results:
        print(shown(attack))
    report = begun(rounds=args.rounds, sample_ns=sample_ns, load=os.getloadavg())
    report["cases"] = [
        {"name": attack.name, "rounds": [each._asdict() for each in attack.rounds]} for attack in results
    ]
    save(report, args.json, "attacks-")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
