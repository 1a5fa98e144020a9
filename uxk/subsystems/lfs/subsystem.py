"""A log-structured volume at work on a kernel: epochs, shadows, modes, hints.

Time goes in epochs of user writes.  At the end of each the two miniatures tell what hints were worth, the mode
machine decides what share of extents follows them next, datasets go out, and the hint that stands is looked at.
Nothing here waits for an agent: what comes before the end of an epoch counts in the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from uxk.core.events import EventId
from uxk.core.mode import ModeConfig
from uxk.errors import ConfigError, ParamError
from uxk.kernel.kernel import Kernel
from uxk.limits import PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.data import SEGMENTS, STATE, WRITES, segment_rows
from uxk.subsystems.lfs.fast import pools
from uxk.subsystems.lfs.fast.debt import run_debt
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Volume, Words, check_pages, make_volume, set_policy
from uxk.subsystems.lfs.figures import Epoch, figures
from uxk.subsystems.lfs.hint import decode_hint
from uxk.subsystems.lfs.miniature import Count, Miniature
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.policy import Policy, parse_policy
from uxk.subsystems.lfs.program import GcPolicy
from uxk.subsystems.lfs.sample import make_sample
from uxk.subsystems.lfs.thresholds import Thresholds, most_gp_ppm
from uxk.uapi.entries import Hint
from uxk.uapi.ml import OVERRIDES

NO_CLASS: Final = 255
"""In a placement table: the default decides."""
CORRELATION_MAX_PPM: Final = 200_000
"""Epochs of write amplification swing back: lag-1 autocorrelation is -0.4 to 0.2 (``python -m bench.lfs_null``)."""
PROGRAM: Final = "program"
"""The selection that asks what is in force at the site."""
SEGMENTS_PER_LOG: Final = 10
"""For each open log, of a part of the volume that follows hints; at least."""


class Lfs:
    """One volume, fed with ``ops``: page numbers in the order of their writes; the first ``fill`` fill it."""

    def __init__(
        self, kernel: Kernel, params: LfsParams, ops: Words, *, fill: int = 0, pages: int = 0, name: str = "lfs0"
    ) -> None:  # fmt: skip
        if not len(ops):
            raise ConfigError(f"{name}: no writes")
        self.params, self.name, self.fill = params, name, fill
        self.ops: Words = np.ascontiguousarray(ops, np.int32)
        self.pages = pages or int(ops.max()) + 1
        check_pages(self.ops, self.pages)
        self.default = parse_policy(params.default)
        if self.default.selection == PROGRAM:
            raise ConfigError(f"{name}: default={params.default!r}: a program comes later; expected another selection")
        self.sample = make_sample(self.pages, params.segment_blocks, params.sample_ratio)
        self.epochs: list[Epoch] = []
        self.epoch_blocks = max(self.pages // params.epochs_per_volume, 1)
        self.done = 0
        """User writes so far."""
        self.debt: Words | None = None
        """One element per write, for who wants to know the blocks moved after each; None: nobody does."""
        self._machine = kernel.machine
        self._hint: Hint | None = None
        self._policy: Policy | None = None
        self._table: bytes = b""
        self._counted = Count(0, 0)
        self._share_before = 0
        self._due = EventId(0)
        """The end of the epoch."""
        self._make_volumes()
        self.thresholds = Thresholds(
            kernel, name, params, [self.volume, self._shadow.volume, self._follower.volume],
            self.epoch_blocks * params.write_ns,
        )  # fmt: skip
        self._make_model(kernel)
        self.programs = GcPolicy(
            kernel, self.site, [(self.volume, 1), (self._follower.volume, 0)], params,
            self.epoch_blocks * params.write_ns,
        )  # fmt: skip
        self._schedule()

    def _make_volumes(self) -> None:
        params, most = self.params, most_gp_ppm(self.params)
        aux = np.full(self.pages, NO_CLASS, np.int64)
        self.volume: Volume = make_volume(self.pages, params.segment_blocks, most, params.logs, aux=aux, pools=2)
        for pool in (0, 1):
            set_policy(self.volume, *self.default.codes, pool=pool)
        shape = len(self.sample.pages), self.sample.segment_blocks, most, params.logs, self.default
        self._shadow, self._follower = Miniature(*shape), Miniature(*shape)

    def _make_model(self, kernel: Kernel) -> None:
        params, name = self.params, self.name
        self.proxy = kernel.create_model("lfs", name, config=self._modes(), state=self._state_words, probe=self._probe)
        self.site = self.proxy.site(f"{name}.gc", check=self._check, depth=4)
        self._writes = self.proxy.dataset("writes", WRITES, self.epoch_blocks)
        self._segments = self.proxy.dataset("segments", SEGMENTS, int(self.volume.reg[c.SEGMENTS]))
        self._state = self.proxy.dataset("state", STATE, 1)
        if params.modes != "auto":
            self.proxy.override(OVERRIDES[params.modes], "parameter modes")

    def _modes(self) -> ModeConfig:
        """The mode machine's settings.

        A change of policy may cost an epoch half as much again, which is no emergency.
        """
        params = self.params
        silence_ns = params.silence_epochs * self.epoch_blocks * params.write_ns
        return ModeConfig(
            learning_share_ppm=params.learning_share_ppm, silence_ns=silence_ns, trip_ppm=PPM,
            correlation_ppm=0, correlation_max_ppm=CORRELATION_MAX_PPM,
        )  # fmt: skip

    def _state_words(self) -> dict[str, int | str]:
        reg = self.volume.reg
        return {
            "user_blocks": int(reg[c.NOW]), "moved_blocks": int(reg[c.MOVED]), "clean_segments": int(reg[c.CLEAN]),
            "garbage_blocks": int(reg[c.GARBAGE]), "policy": self._policy.name if self._policy else "",
        }  # fmt: skip

    def _probe(self) -> dict[str, str | None]:
        """Too few clean segments: every log that fills up must find one (R109)."""
        clean, least = int(self.volume.reg[c.CLEAN]), self.thresholds.clean_min
        return {"clean_segments": f"{clean} left, at least {least} needed" if clean < least else None}

    # --- epochs ---

    def _schedule(self) -> None:
        blocks = min(self.epoch_blocks, len(self.ops) - self.done)
        if blocks > 0:
            self._due = EventId(self._machine.call_later(blocks * self.params.write_ns, self._epoch, blocks))

    def close(self) -> None:
        """Nothing more is written; its sysctls, its model and what they hold go."""
        self._machine.heap.discard(self._due)
        self.thresholds.close()
        self.proxy.close()

    def _epoch(self, blocks: int) -> None:
        """The end of an epoch: its writes are done in one go, then everything else."""
        if self.programs.is_lost and not self.programs.adopt():
            self._policy = None  # what has gone decides nothing more, not even in the epoch that it went in
            self._follow(self.default)
        ops = self.ops[self.done : self.done + blocks]
        if self.debt is None:
            run(*self.volume, ops, 0, blocks)
        else:
            run_debt(self.volume, ops, 0, blocks, self.debt[self.done :])
        self.done += blocks
        sampled = self.sample.of(ops)
        self._shadow.run(sampled)
        self._follower.run(sampled)
        self.programs.book()
        self._measure()
        self.thresholds.epoch(self.epochs[-1].written)
        self._decide()
        self.programs.judge()
        self._publish(sampled)
        self._schedule()

    def _measure(self) -> None:
        """Books the epoch: what was written, and what hints were worth."""
        reg = self.volume.reg
        before, self._counted = self._counted, Count(int(reg[c.NOW]), int(reg[c.MOVED]))
        written = Count(self._counted.user - before.user, self._counted.moved - before.moved)
        default, hinted = self._shadow.epoch(), self._follower.epoch()
        policy, share_ppm = self._policy, self._share_before * PPM // c.BUCKETS
        self.epochs.append(Epoch(
            self.site.mode, share_ppm, written, default, hinted, "" if policy is None else policy.name,
            () if policy is None else policy.args,
        ))  # fmt: skip
        paired = policy is not None and default.user > 0
        self._machine.note("lfs", 0, b"%d %d" % self._counted)
        self.site.epoch(
            default_kpi=default.wa_ppm if default.user else None, hinted_kpi=hinted.wa_ppm if paired else None,
            weight=written.user, hinted_weight=max(written.user * share_ppm // PPM, 1) if paired else 0,
        )  # fmt: skip
        if paired and self._hint is not None and self.site.gave(self._hint):
            self.site.applied(self._hint, outcome=hinted.wa_ppm, baseline=default.wa_ppm)

    # --- deciding ---

    def _check(self, payload: bytes) -> str:
        """Why a hint cannot be followed now, or ``""``."""
        hint = decode_hint(payload)
        if hint is None:
            return "malformed"
        if any(not 0 <= segment < self.volume.reg[c.SEGMENTS] for segment in hint.victims):
            return "out_of_range"
        if hint.policy:
            try:
                policy = parse_policy(hint.policy, hint.args)
            except ConfigError:
                return "unknown_policy"
            except ParamError:
                return "out_of_range"
            if policy.needs_future or (policy.placement == "table") != bool(hint.table):
                return "unknown_policy"
            if policy.selection == PROGRAM and self.programs.port.current is None:
                return "no_program"
        if hint.table:
            cell = self._machine.snapshots.get(hint.table)
            if cell is None or not cell.versions() or len(cell.read().data) != self.pages:
                return "bad_table"
        return ""

    def _decide(self) -> None:
        """What the next epoch follows: the mode's share, the standing hint, victims for once."""
        now_ns = self._machine.now_ns
        self._hint = self.site.standing(now_ns)
        payload = None if self._hint is None else decode_hint(self._hint.payload)
        wanted = parse_policy(payload.policy, payload.args) if payload is not None and payload.policy else None
        if self.programs.adopt() and wanted is None:
            wanted = Policy(self.default.placement, PROGRAM)
        table = self._machine.snapshots.get(payload.table) if payload is not None and payload.table else None
        classes = table.read().data if table is not None else b""
        if wanted != self._policy or classes != self._table:
            self._policy, self._table = wanted, classes
            self._follow(wanted or self.default)
        self._share()
        self._take_victims(now_ns)

    def _follow(self, policy: Policy) -> None:
        """Puts a policy in force in the hinted pool, and in the miniature that follows hints."""
        if self._table:
            classes = np.frombuffer(self._table, np.uint8).astype(np.int64)
            classes[classes != NO_CLASS] %= self.params.logs
            self.volume.aux[:] = classes
            self._follower.table(classes[self.sample.pages])
        set_policy(self.volume, *policy.codes, pool=1)
        self._follower.follow(policy.scaled(self.sample.ratio))

    def _share(self) -> None:
        """Makes the hinted pool as big as the mode wants it; without a policy there is none.

        A pool has its own open segments, whose garbage cannot be cleaned.  In one of few segments they cost more than
        any advice can save, so that a share too small for a pool is left to the miniatures alone.
        """
        share = c.BUCKETS * self.site.share_ppm // PPM if self._policy is not None else 0
        least = SEGMENTS_PER_LOG * self.params.logs * self.params.segment_blocks
        if share < c.BUCKETS and self.pages * share < least * c.BUCKETS:
            share = 0
        pools.share(self.volume, share, warm=self._policy is not None)
        if share != self._share_before:
            if share in (0, c.BUCKETS):  # one pool takes everything over, so that no block moves for its name alone
                pools.adopt(self.volume, int(share == c.BUCKETS))
            self._share_before = share

    def _take_victims(self, now_ns: int) -> None:
        """One-shot hints: their victims are tried before the pool's own choice, each checked when its turn comes."""
        before = pools.hint_fates(self.volume)
        hint = self.site.take(now_ns)
        payload = None if hint is None else decode_hint(hint.payload)
        if hint is None or payload is None:
            return
        if not self._share_before:
            self.site.refuse(hint, "no_share")
        elif not payload.victims:
            self.site.refuse(hint, "malformed")
        else:
            pools.hint_victims(self.volume, payload.victims, payload.max_valid_blocks)
            self.site.applied(hint, outcome=before["used"])

    # --- telling ---

    def _publish(self, sampled: Words) -> None:
        self._writes.append(sampled.astype("<u4").view(WRITES))
        self._segments.append(segment_rows(self.volume))
        reg, last, params = self.volume.reg, self.epochs[-1], self.params
        self._state.append([(
            len(self.epochs), int(reg[c.NOW]), int(reg[c.MOVED]), int(reg[c.GARBAGE]), int(reg[c.TOTAL]),
            int(reg[c.CLEAN]), self.pages, len(self.sample.pages), self.sample.ratio, self.sample.segment_blocks,
            self.thresholds.gp_ppm, most_gp_ppm(params), params.logs, last.default.wa_ppm, last.hinted.wa_ppm,
        )])  # fmt: skip
        for dataset in (self._writes, self._segments, self._state):
            dataset.publish()

    # --- results ---

    def results(self) -> Mapping[str, Any]:
        """Figures of the run so far, see :func:`uxk.subsystems.lfs.figures.figures`."""
        return figures(self)
