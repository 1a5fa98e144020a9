"""A finished study: outcomes, scores, and both as plain data."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from uxk.limits import NS_PER_S, PPM
from uxk.scenario.lfs.attach import TraceFacts
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import Summary, score, summarise
from uxk.scenario.lfs.study import Study


class Verdict(Struct, kw_only=True):
    """What a study found."""

    study: Study
    workload: str
    pages: int
    fill: int
    writes: int
    """All user writes of the last seed, the fill's included."""
    trace_sha256: str
    trace: TraceFacts | None = None
    """How the trace was read; None for workloads and bundled traces."""
    outcomes: list[Outcome]
    notes: list[str]
    host_ns: int

    @property
    def exit_code(self) -> int:
        """The worst of its runs': 0 good, 1 a check failed, 3 an invariant broken."""
        return max((outcome.exit_code for outcome in self.outcomes), default=0)

    @property
    def summaries(self) -> list[Summary]:
        """By policy, the best first."""
        return summarise(self.outcomes)

    @property
    def winner(self) -> Summary | None:
        """The best policy that could be used: oracles do not count."""
        return next((each for each in self.summaries if each.kind != "oracle"), None)

    def report(self, everything: bool = False) -> str:
        """The study in words and tables; only lines that begin with ``host time`` differ between repeats.

        A long table leaves out published policies from the middle of the field, unless ``everything`` is wanted.
        """
        from uxk.scenario.lfs.text import report

        return report(self, everything)

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it; only ``host``, ``cpu_ns`` and ``held_bytes`` differ between repeats."""
        winner = self.winner
        return {
            "study": self.study.study, "name": self.study.name, "workload": self.workload, "pages": self.pages,
            "fill": self.fill, "writes": self.writes, "trace_sha256": self.trace_sha256 or None,
            "trace": None if self.trace is None else msgspec.to_builtins(self.trace),
            "seeds": list(self.study.all_seeds), "clock": self.study.clock,
            "options": msgspec.to_builtins(self.study.lfs),
            "results": [result(outcome, self.outcomes) for outcome in self.outcomes],
            "summary": [msgspec.to_builtins(each) for each in self.summaries],
            "winner": None if winner is None else winner.policy,
            "notes": self.notes, "exit_code": self.exit_code, "host": {"host_ns": self.host_ns},
        }  # fmt: skip


def result(outcome: Outcome, outcomes: list[Outcome]) -> dict[str, Any]:
    """One entry of the list ``results``; None for what was not computed, with the reason in ``missing``."""
    latency = outcome.latency
    missing = dict(outcome.missing)
    account = outcome.account
    epochs = max(sum(outcome.mode_epochs.values()), 1)
    writes_per_s = outcome.user_blocks * NS_PER_S // outcome.host_ns if outcome.host_ns else None
    return {
        "policy": outcome.policy, "kind": outcome.kind, "is_default": outcome.is_default, "seed": outcome.seed,
        "engine": outcome.engine, "wa": outcome.wa_ppm / PPM,
        "wa_second_half": None if "wa_second_half" in missing else outcome.half_wa_ppm / PPM,
        "user_blocks": outcome.user_blocks, "moved_blocks": outcome.moved_blocks,
        "second_half": {"user_blocks": outcome.half_user_blocks, "moved_blocks": outcome.half_moved_blocks},
        "foreground_stalls": None if latency is None else latency.stalls,
        "longest_stall_ns": None if latency is None else latency.longest_stall_ns,
        "write_latency": None if latency is None else {
            "p50_ns": latency.p50_ns, "p99_ns": latency.p99_ns, "p999_ns": latency.p999_ns, "max_ns": latency.max_ns,
            "utilisation_ppm": None if "write_latency.utilisation_ppm" in missing else latency.utilisation_ppm,
        },
        "clean_min": outcome.clean_min,
        "hints": {
            "received": outcome.received, "applied": outcome.applied, "refused": outcome.refused,
            "expired": outcome.expired, "superseded": outcome.superseded,
        },
        "crossings": account.get("crossings", 0),
        "thinking": {
            "charged_ns": account.get("charged_ns", 0), "declared_ns": account.get("declared_ns", 0),
            "bytes": account.get("bytes_in", 0) + account.get("bytes_out", 0),
            "arena_bytes_max": account.get("arena_bytes_max", 0), "held_bytes": account.get("held_bytes", 0),
            "cpu_ns": account.get("cpu_ns", 0),
        },
        "restarts": account.get("restarts", 0),
        "mode_timeline": outcome.timeline,
        "mode_share_ppm": {mode: count * PPM // epochs for mode, count in outcome.mode_epochs.items()},
        "following_ppm": outcome.following_ppm,
        "segments_by_tenths": outcome.heat,
        "scores": msgspec.to_builtins(score(outcome, outcomes)),
        "event_hash": outcome.event_hash, "exit_code": outcome.exit_code, "notes": outcome.notes, "missing": missing,
        "host": {"host_ns": outcome.host_ns, "writes_per_s": writes_per_s},
    }  # fmt: skip
