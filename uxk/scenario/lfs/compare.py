"""Runs a study: every policy with every seed, in this process or in several."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

from msgspec.structs import replace

from uxk.errors import ConfigError
from uxk.scenario.lfs.agent import run_agent
from uxk.scenario.lfs.attach import facts_of, is_random, load
from uxk.scenario.lfs.batch import run_policy
from uxk.scenario.lfs.entrants import Entrant, resolve
from uxk.scenario.lfs.outcome import Live, OnLive, Outcome
from uxk.scenario.lfs.study import Study
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.pages.bundled import bundled
from uxk.scenario.pages.load import PAGES_MIN, load_pages
from uxk.subsystems.lfs.fast.jit import COMPILED
from uxk.uapi.info import Record

JOBS_MAX = 64
Task = tuple[Study, Entrant, int]


def run_study(
    study: Study,
    *,
    jobs: int = 1,
    on_live: Callable[[Live], object] | None = None,
    on_record: Callable[[Record], object] | None = None,
    on_note: Callable[[str], object] | None = None,
) -> Verdict:
    """Runs all of it; ``jobs`` processes share the runs.

    ``on_live`` is told how far it is (with several processes: whenever a run is over), ``on_record`` gets kmsg of
    agents' kernels, ``on_note`` a remark on what takes long.  Raises UsageError or ModuleError for what cannot be
    run, before anything runs if it can be told then.
    """
    study = study.validate()
    if not 1 <= jobs <= JOBS_MAX:
        raise ConfigError(f"jobs={jobs}: expected 1 to {JOBS_MAX}")
    default = resolve(["default"], study.lfs.default)[0]
    if default.kind != "human":
        raise ConfigError(f"lfs.default = {study.lfs.default!r}: expected a published policy")
    entrants = resolve(study.policies, study.lfs.default)
    if any(entrant.kind == "agent" for entrant in entrants) and study.lfs.engine == "timed":
        raise ConfigError("lfs.engine = 'timed': agents run on a kernel, with the frozen rule")
    seeds = study.all_seeds
    same = not is_random(study.volume)
    tasks = [
        (study, entrant, seed) for seed in seeds for entrant in entrants
        if seed == seeds[0] or not same or entrant.kind == "agent"
    ]  # fmt: skip
    run = load(study.volume, seeds[0])
    notes = _notes(study, same)
    if study.lfs.engine == "batch" and not is_compiled():
        if on_note is not None:
            on_note("compiling the batch kernel, once: this takes a while")
        run_policy(default, study.lfs, load_pages("uniform", pages=PAGES_MIN, writes=PAGES_MIN), 0)
    began_ns = perf_counter_ns()
    done = _in_processes(tasks, jobs, on_live) if jobs > 1 and len(tasks) > 1 else _here(tasks, on_live, on_record)
    outcomes = _for_all_seeds(list(done), entrants, seeds)
    path = study.workload.trace or str(known.path if (known := bundled().get(study.workload.name)) else "")
    return Verdict(
        study=study, workload=run.name, pages=run.volume_pages, fill=run.fill, writes=run.user_writes,
        trace_sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else "",
        trace=facts_of(study.volume),
        outcomes=outcomes, notes=notes, host_ns=perf_counter_ns() - began_ns,
    )  # fmt: skip


def is_compiled() -> bool:
    """Whether nothing is left to compile: the machine code is on disk, or there is no compiler."""
    from uxk.subsystems.lfs.fast.debt import run_debt

    cache = getattr(run_debt, "_cache", None)
    try:
        return not COMPILED or bool(cache is not None and cache._cache_file._load_index())
    except (AttributeError, OSError, TypeError):
        return True  # another numba: nothing to say


def _notes(study: Study, same: bool) -> list[str]:
    notes = []
    if study.lfs.engine == "batch" and not COMPILED:
        notes.append("numba is not installed (extra `fast`): the reference engine ran, slower, with the same results")
    if same and study.seeds > 1:
        notes.append("the writes do not depend on the seed: policies without an agent ran once, for all seeds")
    return notes


def _here(
    tasks: list[Task], on_live: Callable[[Live], object] | None, on_record: Callable[[Record], object] | None
) -> Iterator[Outcome]:
    for number, (study, entrant, seed) in enumerate(tasks, 1):

        def live(done: int, total: int, wa_ppm: int, mode: str, heat: list[int], *, at: tuple[str, int, int] = (
            entrant.name, seed, number
        )) -> None:  # fmt: skip
            if on_live is not None:
                on_live(Live(*at, len(tasks), done, total, wa_ppm, mode, heat))

        yield _one(study, entrant, seed, live if on_live is not None else None, on_record)


def _one(
    study: Study, entrant: Entrant, seed: int, live: OnLive | None = None,
    on_record: Callable[[Record], object] | None = None,
) -> Outcome:  # fmt: skip
    if entrant.kind == "agent":
        return run_agent(entrant, study, seed, live, on_record)
    return run_policy(entrant, study.lfs, load(study.volume, seed), seed, live)


def _task(task: Task) -> Outcome:
    return _one(*task)


def _in_processes(tasks: list[Task], jobs: int, on_live: Callable[[Live], object] | None) -> Iterator[Outcome]:
    """In fresh interpreters: numba and Trio do not like to be forked."""
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        for number, found in enumerate(pool.imap(_task, tasks), 1):
            if on_live is not None:
                on_live(Live(found.policy, found.seed, number, len(tasks), number, len(tasks), found.wa_ppm, "",
                             found.heat or []))  # fmt: skip
            yield found


def _for_all_seeds(done: list[Outcome], entrants: list[Entrant], seeds: range) -> list[Outcome]:
    """One outcome for each seed and policy: where seeds make no difference, that of the first stands for all."""
    found = {(outcome.policy, outcome.seed): outcome for outcome in done}
    return [
        found.get((entrant.name, seed)) or replace(found[entrant.name, seeds[0]], seed=seed, host_ns=0)
        for seed in seeds
        for entrant in entrants
    ]
