"""A program at a volume's decision site: it scores segments inside the batch, as machine code, with no crossing.

What a site decided one by one does at each decision is done here at the end of each epoch: what is in force is looked
at, decisions and runs are counted, and *heats* are held.  In a heat the program names the best of some of the segments
that could be cleaned at that moment; each segment is in one heat.  The model judges heats in the shadow, and audits;
of each audited one the reference interpreter has to confirm a score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from uxk.core.site import DecisionSite
from uxk.kernel.bpf.loaded import Loaded
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.kernel.kernel import Kernel
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints
from uxk.subsystems.lfs.fast.select import candidate_rows
from uxk.subsystems.lfs.fast.volume import Volume, registers
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.rows import SCHEMA, VERDICT
from uxk.subsystems.lfs.scorer import Scorer, scorer_of

HEATS: Final = 16
"""At the end of an epoch."""
HEAT_ROWS_MAX: Final = 256
"""Segments in one heat."""
AGREEMENT_PPM: Final = 950_000
"""Heats in which program and model must name the same segment."""
LIFETIME_EPOCHS: Final = 256
"""Longest shadow period."""

Twin = Callable[[Loaded], Scorer | None]
"""What decides in the place of a program that is in force, for comparisons; None: the program itself."""


class Counted(NamedTuple):
    """Since the beginning: victims of all policies, those that programs named, and rows that they scored for it."""

    victims: int
    named: int
    runs: int


class GcPolicy:
    """The site's port, and what the volume and the miniature that follows hints ask.

    ``volumes`` are pairs of a volume and its pool that follows hints; the first is the real one.
    """

    def __init__(
        self, kernel: Kernel, site: DecisionSite, volumes: list[tuple[Volume, int]], params: LfsParams, epoch_ns: int
    ) -> None:
        config = InjectionConfig(
            decisions_min=params.shadow_heats, agreement_ppm=AGREEMENT_PPM, audit_every=0, batch=HEATS,
            lifetime_ns=LIFETIME_EPOCHS * epoch_ns,
        )  # fmt: skip
        self.port = kernel.policies.offer(site, SCHEMA, VERDICT, config=config, ranked=True)
        self.twin: Twin | None = None
        self.counted = Counted(0, 0, 0)
        self._volumes = volumes
        self._audit_epochs = params.audit_epochs
        self._program: Loaded | None = None
        self._scorer: Scorer | None = None
        self._epochs = 0
        """Since it is in force."""

    @property
    def is_lost(self) -> bool:
        """Whether what the volumes ask is not in force any more."""
        return self._program is not None and self._program is not self.port.current

    def adopt(self) -> bool:
        """The volumes ask what is in force now; whether there is anything."""
        program = self.port.current
        if program is not self._program:
            self._leave()
            self._program, self._epochs = program, 0
            if program is not None:
                self._scorer = self._scorer_of(program)
                for volume, pool in self._volumes:
                    self._scorer.serve(volume, pool)
        return program is not None

    def _scorer_of(self, program: Loaded) -> Scorer:
        twin = self.twin(program) if self.twin is not None else None
        return twin or scorer_of(program.program, program.decide)

    def _leave(self) -> None:
        if self._scorer is not None:
            for volume, pool in self._volumes:
                self._scorer.leave(volume, pool)
        self._scorer = None

    # --- at the end of an epoch ---

    def book(self) -> None:
        """Counts what was decided since the last time, and charges the longest way for every row.

        The miniature's rows are runs, too, but none of its victims is a decision.
        """
        named = runs = 0
        for volume, pool in self._volumes:
            reg = registers(volume, pool)
            runs += int(reg[c.PROGRAM_RUNS])
        volume, pool = self._volumes[0]
        named, victims = int(registers(volume, pool)[c.PROGRAM_CHOSE]), int(volume.reg[c.CLEANED])
        before, self.counted = self.counted, Counted(victims, named, runs)
        port, program = self.port, self._program
        port.decisions += victims - before.victims
        port.followed += named - before.named
        if program is not None and self._scorer is not None:
            port.charged_ns += (runs - before.runs) * program.cost_ns
            if self._scorer.pure:  # others count for themselves
                program.runs += runs - before.runs

    def judge(self) -> None:
        """Heats: of what is in the shadow, and now and then of what is in force."""
        port, injection = self.port, self.port.injection
        self._epochs += 1
        candidate = port.candidate
        audits = injection is not None and self._audit_epochs > 0 and self._epochs % self._audit_epochs == 0
        if candidate is None and not audits:
            return
        for rows in self._heats():
            if port.candidate is candidate and candidate is not None:
                candidate.observe([tuple(row) for row in rows.tolist()])
            if audits and injection is not None and port.injection is injection:
                verdict = self._audited(rows)
                if verdict is not None:
                    injection.note([tuple(row) for row in rows.tolist()], verdict)

    def _heats(self) -> list[Ints]:
        """``int64[n, ROW_WORDS]`` of each heat, two segments at least."""
        volume = self._volumes[0][0]
        count = int(volume.reg[c.SEGMENTS])
        rows, numbers = np.zeros((count, c.ROW_WORDS), np.int64), np.zeros(count, np.int64)
        found: list[Ints] = []
        for pool in range(int(volume.reg[c.POOLS])):
            some = candidate_rows(registers(volume, pool), volume.seg, rows, numbers)
            found.append(rows[:some].copy())
        every = np.concatenate(found)
        heats = [every[start::HEATS][:HEAT_ROWS_MAX] for start in range(HEATS)]
        return [heat for heat in heats if len(heat) > 1]

    def _audited(self, rows: Ints) -> int | None:
        """The place of the best of a heat; None if there is nothing to be had from the program any more."""
        program, scorer = self._program, self._scorer
        if program is None or scorer is None or program is not self.port.current:
            return None
        scores: list[int] = []
        for score in scorer.scores(rows):
            if score is None:  # a fault, and it is gone
                return None
            scores.append(score)
        if scorer.is_native and (checked := program.program.interpret(rows[0].tobytes())) != scores[0]:
            program.fail(f"the interpreter says {checked} of {rows[0].tolist()}, not {scores[0]}")
            return None
        return scores.index(max(scores))
