"""When an instance may have its turn, and what a turn costs: the charged clock and the CPU budget.

On the virtual clock an instance with the whole processor as its share is never held back, and need not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk import limits
from uxk.core.account import Account
from uxk.kernel.machine import Machine
from uxk.uapi.entries import Charge, Up
from uxk.uapi.manifest import Manifest

CPU_PERIOD_NS: Final = 100_000_000
"""Period of the CPU budget (Linux: sched_cfs_bandwidth's default, 100 ms)."""
_COST_SAMPLES: Final = 16


class Pace:
    """Busy times and shares of one instance."""

    __slots__ = (
        "_account", "_began_ns", "_busy_until_ns", "_cpu_ppm", "_machine", "_manifest", "_period", "_samples_ns",
        "charged", "limited", "measured", "spent_ns",
    )  # fmt: skip

    def __init__(self, machine: Machine, account: Account, manifest: Manifest, cpu_ppm: int) -> None:
        self._machine = machine
        self._account = account
        self._manifest = manifest
        self._cpu_ppm = cpu_ppm
        self.charged = machine.clock == "charged"
        """Whether costs take virtual time."""
        self.limited = self.charged or cpu_ppm < limits.PPM
        """Whether anything can hold a turn back."""
        self.measured = self.limited and machine.clock == "real"
        """Whether its share is of the kernel's own processor time, as :attr:`spent_ns` has it."""
        self.spent_ns = 0
        """What the kernel has spent on its turns, its output, and on reading what its process writes."""
        self._busy_until_ns = 0
        self._period = -1
        self._began_ns = 0
        self._samples_ns: Sequence[int] = ()

    def not_before_ns(self) -> int | None:
        """When the next turn may be, if not now: busy until then, or its share of the period is used up."""
        now_ns = self._machine.now_ns
        if now_ns < self._busy_until_ns:
            return self._busy_until_ns
        share_ppm = self._cpu_ppm
        if share_ppm >= limits.PPM:
            return None
        period = now_ns // CPU_PERIOD_NS
        charged_ns = self.spent_ns if self.measured else self._account.charged_ns
        if period != self._period:  # what was used beyond the share is owed (cfs_bandwidth's negative runtime)
            paid_ns = (period - self._period) * share_ppm * CPU_PERIOD_NS // limits.PPM
            self._period, self._began_ns = period, min(charged_ns, self._began_ns + paid_ns)
        if (charged_ns - self._began_ns) * limits.PPM < share_ppm * CPU_PERIOD_NS:
            return None
        self._account.throttled += 1
        return (period + 1) * CPU_PERIOD_NS

    def book_thinking(self, ups: Sequence[Up], spent_ns: int) -> None:
        """Books what the extension declares, and on the charged clock the turn's own cost, declared or measured."""
        self._account.declared_ns += sum(entry.cost_ns for entry in ups if type(entry) is Charge)
        if self.charged:
            self._account.declared_ns += self._turn_cost_ns(spent_ns)

    def book(self, spent_ns: int) -> None:
        """The kernel has worked for it so long."""
        if self.measured:
            self.spent_ns += spent_ns

    def busy_for(self, duration_ns: int) -> int:
        """The instance is busy so long, after what it is busy with already; returns until when.

        Thinking without a word takes time as well, and nothing said later overtakes what was said before.
        """
        self._busy_until_ns = max(self._machine.now_ns, self._busy_until_ns) + duration_ns
        return self._busy_until_ns

    def reset(self) -> None:
        """A new incarnation is not busy with what the last one did."""
        self._busy_until_ns = 0

    def _turn_cost_ns(self, spent_ns: int) -> int:
        manifest, machine = self._manifest, self._machine
        if manifest.turn_cost_ns is not None:
            return manifest.turn_cost_ns
        known_ns = machine.costs_ns.get(manifest.name)
        if known_ns is not None:
            return known_ns
        self._samples_ns = (*self._samples_ns, spent_ns)
        if len(self._samples_ns) >= _COST_SAMPLES:
            median_ns = sorted(self._samples_ns)[_COST_SAMPLES >> 1]
            machine.costs_ns[manifest.name] = median_ns
            machine.log("notice", manifest.name, f"one turn costs {median_ns} ns, measured once")
        return spent_ns
