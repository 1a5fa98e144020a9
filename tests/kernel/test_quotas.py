"""Quotas hold under attack: a hostile process beside an honest one, attack by attack, on one kernel.

Each attack ends with the kernel alive, its books right, and the honest extension's requests answered when they would
have been answered without it: to the nanosecond on the virtual clock, within a bound on the charged one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import uxk
from uxk.actor import sandbox
from uxk.core.cost import ClockKind
from uxk.testing import residue, usage

FOLDER = Path(__file__).resolve().parents[2] / "examples/attacks"
HONEST, HOSTILE = FOLDER / "honest.py", FOLDER / "hostile.py"
SOAK = bool(os.environ.get("UXK_SOAK"))
LATENCY_NS = 20_000
DEPTH = 8
TRIAL_NS = 2_000_000
ANSWER_NS = 500_000_000
"""Host time that a process may take for a turn here."""

STOPS = {
    "flood": {"sq_full"},
    "forged": {"cq_full", "sq_full", "unknown_cid"},
    "giant": {"oversized"},
    "arena": {"edquot", "sq_full"},
    "log": {"sq_full"},
    "guess": {"ebadf", "sq_full"},
}
"""By attack, reasons for which the kernel must have refused something."""
DEADLY = {
    "spin": "Hung in turn", "slow_reader": "Hung in turn", "chatter": "ProtocolError", "wire_flood": "ProtocolError",
    "wire_giant": "ProtocolError",
}  # fmt: skip
ATTACKS = [*STOPS, *["fork"] * sandbox.available()["seccomp"], *DEADLY]
"""Nothing but the filter keeps a child from forking, and what forks in earnest hangs."""
"""What the others die of."""


class Load:
    """A closed loop on the honest extension; latencies are virtual."""

    def __init__(self, kernel: uxk.Kernel, module: uxk.Module) -> None:
        self.kernel = kernel
        self.port = module.open_port(self.on_answers)
        self.since: dict[int, tuple[int, bytes]] = {}
        self.latencies_ns: list[int] = []
        self.problems: list[int] = []
        self.number = 0
        self.running = False

    def on_answers(self, answers: Sequence[uxk.Completion]) -> None:
        for answer in answers:
            began_ns, payload = self.since.pop(answer.cid)
            self.latencies_ns.append(self.kernel.now_ns - began_ns)
            if answer.status or answer.payload != payload:
                self.problems.append(answer.status)
        if self.running:
            for _ in answers:
                self.submit()

    def submit(self) -> None:
        self.number += 1
        payload = b"%d" % self.number
        self.since[self.port.submit(uxk.Request(0, uxk.Op.CALL, payload))] = self.kernel.now_ns, payload

    async def trial(self, duration_ns: int) -> list[int]:
        """Latencies of so much virtual time, sorted."""
        self.latencies_ns, self.running = [], True
        for _ in range(DEPTH):
            self.submit()
        await self.kernel.sleep_ns(duration_ns)
        self.running = False
        await self.kernel.sleep_ns(1_000_000)
        assert not self.since and not self.problems
        return sorted(self.latencies_ns)


async def attacked(kernel: uxk.Kernel, load: Load, attack: str) -> tuple[list[int], dict[str, int], list[str]]:
    """Latencies under attack, what the kernel has refused, and oopses; the attacker is gone when this returns."""
    before, told = usage(kernel), len(list(kernel.kmsg.records()))
    hostile = await kernel.insmod(HOSTILE, placement="process", attack=attack)
    hostile.open_port(lambda answers: None).submit(uxk.Request(0))
    latencies_ns = await load.trial(TRIAL_NS)
    account = hostile.account
    assert account.arena_bytes_max <= hostile.manifest.budget.memory_bytes
    rejects = dict(account.rejects)
    texts = [record.text for record in list(kernel.kmsg.records())[told:]]
    assert sum(text.endswith("spam") for text in texts) <= hostile.manifest.budget.log_burst
    if attack == "log":
        assert account.log_suppressed
    if attack == "fork":
        seen = kernel.sysfs.read("/sys/module/hostile/confined")
        if "seccomp" in seen:
            assert int(kernel.sysfs.read("/sys/module/hostile/attributes/refused")) > 0
    if "hostile" in [row.name for row in kernel.lsmod()]:
        await kernel.rmmod("hostile")
    assert residue(kernel, before) == {}
    assert not [text for text in texts if "bug" in text.lower()]
    return latencies_ns, rejects, [text for text in texts if text.startswith("oops: ")]


async def trials(clock: ClockKind, attacks: Sequence[str]) -> dict[str, list[int]]:
    """Latencies by attack; ``""`` is without any."""
    found: dict[str, list[int]] = {}
    async with uxk.Kernel(seed=4, clock=clock, costs_ns={"honest": 1000, "hostile": 1000}) as kernel:
        kernel.sysfs.write("/proc/sys/kernel/host_answer_ns", str(ANSWER_NS))
        honest = await kernel.insmod(HONEST, placement="process", latency_ns=LATENCY_NS)
        load = Load(kernel, honest)
        found[""] = await load.trial(TRIAL_NS)
        for attack in attacks:
            found[attack], rejects, oopses = await attacked(kernel, load, attack)
            print(clock, attack, found[attack][-1], found[""][-1], rejects, oopses[:1])
            assert STOPS.get(attack, set()) <= set(rejects), attack
            if attack in DEADLY:
                assert DEADLY[attack] in oopses[0], attack
            else:
                assert not oopses, attack
            assert honest.account.restarts == honest.account.faults == 0
        assert honest.account.rejects == {}
        assert (await honest.submit(b"well")).payload == b"well"
    return found


async def test_on_the_virtual_clock_no_attack_is_felt() -> None:
    found = await trials("virtual", ATTACKS)
    calm = found.pop("")
    for attack, latencies_ns in found.items():
        assert latencies_ns == calm, attack


@pytest.mark.parametrize("attacks", [ATTACKS if SOAK else ["flood", "giant"]])
async def test_on_the_charged_clock_latency_is_bounded(attacks: list[str]) -> None:
    found = await trials("charged", attacks)
    calm = found.pop("")
    for attack, latencies_ns in found.items():
        assert latencies_ns[-1] <= 2 * calm[-1], attack
        assert len(latencies_ns) * 10 >= len(calm) * 9, attack
