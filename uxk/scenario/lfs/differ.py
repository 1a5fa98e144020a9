"""What differs between two studies: settings, and the results by policy and seed."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

import msgspec
from msgspec import Struct

from uxk.limits import PPM
from uxk.scenario.lfs.folder import StoredStudy
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.scores import wa_of
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.report import table
from uxk.scenario.saved import Difference, differences, flat

_FACTS = ("workload", "pages", "fill", "writes", "trace_sha256")


class SeedPair(Struct, frozen=True, kw_only=True):
    """One policy with one seed in both: write amplification, and whether they went the same way."""

    seed: int
    first: float
    second: float
    ratio: float
    same: bool
    """As many blocks moved, and the same event hash."""


class PolicyPair(Struct, frozen=True, kw_only=True):
    """One policy in both, over the seeds that both have."""

    policy: str
    seeds: list[SeedPair]
    ratio: float
    """Geometric mean of second over first; below 1: the second writes less."""
    beyond_spread: bool | None
    """Whether no seed of one lies among the seeds of the other; None with fewer than two seeds, when nothing is
    known of the spread."""


class StudyDiff(Struct, frozen=True, kw_only=True):
    """All of it."""

    settings: list[tuple[str, Any, Any]]
    versions: list[tuple[str, Any, Any]]
    policies: list[PolicyPair]
    only_first: list[str]
    """``policy, seed N`` that the second does not have."""
    only_second: list[str]

    @property
    def is_same(self) -> bool:
        """Whether settings and results are equal; versions may differ."""
        equal = all(pair.same for policy in self.policies for pair in policy.seeds)
        return equal and not (self.settings or self.only_first or self.only_second)


def diff_studies(first: tuple[StoredStudy, Verdict], second: tuple[StoredStudy, Verdict]) -> StudyDiff:
    """Compares two folders."""
    runs = [{(run.policy, run.seed): run for run in verdict.outcomes} for _, verdict in (first, second)]
    names = dict.fromkeys(policy for policy, _ in runs[0])
    pairs = []
    for name in names:
        seeds = [seed for policy, seed in runs[0] if policy == name and (name, seed) in runs[1]]
        if seeds:
            pairs.append(_policy(name, [(runs[0][name, seed], runs[1][name, seed]) for seed in seeds]))
    ours, theirs = (_settings(stored) for stored, _ in (first, second))
    versions = differences(first[0].manifest.versions, second[0].manifest.versions)
    return StudyDiff(
        settings=_plain(differences(ours, theirs)), versions=_plain(versions), policies=pairs,
        only_first=[f"{policy}, seed {seed}" for policy, seed in runs[0] if (policy, seed) not in runs[1]],
        only_second=[f"{policy}, seed {seed}" for policy, seed in runs[1] if (policy, seed) not in runs[0]],
    )  # fmt: skip


def _settings(stored: StoredStudy) -> dict[str, Any]:
    manifest = stored.manifest
    facts = {name: getattr(manifest, name) for name in _FACTS}
    study = msgspec.to_builtins(manifest.study) | {"policies": " ".join(manifest.study.policies)}
    return dict(flat(study)) | facts


def _plain(found: Sequence[Difference]) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.first, each.second) for each in found]


def _policy(name: str, runs: list[tuple[Outcome, Outcome]]) -> PolicyPair:
    seeds = [
        SeedPair(
            seed=ours.seed, first=wa_of(ours) / PPM, second=wa_of(theirs) / PPM,
            ratio=round(wa_of(theirs) / wa_of(ours), 6),
            same=(ours.user_blocks, ours.moved_blocks, ours.event_hash)
            == (theirs.user_blocks, theirs.moved_blocks, theirs.event_hash),
        )
        for ours, theirs in runs
    ]  # fmt: skip
    first, second = [each.first for each in seeds], [each.second for each in seeds]
    beyond = None if len(seeds) < 2 else min(first) > max(second) or min(second) > max(first)
    ratio = exp(sum(log(each.second / each.first) for each in seeds) / len(seeds))
    return PolicyPair(policy=name, seeds=seeds, ratio=round(ratio, 6), beyond_spread=beyond)


def text(found: StudyDiff) -> str:
    """For people."""
    if found.is_same:
        lines = ["the same settings and results"]
        return "\n".join(lines + [f"versions: {name}: {a} -> {b}" for name, a, b in found.versions])
    lines = []
    for title, values in (("settings", found.settings), ("versions", found.versions)):
        if values:
            lines += [*table((title, "first", "second"), [[name, str(a), str(b)] for name, a, b in values]), ""]
    rows = []
    for policy in found.policies:
        judged = {None: "one seed: spread unknown", True: "beyond the spread of seeds", False: "within the spread"}
        several = len(policy.seeds) > 1
        for each in policy.seeds:
            verdict = "same" if each.same else "" if several else judged[policy.beyond_spread]
            rows.append([f"{policy.policy}, seed {each.seed}", *_row(each.first, each.second, each.ratio), verdict])
        if several and not all(each.same for each in policy.seeds):
            rows.append([f"{policy.policy}, all seeds", "", "", f"{policy.ratio:.4f}", judged[policy.beyond_spread]])
    if rows:
        lines += table(("result", "WA first", "WA second", "ratio", ""), rows)
    lines += [f"only in the first: {name}" for name in found.only_first]
    lines += [f"only in the second: {name}" for name in found.only_second]
    return "\n".join(lines)


def _row(first: float, second: float, ratio: float) -> list[str]:
    return [f"{first:.4f}", f"{second:.4f}", f"{ratio:.4f}"]
