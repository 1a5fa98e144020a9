"""Runs without a kernel: one policy on one volume, by the batch kernel, the reference engine, or the timed engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from uxk.errors import ConfigError, KernelBug
from uxk.limits import PPM
from uxk.scenario.lfs.entrants import Entrant, own_policy
from uxk.scenario.lfs.latency import Latency, measure
from uxk.scenario.lfs.outcome import Epoch, OnLive, Outcome
from uxk.scenario.lfs.programs import read_program
from uxk.scenario.lfs.study import StudyParams
from uxk.scenario.lfs.victims import next_victim
from uxk.scenario.pages.load import PageRun
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.fast.debt import run_debt
from uxk.subsystems.lfs.fast.jit import COMPILED
from uxk.subsystems.lfs.fast.volume import make_volume, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.lifetimes import NEVER
from uxk.subsystems.lfs.policies.programmed import Programmed
from uxk.subsystems.lfs.policy import parse_policy
from uxk.subsystems.lfs.reference import OPEN, Volume
from uxk.subsystems.lfs.scorer import scorer_of

FIRST_SEGMENTS: Final = 4
"""Width of the oracle's first class in segments."""
_HASH_CHARS: Final = 32

Debt = npt.NDArray[np.int32]
Step = Callable[[int, int], object]
"""Writes ``pages[start:stop]``."""


def next_writes(pages: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each write the user clock of the same page's next one; 1 << 60 if there is none."""
    order = np.argsort(pages, kind="stable")
    future = np.full(len(pages), NEVER, np.int64)
    same = pages[order[1:]] == pages[order[:-1]]
    future[order[:-1][same]] = order[1:][same] + 1
    return future


def spans(writes: int, fill: int, epoch_blocks: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether in the second half) of each epoch."""
    half = half_of(writes, fill, epoch_blocks)
    for start in range(0, writes, epoch_blocks):
        yield start, min(start + epoch_blocks, writes), start >= half


def half_of(writes: int, fill: int, epoch_blocks: int) -> int:
    """Where the second half begins: with the first epoch after the fill and half of what follows; a run that is too
    short for that has its last epoch."""
    half = -(-(fill + (writes - fill) // 2) // epoch_blocks) * epoch_blocks
    return min(half, (writes - 1) // epoch_blocks * epoch_blocks)


def run_policy(entrant: Entrant, params: StudyParams, run: PageRun, seed: int, live: OnLive | None = None) -> Outcome:
    """One policy over all writes under the frozen rule.  Raises :class:`ConfigError` for what cannot be run."""
    if params.engine == "timed":
        return _run_timed(entrant, params, run, seed)
    debt = np.zeros(len(run.pages), np.int32)
    is_batch = params.engine == "batch" and COMPILED and (entrant.policy != "" or not entrant.file)
    began_ns = perf_counter_ns()
    outcome = (_run_batch if is_batch else _run_reference)(entrant, params, run, seed, debt, live)
    outcome.host_ns = perf_counter_ns() - began_ns
    moved = int(debt.sum(dtype=np.int64))
    if moved != outcome.moved_blocks:
        raise KernelBug(f"{entrant.name}: {outcome.moved_blocks} blocks moved, but {moved} write by write")
    outcome.latency = measure(
        debt, write_ns=params.write_ns, read_ns=params.read_ns, program_ns=params.program_ns
    )  # fmt: skip
    outcome.event_hash = hashlib.sha256(debt.astype("<i4").tobytes()).hexdigest()[:_HASH_CHARS]
    return outcome


def _epochs(run: PageRun, params: StudyParams, step: Step, look: Callable[[], Epoch], live: OnLive | None) -> (
    tuple[list[Epoch], int, int]
):  # fmt: skip
    """Runs epoch after epoch: what each wrote, and user and moved blocks of the second half.

    ``look`` tells totals so far."""
    found: list[Epoch] = []
    writes = len(run.pages)
    user = moved = half_user = half_moved = 0
    for start, stop, is_half in spans(writes, run.fill, max(run.volume_pages // params.epochs_per_volume, 1)):
        step(start, stop)
        now = look()
        part = Epoch(
            epoch=len(found), user=now.user - user, moved=now.moved - moved, clean=now.clean, heat=now.heat,
            victim=now.victim,
        )  # fmt: skip
        if part.user != stop - start:
            raise KernelBug(f"{part.user} of {stop - start} writes done: the volume is full")
        user, moved = now.user, now.moved
        half_user, half_moved = half_user + is_half * part.user, half_moved + is_half * part.moved
        found.append(part)
        if live is not None:
            live(stop, writes, PPM + part.moved * PPM // part.user, "", part.heat or [])
    return found, half_user, half_moved


def _outcome(entrant: Entrant, params: StudyParams, seed: int, engine: str, done: tuple[list[Epoch], int, int]) -> (
    Outcome
):  # fmt: skip
    epochs, half_user, half_moved = done
    return Outcome(
        policy=entrant.name, kind=entrant.kind, seed=seed, is_default=entrant.policy == params.default,
        user_blocks=sum(epoch.user for epoch in epochs), moved_blocks=sum(epoch.moved for epoch in epochs),
        half_user_blocks=half_user, half_moved_blocks=half_moved, event_hash="", engine=engine, epochs=epochs,
        heat=epochs[-1].heat,
    )  # fmt: skip


def _run_batch(
    entrant: Entrant, params: StudyParams, run: PageRun, seed: int, debt: Debt, live: OnLive | None
) -> Outcome:
    policy = parse_policy(entrant.policy)
    oracle = entrant.kind == "oracle"
    aux = next_writes(run.pages) if oracle else None
    volume = make_volume(run.volume_pages, params.segment_blocks, params.gp_ppm, params.logs, aux)
    set_policy(volume, *policy.codes[:2], (FIRST_SEGMENTS,) if policy.placement == "fkg6" else ())
    scorer = scorer_of(read_program(entrant.file)) if entrant.file else None
    if scorer is not None:
        scorer.serve(volume)
    ops = np.ascontiguousarray(run.pages, np.int32)

    def look() -> Epoch:
        reg, seg = volume.reg, volume.seg
        live_blocks = seg[seg[:, c.SEALED] >= 0, c.LIVE]
        heat = np.bincount(live_blocks * 10 // params.segment_blocks, minlength=11).tolist()
        return Epoch(
            epoch=0, user=int(reg[c.NOW]), moved=int(reg[c.MOVED]), clean=int(reg[c.CLEAN]), heat=heat,
            victim=next_victim(volume),
        )  # fmt: skip

    done = _epochs(run, params, lambda start, stop: run_debt(volume, ops, start, stop, debt), look, live)
    outcome = _outcome(entrant, params, seed, "batch", done)
    outcome.clean_min = int(volume.reg[c.LOW])
    return outcome


def _policy_of(entrant: Entrant, run: PageRun, seed: int) -> policies.Policy:
    if entrant.file and entrant.policy:
        decide = read_program(entrant.file).translation.function
        return policies.Policy(policies.PLACEMENTS[entrant.policy.partition("/")[0]](), Programmed(decide))
    if entrant.file:
        return own_policy(entrant.file)
    future = next_writes(run.pages).tolist() if entrant.kind == "oracle" else None
    return policies.lookup(entrant.name if entrant.name in policies.PRESETS else entrant.policy, future=future)


def _run_reference(
    entrant: Entrant, params: StudyParams, run: PageRun, seed: int, debt: Debt, live: OnLive | None
) -> Outcome:
    geometry = Geometry(run.volume_pages, params.segment_blocks, params.gp_ppm, params.logs)
    volume = Volume(geometry, _policy_of(entrant, run, seed))
    pages = run.pages.tolist()

    def step(start: int, stop: int) -> None:
        write, before = volume.write, volume.moved
        counts = []
        for page in islice(pages, start, stop):
            write(page)
            counts.append(volume.moved - before)
            before = volume.moved
        debt[start:stop] = counts

    def look() -> Epoch:
        size, heat = params.segment_blocks, [0] * 11
        for live_blocks in volume.live:
            if live_blocks < OPEN:
                heat[live_blocks * 10 // size] += 1
        return Epoch(epoch=0, user=volume.now, moved=volume.moved, clean=len(volume.clean), heat=heat)

    try:
        done = _epochs(run, params, step, look, live)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        if not entrant.file:
            raise
        raise ConfigError(f"{entrant.file}: {type(exc).__name__}: {exc}") from exc
    outcome = _outcome(entrant, params, seed, "reference", done)
    outcome.clean_min = volume.low
    return outcome


def _run_timed(entrant: Entrant, params: StudyParams, run: PageRun, seed: int) -> Outcome:
    """By the timed engine: background and foreground cleaning by watermarks, latencies from a model of a device."""
    from uxk.subsystems.lfs.timed.run import every, run_timed

    geometry = Geometry(run.volume_pages, params.segment_blocks, params.gp_ppm, params.logs)
    began_ns = perf_counter_ns()
    pages = run.pages.tolist()
    found = run_timed(
        geometry, _policy_of(entrant, run, seed), pages[run.fill :], every(params.write_ns), fill=pages[: run.fill]
    )  # fmt: skip
    text = repr(sorted(found.items())).encode()
    return Outcome(
        policy=entrant.name, kind=entrant.kind, seed=seed, is_default=entrant.policy == params.default,
        user_blocks=found["user_blocks"], moved_blocks=found["moved_blocks"], half_user_blocks=0, half_moved_blocks=0,
        event_hash=hashlib.sha256(text).hexdigest()[:_HASH_CHARS], engine="timed", clean_min=found["clean_min"],
        latency=Latency(
            p50_ns=found["p50_ns"], p99_ns=found["p99_ns"], p999_ns=found["p999_ns"], max_ns=found["max_ns"],
            stalls=found["foreground_stalls"], longest_stall_ns=found["longest_stall_ns"], utilisation_ppm=0,
        ),
        missing=dict.fromkeys(
            ("wa_second_half", "epochs", "write_latency.utilisation_ppm"), "the timed engine does not count that"
        ),
        host_ns=perf_counter_ns() - began_ns,
    )  # fmt: skip
