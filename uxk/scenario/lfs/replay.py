"""Runs a study again from its folder, and compares bit for bit.

An agent's run needs no agent: a module without any learning sends the recorded hints, in the recorded epochs and at
the recorded times, through the same queue.  As another module is loaded the event hash cannot be the same; compared
are the blocks moved in each epoch, what decided them, the mode timeline and every hint's fate.  Runs without an
agent are compared by the digest of the blocks moved after every single write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

import uxk
from uxk.errors import ConfigError
from uxk.limits import HINTS_PER_SECOND_DEFAULT, QUEUE_DEPTH_DEFAULT, QUEUE_DEPTH_MAX
from uxk.scenario.lfs.agent import run_agent
from uxk.scenario.lfs.attach import is_random, load
from uxk.scenario.lfs.batch import run_policy
from uxk.scenario.lfs.entrants import Entrant, resolve
from uxk.scenario.lfs.folder import StoredStudy
from uxk.scenario.lfs.outcome import HintRecord, Outcome
from uxk.scenario.lfs.study import Study
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.model import Load
from uxk.scenario.pages.bundled import bundled
from uxk.subsystems.lfs.hint import decode_hint

REPLAYER: Final = "lfs-replayer"
MODEL: Final = "lfs0"
CLOCK: Final = "state"
"""The dataset whose generations count the epochs: it is published last."""
_TOTALS: Final = (
    "user_blocks", "moved_blocks", "half_user_blocks", "half_moved_blocks", "clean_min", "heat", "latency",
)  # fmt: skip
_FATES: Final = ("received", "applied", "expired", "superseded", "refused", "following_ppm")


class Replayed(Struct, frozen=True, kw_only=True):
    """What became of one run."""

    policy: str
    seed: int
    same: bool
    verified: str
    """What was compared and equal; for a run that differs, what is different first."""


def replay_study(
    stored: StoredStudy, verdict: Verdict, policies: Sequence[str] = (), on_run: Callable[[str], object] | None = None
) -> list[Replayed]:
    """Runs every run of a folder again, or only those of some policies.

    ``on_run`` is told which one begins.  Raises :class:`ConfigError` for what cannot be repeated here: a trace that
    is not there or is another one, hints that need what the folder does not have.
    """
    study = verdict.study
    wanted = _wanted(verdict, policies)
    check_trace(study, stored.manifest.trace_sha256)
    known = _entrants(study)
    is_same_for_all = not is_random(study.volume)
    done: dict[str, Outcome] = {}
    found = []
    for recorded in wanted:
        if on_run is not None:
            on_run(f"{recorded.policy}, seed {recorded.seed}")
        if recorded.kind == "agent":
            found.append(compare_agent(recorded, replay_agent(recorded, study)))
            continue
        again = done.get(recorded.policy) if is_same_for_all else None
        if again is None:
            entrant = known.get(recorded.policy)
            if entrant is None or isinstance(entrant, ConfigError):
                raise entrant or ConfigError(f"{stored.path}: {recorded.policy!r} is not among the study's policies")
            pages = load(study.volume, recorded.seed)
            again = done[recorded.policy] = run_policy(entrant, study.lfs, pages, recorded.seed)
        found.append(compare_policy(recorded, again))
    return found


def _wanted(verdict: Verdict, policies: Sequence[str]) -> list[Outcome]:
    names = dict.fromkeys(run.policy for run in verdict.outcomes)
    for name in policies:
        if name not in names:
            raise ConfigError(f"policy {name!r}: not in this folder, which has {', '.join(names)}")
    return [run for run in verdict.outcomes if not policies or run.policy in policies]


def _entrants(study: Study) -> dict[str, Entrant | ConfigError]:
    """Who took part, by name; an error for those that are not here any more.  Agents are not needed."""
    found: dict[str, Entrant | ConfigError] = {}
    for word in study.policies:
        try:
            found |= {entrant.name: entrant for entrant in resolve([word], study.lfs.default)}
        except ConfigError as exc:
            found[Path(word).name] = exc
    return found


def check_trace(study: Study, sha256: str) -> None:
    """Raises :class:`ConfigError` if the study's trace is not the one that was recorded."""
    path = study.workload.trace or str(known.path if (known := bundled().get(study.workload.name)) else "")
    if not path:
        return
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as exc:
        raise ConfigError(f"trace {path}: {exc.strerror}", errno=exc.errno) from None
    if digest != sha256:
        raise ConfigError(f"trace {path}: another one than in the run: sha256 {digest[:16]}…, expected {sha256[:16]}…")


# --- agents -------------------------------------------------------------------------------------------------


def replay_agent(recorded: Outcome, study: Study) -> Outcome:
    """The run again, with the recorded hints instead of the agent.

    Always on the virtual clock: what thinking took is in the recorded times.
    """
    _check_hints(recorded)
    replayer = make_replayer(recorded.hint_log)
    study = msgspec.structs.replace(study, clock="virtual", datalog=None)
    entrant = Entrant(name=recorded.policy, kind="agent", load=Load(name=replayer.manifest.name))
    return run_agent(entrant, study, recorded.seed)


def _check_hints(recorded: Outcome) -> None:
    where = f"{recorded.policy}, seed {recorded.seed}"
    if any(epoch.policy.endswith("/program") for epoch in recorded.epochs):
        raise ConfigError(f"{where}: an injected program has decided, which hints do not tell; uxk run does it again")
    for number, hint in enumerate(recorded.hint_log, 1):
        try:
            payload = decode_hint(bytes.fromhex(hint.payload))
        except ValueError:
            raise ConfigError(f"{where}: hints.jsonl: line {number}: payload is not hexadecimal") from None
        if payload is not None and payload.table:
            raise ConfigError(
                f"{where}: hints.jsonl: line {number} names the table {payload.table!r}, "
                "whose contents a run folder does not have"
            )  # fmt: skip
    unrecorded = [note for note in recorded.notes if note.endswith("hints not recorded")]
    if unrecorded:
        raise ConfigError(f"{where}: {unrecorded[0]}: nothing to replay them from")


def make_replayer(hints: Iterable[HintRecord]) -> type[uxk.MLAgent[Any]]:
    """A module that sends these hints, each in its epoch and at its time."""
    by_epoch: dict[int, list[HintRecord]] = {}
    for hint in hints:
        by_epoch.setdefault(hint.epoch, []).append(hint)
    burst = max(map(len, by_epoch.values()), default=0)
    depth = min(max(1 << (2 * burst).bit_length(), QUEUE_DEPTH_DEFAULT), QUEUE_DEPTH_MAX)
    budget = uxk.Budget(hints_per_s=HINTS_PER_SECOND_DEFAULT + 100 * burst, queue_depth=depth)

    class Replayer(uxk.MLAgent):
        """Sends what was recorded; learns nothing."""

        manifest = uxk.Manifest(
            name=REPLAYER, version="1", author="The uxk authors", license="Apache-2.0", kind="ml-agent",
            description="sends recorded hints", budget=budget,
        )  # fmt: skip
        model = MODEL
        sites = tuple(dict.fromkeys(hint.site for each in by_epoch.values() for hint in each))

        def on_model(self, ctx: uxk.Context, info: Any) -> None:
            """Hints of before the end of the first epoch."""
            self._send_all(ctx, 0)

        def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
            """An epoch is over."""
            if dataset.name == CLOCK:
                self._send_all(ctx, dataset.generation)

        def _send_all(self, ctx: uxk.Context, epoch: int) -> None:
            for hint in by_epoch.get(epoch, ()) if epoch not in self._sent_epochs else ():
                if hint.now_ns > ctx.now_ns:
                    ctx.call_at_ns(hint.now_ns, lambda each: self._send(ctx, each), hint)
                else:
                    self._send(ctx, hint)
            self._sent_epochs.add(epoch)

        def setup(self, ctx: uxk.Context) -> None:
            """Nothing is sent yet."""
            self._sent_epochs: set[int] = set()

        def _send(self, ctx: uxk.Context, hint: HintRecord) -> None:
            ctx.hint(
                hint.site, hint.generation, hint.ttl_ns, bytes.fromhex(hint.payload), hint.dataset,
                dataset_generation=hint.dataset_generation, predicted=hint.predicted, standing=hint.standing,
            )  # fmt: skip

    return Replayer


# --- comparing ----------------------------------------------------------------------------------------------


def compare_agent(recorded: Outcome, again: Outcome) -> Replayed:
    """By epochs, modes and hints."""
    wrong = (
        _hints(recorded, again) or _epochs(recorded, again) or _timeline(recorded, again)
        or _values(recorded, again, _TOTALS) or _values(recorded, again, _FATES)
    )  # fmt: skip
    if wrong and recorded.account.get("restarts"):
        wrong += f"; the agent died {recorded.account['restarts']} times in the recorded run, which is not repeated"
    return _replayed(recorded, wrong, (
        f"{len(recorded.hint_log)} recorded hints, sent without the agent: WA {recorded.wa_ppm / 1e6:.6f}, blocks "
        f"moved, mode and policy in each of {len(recorded.epochs)} epochs, {len(recorded.timeline)} mode changes, "
        "fates of hints, latencies; not the event hash, as another module was loaded"
    ))  # fmt: skip


def compare_policy(recorded: Outcome, again: Outcome) -> Replayed:
    """By epochs, totals and the digest over all writes."""
    wrong = _epochs(recorded, again) or _values(recorded, again, (*_TOTALS, "event_hash"))
    return _replayed(recorded, wrong, (
        f"WA {recorded.wa_ppm / 1e6:.6f}, blocks moved in each of {len(recorded.epochs)} epochs, latencies, and the "
        f"digest {recorded.event_hash} over all writes"
    ))  # fmt: skip


def _replayed(recorded: Outcome, wrong: str, verified: str) -> Replayed:
    return Replayed(policy=recorded.policy, seed=recorded.seed, same=not wrong, verified=wrong or verified)


def _epochs(recorded: Outcome, again: Outcome) -> str:
    """The first epoch that differs, and in what."""
    for number, (ours, theirs) in enumerate(zip(recorded.epochs, again.epochs, strict=False)):
        for name in ours.__struct_fields__:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if mine != other:
                return f"epoch {number}: {name} was {mine!r}, is {other!r}"
    if len(recorded.epochs) != len(again.epochs):
        shorter = min(len(recorded.epochs), len(again.epochs))
        return f"epoch {shorter}: there were {len(recorded.epochs)} epochs, there are {len(again.epochs)}"
    return ""


def _hints(recorded: Outcome, again: Outcome) -> str:
    """The first hint that came otherwise; numbers and names of the sender's own are not compared."""
    for number, (ours, theirs) in enumerate(zip(recorded.hint_log, again.hint_log, strict=False), 1):
        for name in ours.__struct_fields__:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if name not in ("cid", "agent") and mine != other:
                return f"epoch {ours.epoch}: hint {number}: {name} was {mine!r}, is {other!r}"
    if len(recorded.hint_log) != len(again.hint_log):
        return f"{len(recorded.hint_log)} hints were recorded, {len(again.hint_log)} came again"
    return ""


def _timeline(recorded: Outcome, again: Outcome) -> str:
    for ours, theirs in zip(recorded.timeline, again.timeline, strict=False):
        if ours != theirs:
            return f"epoch {ours.get('epoch')}: mode change was {ours}, is {theirs}"
    if len(recorded.timeline) != len(again.timeline):
        return f"{len(recorded.timeline)} mode changes were recorded, {len(again.timeline)} came again"
    return ""


def _values(recorded: Outcome, again: Outcome, names: Sequence[str]) -> str:
    for name in names:
        mine, other = getattr(recorded, name), getattr(again, name)
        if mine != other:
            return f"{name} was {mine!r}, is {other!r}"
    return ""
