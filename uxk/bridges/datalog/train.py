"""Training from a log: the agent runs on a kernel of its own, to which the log is played back.

Every publication comes at the time, in the order and with the rows that it had, and ends in ``on_dataset`` as it
did; hints are taken and followed by nobody, so there is no feedback.  In the end the agent is asked for its
checkpoint, as in a hot upgrade.  Learning, and reading a model back, happen in the agent's own placement.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from uxk.actor.actor import Saved
from uxk.bridges.datalog.reader import DataLog, Generation
from uxk.core.checkpoint import pack
from uxk.core.manifest import canonical
from uxk.core.suggest import did_you_mean
from uxk.core.trained import to_file
from uxk.errors import UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.kernel.module import Module
from uxk.kernel.proxy import MLModelProxy
from uxk.limits import PPM
from uxk.ml import MLAgent, versions_of

LIBRARIES: Final = ("python", "uxk", "numpy", "river")
"""Whose versions a checkpoint names, beside the agent's own list."""
GAP_NS: Final = 1_000_000
"""Virtual time from the end of one run in a log to the beginning of the next."""


class Training(NamedTuple):
    """What came of it."""

    module: str
    checkpoint: bytes
    """For :func:`save`: the agent's state, with the versions of what it needs."""
    publications: int
    rows: int
    skipped: int
    """Publications that the agent's queue had no room for."""
    runs: int
    from_ns: int
    to_ns: int
    """Times of the first and the last publication, in their own runs."""
    origin: Mapping[str, int | str]
    attributes: Mapping[str, str]
    """What the agent published about itself, at the end."""


class Part(NamedTuple):
    """Which publications of a log: by time, for training on what was before and testing on what came after.

    ``until_ns`` is kernel time in each run; ``train_ppm`` a share of the time of every run, 0 for all.
    """

    run: int = 0
    until_ns: int = 0
    train_ppm: int = PPM


async def train(
    module: str, log: DataLog, *, params: Mapping[str, object] | None = None, part: Part | None = None, seed: int = 0,
    damaged: bool = False,
) -> Training:  # fmt: skip
    """Trains an agent: a module by name, or a file.  ``params`` are the module's, and ``placement`` and ``warm``.

    Raises UsageError if the log has nothing for it (ENODATA), if it is no agent, keeps no checkpoint (ENOTSUP), or
    dies (ECHILD); what modprobe raises; UsageError (EIO) for a damaged log.
    """
    part = part or Part()
    if not 0 < part.train_ppm <= PPM:
        raise UsageError(f"train_ppm={part.train_ppm}: expected 1 to {PPM}")
    kernel = Kernel(seed=seed)
    async with kernel:
        manifest_of = kernel.catalog.add_file(module) if _is_file(module) else None
        name = canonical(manifest_of.name) if manifest_of else kernel.catalog.get(module).manifest.name
        cls = kernel.catalog.get(name)
        if not issubclass(cls, MLAgent) or not cls.model:
            raise UsageError(f"{module}: expected an MLAgent with a model")
        if cls.checkpoint is MLAgent.checkpoint:
            raise UsageError(f"{module}: has no checkpoint(): what it learns cannot be kept", errno=errno.ENOTSUP)
        player = _Player(kernel, cls, log, part, damaged)
        player.prepare()
        given: dict[str, Any] = dict(params or {})
        loaded = await (kernel.insmod(module, **given) if _is_file(module) else kernel.modprobe(name, **given))
        agent = kernel.agents[loaded.name]
        await player.play(agent, loaded)
        saved = await _checkpoint(kernel, agent)
        if saved.state is None:
            raise UsageError(f"{module}: no checkpoint: {saved.problem or 'it keeps none'}", errno=errno.ENOTSUP)
        blob = pack(
            saved.state.data, module=canonical(cls.manifest.name), state_version=saved.state.version,
            libraries=versions_of((*cls.libraries, *LIBRARIES)),
        )  # fmt: skip
        rejects = agent.account.rejects.get("event_dropped", 0)
        return Training(
            name, blob, player.publications, player.rows, rejects, len(player.seen_runs), player.from_ns, player.to_ns,
            player.origin(), dict(agent.attributes),
        )  # fmt: skip


def save(training: Training, path: str | Path) -> int:
    """Writes the file that ``warm=`` takes; all of it, or nothing.  Returns its size.  OSError."""
    target = Path(path)
    data = to_file(training.checkpoint, training.origin)
    handle, name = tempfile.mkstemp(prefix=".uxk-train-", dir=target.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    return len(data)


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


async def _checkpoint(kernel: Kernel, agent: KernelAgent) -> Saved:
    """Asks for it, and waits: an agent in a process of its own takes its time."""
    answers: list[Saved] = []
    goal = kernel.dispatcher.goal(f"the checkpoint of {agent.name}")

    def on_saved(saved: Saved) -> None:
        answers.append(saved)
        goal.reach()

    host = agent.host
    if host is None or host.crash is not None:
        raise UsageError(f"{agent.name}: it died in training", errno=errno.ECHILD)
    host.checkpoint(on_saved)
    if not answers:
        await kernel.dispatcher.wait(goal)
    return answers[0]


class _Player:
    """Plays publications of one model back."""

    def __init__(
        self, kernel: Kernel, cls: type[MLAgent[Any]], log: DataLog, part: Part, damaged: bool
    ) -> None:  # fmt: skip
        self._kernel = kernel
        self._cls = cls
        self._log = log
        self._part = part
        self._damaged = damaged
        self._spans: dict[int, tuple[int, int]] = {}
        self._proxy: MLModelProxy | None = None
        self.seen_runs: dict[int, str] = {}
        self.publications = self.rows = self.from_ns = self.to_ns = 0

    def prepare(self) -> None:
        """One pass over the log: what there is of the model, how long each run takes; makes the model."""
        model, capacities, models = self._cls.model, dict[str, int](), dict[str, None]()
        described: dict[str, Generation] = {}
        for each in self._log.generations(run=self._part.run, damaged=self._damaged):
            name = each.description.model
            models[name] = None
            if name != model:
                continue
            first = described.setdefault(each.description.dataset, each)
            if first.description.schema != each.description.schema:
                raise UsageError(
                    f"{each.description.name}: its columns change in run {each.run.number}: train on one run"
                )
            capacities[each.description.dataset] = max(
                each.description.capacity, len(each.rows), capacities.get(each.description.dataset, 1)
            )
            low, high = self._spans.get(each.run.number, (each.time_ns, each.time_ns))
            self._spans[each.run.number] = min(low, each.time_ns), max(high, each.time_ns)
        if not described:
            there = ", ".join(sorted(models)) or "none"
            raise UsageError(
                f"no dataset of model {model!r}{did_you_mean(model, models)}; models in the log: {there}",
                errno=errno.ENODATA,
            )
        subsystem = next(iter(described.values())).description.subsystem
        proxy = self._proxy = self._kernel.create_model(subsystem, model)
        for name, first in described.items():
            proxy.dataset(name, first.rows.dtype, capacities[name])
        for site in self._cls.sites:
            proxy.site(site, lambda payload: "")

    def _chosen(self) -> Iterator[Generation]:
        part = self._part
        for each in self._log.generations(run=part.run, damaged=self._damaged):
            if each.description.model != self._cls.model:
                continue
            low, high = self._spans[each.run.number]
            end_ns = low + (high - low) * part.train_ppm // PPM
            if part.until_ns:
                end_ns = min(end_ns, part.until_ns)
            if each.time_ns <= end_ns:
                yield each

    async def play(self, agent: KernelAgent, loaded: Module) -> None:
        """Every chosen publication at its time.  UsageError (ECHILD) if the agent dies on the way."""
        kernel, proxy = self._kernel, self._proxy
        assert proxy is not None
        offset_ns, run = 0, 0
        for each in self._chosen():
            if each.run.number != run:
                run = each.run.number
                offset_ns = kernel.now_ns + GAP_NS - self._spans[run][0]
                self.seen_runs[run] = each.run.head.run
                self.from_ns = self.from_ns if self.publications else each.time_ns
            await kernel.run_until_ns(max(kernel.now_ns, each.time_ns + offset_ns))
            dataset = proxy.datasets[each.description.dataset]
            dataset.append(each.rows)
            dataset.lost = each.lost
            dataset.publish()
            await kernel.run_until_ns(kernel.now_ns)
            self.publications += 1
            self.rows += len(each.rows)
            self.to_ns = each.time_ns
            if agent.host is None or agent.incarnation:
                raise UsageError(f"{loaded.name}: it died in training, at publication {self.publications} of "
                                 f"{each.description.name}", errno=errno.ECHILD)  # fmt: skip
        if not self.publications:
            raise UsageError("no publication is left to train on: the part is too small", errno=errno.ENODATA)

    def origin(self) -> dict[str, int | str]:
        """For the checkpoint's file."""
        return {
            "log": self._log.folder.name, "runs": " ".join(self.seen_runs.values()), "rows": self.rows,
            "publications": self.publications, "from_ns": self.from_ns, "to_ns": self.to_ns,
        }  # fmt: skip
