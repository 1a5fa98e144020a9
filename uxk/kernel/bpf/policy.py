"""A decision site's policy in the kernel: a program that is asked instead of a hint, and never instead of the site's
own checks.

It is asked for units that follow hints, so the model's mode, its evidence and its emergencies hold for it as well.
Whatever goes wrong, a fault, refusals, an emergency, the built-in rule decides in the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from uxk.bpf.compiler.schema import Schema
from uxk.core.site import DecisionSite
from uxk.errors import UsageError
from uxk.kernel.bpf.loaded import Loaded
from uxk.kernel.bpf.shadow import InjectionConfig

if TYPE_CHECKING:
    from uxk.kernel.bpf.injection import Injection
    from uxk.kernel.bpf.registry import Bpf

FEATURES_MAX: Final = 64
REFUSALS_OF: Final = 64
"""Verdicts that are looked back on: if the site refuses more than half of so many, the policy goes."""
PREFIX: Final = "site/"


class Verdict(NamedTuple):
    """What the policy says."""

    value: int
    """Within the site's bounds; of a ranking, the place of the best row, from 0."""
    generation: int
    """Of policy and weights."""
    cost_ns: int
    """Virtual time that it is charged: on the charged clock, the site lets it pass before it acts."""


class PolicyPort:
    """Where a site's policy is attached; made by ``kernel.policies.offer``.

    The site calls :meth:`decide` or :meth:`rank` at every decision, and falls back to its own rule for None.
    """

    commands, exclusive, gone = False, True, False

    def __init__(
        self, bpf: Bpf, site: DecisionSite, schema: Schema, verdict: tuple[int, int], config: InjectionConfig,
        *, ranked: bool,
    ) -> None:  # fmt: skip
        if len(schema) > FEATURES_MAX:
            raise UsageError(f"site {site.name}: {len(schema)} features, at most {FEATURES_MAX}")
        self.name = f"{PREFIX}{site.name}"
        self.site, self.schema, self.verdict, self.config, self.ranked = site, schema, verdict, config, ranked
        self.spec = schema.spec(verdict, trusted=True)
        self._bpf = bpf
        self._bounds = tuple((each.low, each.high) for each in schema.features)
        self.current: Loaded | None = None
        self.injection: Injection | None = None
        """Where the current program came from, if an agent injected it."""
        self.candidate: Injection | None = None
        """What runs in the shadow."""
        self.generation = 0
        """Grows with every swap, fallback and change of weights."""
        self.decisions = self.followed = self.clamped = self.refused = self.fallbacks = 0
        self.charged_ns = 0
        self.last_end = ""
        self._fates: deque[bool] = deque(maxlen=REFUSALS_OF)

    # --- attach point ---

    def attach(self, program: Loaded, instead: Loaded | None = None) -> None:
        """It decides from now on; there is one at a time, so that nothing is here ``instead`` of which it could."""
        if instead is not None:
            raise UsageError(f"bpf: {self.name}: a program there is replaced by an injection")
        self.current = program
        self.generation += 1
        self._fates.clear()
        program.on_fault = self._fault

    def detach(self, program: Loaded, why: str) -> None:
        """The built-in rule decides."""
        injection, self.current, self.injection = self.injection, None, None
        self.generation += 1
        self.last_end = why
        if injection is not None:  # it was taken away from below
            injection.end(why)

    def stop(self, why: str) -> None:
        """Ends what runs in the shadow, too."""
        if self.candidate is not None:
            self.candidate.end(why)
        self.fall_back(why)

    def fall_back(self, why: str) -> None:
        """Ends the policy in force, whoever attached it."""
        program, injection = self.current, self.injection
        if program is None:
            return
        self.fallbacks += 1
        self._bpf.log(f"{self.name}: fallback to the built-in rule: {why}", bad=True, site=self.site.name)
        if injection is not None:
            injection.end(why)
        else:
            self._bpf.detach(program, self.name, why)

    def _fault(self, program: Loaded, why: str) -> None:
        if program is self.current:
            self.fall_back(f"fault of program {program.id}: {why}")

    # --- deciding ---

    def decide(self, *features: int, unit: int = -1) -> Verdict | None:
        """The policy's verdict on these features, for a unit if one is named; None: the built-in rule decides.

        UsageError for another number of features than the schema has.
        """
        fields = self._fields(features)
        self.decisions += 1
        if self.candidate is not None:
            self.candidate.observe([fields])
        program, generation = self.current, self.generation
        if program is None or not self.site.follows(unit):
            return None
        value = program.decide(fields)
        if value is None:
            return None
        self._count([fields], value, program.cost_ns)
        return Verdict(value, generation, program.cost_ns)

    def rank(self, rows: Sequence[Sequence[int]], unit: int = -1) -> Verdict | None:
        """The place of the row that the policy scores highest, the first of equals; None: the built-in rule decides.

        Every row is charged.
        """
        if not rows:
            return None
        fields = [self._fields(row) for row in rows]
        self.decisions += 1
        if self.candidate is not None:
            self.candidate.observe(fields)
        program, generation = self.current, self.generation
        if program is None or not self.site.follows(unit):
            return None
        best = program.best(fields)
        if best is None:
            return None
        cost_ns = len(rows) * program.cost_ns
        self._count(fields, best, cost_ns)
        return Verdict(best, generation, cost_ns)

    def _fields(self, features: Sequence[int]) -> tuple[int, ...]:
        """In the schema's bounds, which the proof rests on, with the zero."""
        if len(features) != len(self._bounds):
            raise UsageError(f"site {self.site.name}: {len(features)} features, expected {len(self._bounds)}")
        for value, (low, high) in zip(features, self._bounds, strict=True):
            if not low <= value <= high:
                self.clamped += 1
                return (*self.schema.clamped(features), 0)
        return (*features, 0)

    def _count(self, fields: list[tuple[int, ...]], value: int, cost_ns: int) -> None:
        self.followed += 1
        self.charged_ns += cost_ns
        self._fates.append(False)
        every, injection = self.config.audit_every, self.injection
        if injection is not None and every and self.followed % every == 0:
            injection.note(fields, value)

    def refuse(self, verdict: Verdict, reason: str) -> None:
        """The site's own check forbids what the policy said: counted; when most are, the policy goes."""
        self.refused += 1
        if verdict.generation == self.generation and self._fates:
            self._fates[-1] = True
            if len(self._fates) == REFUSALS_OF and 2 * sum(self._fates) > REFUSALS_OF:
                self.fall_back(f"{sum(self._fates)} of {REFUSALS_OF} verdicts refused, the last one as {reason}")
