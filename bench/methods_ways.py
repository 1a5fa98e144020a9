"""The kernel's side of each method: how the state goes out, and what a decision finds."""

from __future__ import annotations

from array import array
from typing import Any, ClassVar, Final

import numpy as np
import trio

import uxk
from bench import methods_agents as agents
from bench import methods_compiled as compiled
from bench.methods_flow import CLEANER, Change, Cleaner, Then
from bench.methods_policy import (
    ROWS,
    THINK_NS,
    Answer,
    pack_state,
    parse_answer,
    rank,
    rows_of,
    state_text,
    unpack_answer,
)
from uxk.core.kobject import Attribute
from uxk.core.site import DecisionSite
from uxk.core.waitfor import Node
from uxk.errors import ConfigError, UxkError
from uxk.kernel.module import Module
from uxk.limits import SHOW_MAX_BYTES
from uxk.uapi.ids import KERNEL_ID

STAMP_CHARS: Final = 20
"""Of a time, and its newline."""
LOADING_NS: Final = 100_000
"""In which what an adviser registers is registered, on the charged clock too."""


class Way:
    """One method.  This one is none: there is no adviser, the volume's default decides."""

    name: ClassVar[str] = "default"
    title: ClassVar[str] = "no advice: the default (greedy)"
    adviser: ClassVar[type[uxk.Extension[Any]] | None] = None

    def __init__(self, cleaner: Cleaner, nursery: trio.Nursery, until_hang_ns: int) -> None:
        self.cleaner, self.kernel, self.nursery = cleaner, cleaner.kernel, nursery
        self.volume, self.setup = cleaner.volume, cleaner.setup
        self.module: Module | None = None
        self._hang_ns = until_hang_ns
        self._news = 0
        self.shared_bytes = 0
        """Laid out for the adviser in shared memory: no frame carries them."""
        self.charged_ns = 0
        """What thinking in the kernel was charged; an adviser's is in its account."""
        cleaner.decide, cleaner.changed = self.decide, self.changed

    async def start(self) -> None:
        """Loads the adviser."""
        self.before_load()
        if self.adviser is not None:
            shape, setup = self.cleaner.shape, self.setup
            self.module = await self.kernel.insmod(
                self.adviser, size=shape.size, most=shape.most, hang_ns=self._hang_ns, poll_ns=setup.poll_ns,
                ttl_ns=setup.ttl_ns,
            )  # fmt: skip
            await self.kernel.sleep_ns(LOADING_NS)
        await self.after_load()

    def before_load(self) -> None:
        """What the adviser will look for."""

    async def after_load(self) -> None:
        """What needs the adviser."""

    def decide(self, then: Then) -> None:
        """Calls ``then`` with what the decision goes by: at once, but for those who keep it waiting."""
        then(self.found())

    def found(self) -> Answer | None:
        """What is there now."""
        return None

    def changed(self, what: Change) -> None:
        """Something has changed; tells user space as often as wanted."""
        push = self.setup.push
        self._news += what == "victim"
        if push == 0 or (what == "victim" and self._news % push == 0):
            self.push()

    def push(self) -> None:
        """Tells user space now."""


class InKernel(Way):
    """The stand-in for a policy that was compiled, verified and loaded: the same function, called by the decision."""

    name = "in-kernel"
    title = "in-kernel policy (a Python stand-in)"

    def decide(self, then: Then) -> None:
        now_ns = self.kernel.now_ns
        answer = Answer(now_ns, rank(rows_of(self.volume).tolist(), self.cleaner.shape))
        self.charged_ns += THINK_NS
        if self.setup.clock == "charged":
            self.kernel.call_at_ns(now_ns + THINK_NS, then, answer)
        else:
            then(answer)


class Compiled(Way):
    """The same policy as bytecode: injected by the adviser, verified, run in the shadow, then asked by the decision."""

    name = "compiled"
    title = "compiled policy (verified bytecode)"
    adviser = compiled.Injector

    def before_load(self) -> None:
        size = self.cleaner.shape.size
        self.port = self.kernel.policies.offer(
            DecisionSite(agents.SITE, lambda payload: ""), compiled.schema(size), compiled.SCORES,
            config=compiled.CONFIG, ranked=True,
        )  # fmt: skip

    async def after_load(self) -> None:
        """The shadow period, before the first timed write: the table as it is, then with ever fewer rows."""
        rows = [self.row(live, age) for _, live, age in self._rows()]
        for begin in range(compiled.CONFIG.decisions_min):
            self.port.rank(rows[begin % len(rows) :] if rows else [(0,) * len(self.port.schema)])
            await self.kernel.sleep_ns(compiled.CONFIG.flush_ns)
        await self.kernel.sleep_ns(LOADING_NS)
        if self.port.current is None:
            raise ConfigError(f"the compiled policy was not taken: {self.port.last_end}")

    def _rows(self) -> list[tuple[int, int, int]]:
        most = self.cleaner.shape.most
        return [(segment, live, age) for segment, live, age in rows_of(self.volume).tolist() if live <= most]

    def row(self, live: int, age: int) -> tuple[int, ...]:
        """What the policy sees of a segment."""
        return live, age

    def decide(self, then: Then) -> None:
        now_ns, rows = self.kernel.now_ns, self._rows()
        verdict = self.port.rank([self.row(live, age) for _, live, age in rows])
        if verdict is None:
            then(None)
            return
        answer = Answer(now_ns, (rows[verdict.value][0],))
        self.charged_ns += verdict.cost_ns
        if self.setup.clock == "charged":
            self.kernel.call_at_ns(now_ns + verdict.cost_ns, then, answer)
        else:
            then(answer)


class Upcall(Way):
    """The decision asks and waits: for show."""

    name = "upcall"
    title = "synchronous upcall"
    adviser = agents.Called
    _RESOURCE: Final = "the adviser's answer"

    async def after_load(self) -> None:
        assert self.module is not None
        self._port = self.module.open_port(self._answered)
        self._node = Node("instance", self.module.name)
        self._then: Then | None = None
        self.reports: list[str] = []
        """The first finding of the wait-for graph."""

    def decide(self, then: Then) -> None:
        now_ns, machine = self.kernel.now_ns, self.kernel.machine
        self._then = then
        try:
            self._port.submit(uxk.Request(0, uxk.Op.CALL, pack_state(now_ns, rows_of(self.volume))))
        except UxkError:  # it is gone
            then(None)
            return
        for finding in machine.waits.add(CLEANER, self._node, self._RESOURCE, now_ns, decision=True):
            self.reports = self.reports or [finding.text]

    def _answered(self, completions: list[uxk.Completion]) -> None:
        self.kernel.machine.waits.remove(CLEANER, self._node, self._RESOURCE)
        then, self._then = self._then, None
        if then is not None:
            done = completions[0]
            then(None if done.status else unpack_answer(done.payload))


class Sysfs(Way):
    """Two attributes; the adviser comes when it likes."""

    name = "sysfs"
    title = "polled sysfs text"
    adviser = agents.Polling

    def before_load(self) -> None:
        self._answer: Answer | None = None
        volume, tree = self.volume, self.kernel.sysfs
        longest = f"{volume.segments} {volume.size} {volume.now + self.setup.writes}\n"
        if (text_bytes := len(longest) * volume.segments + STAMP_CHARS) >= SHOW_MAX_BYTES:
            raise ConfigError(
                f"methods: {volume.segments} segments: up to {text_bytes} bytes of text, and an attribute has at most "
                f"{SHOW_MAX_BYTES - 1}: expected fewer pages, or longer segments"
            )
        tree.add(agents.FOLDER, self)
        tree.add_attribute(agents.FOLDER, Attribute("segments", show=lambda _: self._show()))
        tree.add_attribute(agents.FOLDER, Attribute("victims", store=lambda _, text: self._store(text)))

    def _show(self) -> str:
        return state_text(self.kernel.now_ns, rows_of(self.volume))

    def _store(self, text: str) -> None:
        answer = parse_answer(text)
        if answer is None:
            raise uxk.UsageError(f"{agents.FOLDER}/victims: {text[:80]!r}: expected a time and up to 8 numbers")
        self._answer = answer

    def found(self) -> Answer | None:
        return self._answer


class Chardev(Way):
    """A worker of the kernel's writes the state to the adviser's device and reads its answer; the decision does not
    wait for the worker."""

    name = "chardev"
    title = "char device"
    adviser = agents.Device
    _WORKER: Final = Node("task", "lfs0 worker")

    async def after_load(self) -> None:
        self._answer: Answer | None = None
        self._bell = trio.Event()
        self._closing = False
        await self.nursery.start(self._work)

    async def _work(self, task_status: trio.TaskStatus[None]) -> None:
        assert self.module is not None
        machine, node, path = self.kernel.machine, Node("instance", self.module.name), f"/dev/{agents.DEVICE}"
        async with await self.kernel.open(path, "lfs0") as file:
            task_status.started()
            while True:
                await self._bell.wait()
                self._bell = trio.Event()
                state = pack_state(self.kernel.now_ns, rows_of(self.volume))
                machine.wait(self._WORKER, node, path)
                try:
                    await file.write(state)
                    await file.poll(1)
                    answer = unpack_answer(await file.read())
                except UxkError:  # it hangs or is gone: the answer that is there grows old
                    continue
                finally:
                    machine.waits.remove(self._WORKER, node, path)
                self._answer = answer

    def push(self) -> None:
        self._bell.set()

    def found(self) -> Answer | None:
        return self._answer


class Events(Way):
    """Every change as a record, in batches; the answer comes back as a snapshot, read without a lock."""

    name = "events"
    title = "event ring and snapshots"
    adviser = agents.Tracer

    def before_load(self) -> None:
        self._records = array("I")
        self._told = 0
        self.volume.trace = self
        self._base()

    def _base(self) -> None:
        volume = self.volume
        live = [volume.valid_blocks(segment) for segment in range(volume.segments)]
        data = np.array([*live, *volume.sealed_at], "<i8").tobytes()
        head = agents.HEAD.pack(self.kernel.now_ns, self._told, volume.now)
        self.kernel.machine.snapshots.publish(agents.BASE, KERNEL_ID, head + data)

    def push(self) -> None:
        head = agents.HEAD.pack(self.kernel.now_ns, self._told, self.volume.now)
        self._told += len(self._records) // 2
        batch = head + self._records.tobytes()
        self._records = array("I")
        if not self.send(batch):
            self._base()  # it has missed some: this is where it can begin anew

    def send(self, batch: bytes) -> bool:
        """Stages a batch; False if the adviser's ring has no room."""
        assert self.module is not None
        return self.kernel.agents[self.module.name].event(agents.TRACE, "lfs0", batch)

    def found(self) -> Answer | None:
        cell = self.kernel.machine.snapshots.get(agents.VICTIMS)
        return unpack_answer(cell.read().data) if cell is not None and cell.number else None

    # --- as the volume's trace ---

    def _record(self, kind: int, segment: int, lost: int = 0) -> None:
        self._records.append(kind << agents.KIND_SHIFT | segment)
        self._records.append(lost)

    def opened(self, segment: int, log: int) -> None:
        """Nothing that the policy looks at."""

    def written(self, page: int, block: int, old: int) -> None:
        """A block more here, one less there."""
        size = self.volume.size
        self._record(agents.WROTE, block // size, old // size + 1 if old >= 0 else 0)

    def moved(self, page: int, block: int, old: int) -> None:
        """A block more; the victim's are dropped with it."""
        self._record(agents.MOVED, block // self.volume.size)

    def sealed(self, segment: int) -> None:
        """May be a victim from now on."""
        self._record(agents.SEALED, segment)

    def cleaned(self, segment: int) -> None:
        """Is none any more."""
        self._record(agents.CLEANED, segment)


class Hints(Way):
    """A model proxy: datasets out through shared memory, hints in through the queue, a decision site between."""

    name = "hints"
    title = "SQ/CQ: datasets and hints"
    adviser = agents.Hinter

    def before_load(self) -> None:
        self._stamps: dict[int, int] = {}
        self.proxy = self.kernel.create_model("lfs", agents.MODEL)
        self.proxy.override(uxk.Mode.RECOMMENDATION, "the comparison")
        self._site = self.proxy.site(agents.SITE, check=self._check)
        self._dataset = self.proxy.dataset("segments", ROWS, self.volume.segments, slots=4)

    def _check(self, payload: bytes) -> str:
        answer = unpack_answer(payload)
        if answer is None:
            return "malformed"
        return "" if all(each < self.volume.segments for each in answer.victims) else "out_of_range"

    def push(self) -> None:
        rows = rows_of(self.volume)
        self._dataset.append(rows)
        self.shared_bytes += rows.nbytes
        self._stamps[self._dataset.generation + 1] = self.kernel.now_ns
        self._stamps.pop(self._dataset.generation - 1_000, None)
        self._dataset.publish()

    def found(self) -> Answer | None:
        hint = self._site.standing(self.kernel.now_ns)
        answer = None if hint is None else unpack_answer(hint.payload)
        at_ns = None if hint is None else self._stamps.get(hint.dataset_generation)
        return None if answer is None or at_ns is None else Answer(at_ns, answer.victims)


WAYS: Final[dict[str, type[Way]]] = {
    way.name: way for way in (Way, Upcall, Sysfs, Chardev, Events, Hints, InKernel, Compiled)
}  # fmt: skip
"""In the order of the tables."""
