"""A model's dataset: a typed table in the arena, written by the subsystem, read by agents by capability (R43-R47).

It has a few slots.  The subsystem fills one, publishing turns to the next: nothing is copied, and nobody waits for
a slow reader.  Capabilities on a slot end when it is used again, so what a reader may still see is whole.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from uxk.core.dataset import READABLE, Extraction, Step
from uxk.errors import CapabilityError, UsageError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi.ids import KERNEL_ID, CapId
from uxk.uapi.ml import Dataset, DatasetState, DatasetType, Schema, encode
from uxk.uapi.rights import Rights

Rows: TypeAlias = NDArray[Any] | Sequence[tuple[Any, ...]]
KINDS: Final = "iubS"
"""Kinds of columns: integers, bytes, no floats (the kernel has none)."""


def schema_of(dtype: DTypeLike) -> tuple[np.dtype[Any], Schema]:
    """A structured dtype and its description; EINVAL unless it is packed, of integers, booleans and bytes."""
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.names is None:
        raise UsageError(f"dataset: dtype {kind}: expected a structured dtype")
    columns = []
    for name in kind.names:
        field = kind[name]
        if field.base.kind not in KINDS:
            raise UsageError(f"dataset: column {name!r} of type {field}: expected integers, booleans or bytes")
        shape = f"({','.join(map(str, field.shape))},)" if field.shape else ""
        columns.append((name, shape + field.base.str))
    if np.dtype(columns) != kind:
        raise UsageError(f"dataset: dtype {kind} has gaps between its columns: expected it packed")
    return kind, tuple(columns)


class ProxyDataset:
    """One dataset.  ``extract(dataset)`` fills it when an agent asks and it is not fresh; without it, what was
    appended so far is published then.  ``preprocess(rows)`` gives the rows to publish, from those appended.
    ``checked`` keeps a checksum, and a generation that was written over is found CORRUPTED when it is read.
    """

    __slots__ = (
        "_ask", "_asked", "_caps", "_checksum", "_count", "_extract", "_extraction", "_machine", "_offsets",
        "_on_prepared", "_on_push", "_preprocess", "_sifted", "_views", "capacity", "checked", "dtype", "generation",
        "id", "lost", "lost_before", "model", "name", "schema",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, model: str, name: str, number: int, dtype: DTypeLike, capacity: int, *, slots: int,
        extract: Callable[[ProxyDataset], object] | None, preprocess: Callable[[NDArray[Any]], NDArray[Any]] | None,
        checked: bool, on_push: Callable[[ProxyDataset], object],
        on_prepared: Callable[[ProxyDataset], object] = lambda dataset: None,
        on_step: Callable[[DatasetState, DatasetState], object] = lambda before, after: None,
        ask: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        if capacity < 1 or slots < 2:
            raise UsageError(f"dataset {name}: capacity={capacity}, slots={slots}: expected at least 1 and 2")
        self.dtype, self.schema = schema_of(dtype)
        self._machine = machine
        self.model = model
        self.name = name
        self.id = number
        self.capacity = capacity
        self.checked = checked
        self.generation = 0
        self.lost = 0
        """Rows that found no room since the last publication."""
        self.lost_before = 0
        """The same, of the generation that is published."""
        self._extract = extract
        self._preprocess = preprocess
        self._on_push = on_push
        self._on_prepared = on_prepared
        self._ask = ask
        self._asked = False
        self._extraction = Extraction(f"{model}/{name}", on_step)
        self._count = 0
        self._sifted = 0
        """Rows appended, from the first, that :meth:`preprocess` has seen: it sees none twice."""
        self._checksum = 0
        self._offsets: list[int] = []
        self._views: list[NDArray[Any]] = []
        self._caps: list[dict[int, CapId]] = [{} for _ in range(slots)]
        """Capabilities on each slot, by instance."""
        try:
            for _ in range(slots):
                region = machine.arena.allocate(KERNEL_ID, capacity * self.dtype.itemsize)
                self._offsets.append(region.offset)
                self._views.append(machine.arena.array(region.offset, self.dtype, capacity, writable=True))
        except UxkError:
            self.free()
            raise

    # --- filling ---

    @property
    def state(self) -> DatasetState:
        """Its state, in kernel-ml-lib's words."""
        return self._extraction.state

    @property
    def extracted(self) -> int:
        """Bytes of the present generation that were read."""
        return self._extraction.extracted

    @property
    def rows(self) -> int:
        """Rows appended since the last publication."""
        return self._count

    @property
    def room(self) -> int:
        """Rows that can still be appended."""
        return self.capacity - self._count

    @property
    def tail(self) -> NDArray[Any]:
        """The free rows, to be filled in place: see :meth:`commit`."""
        return self._working[self._count :]

    @property
    def _working(self) -> NDArray[Any]:
        if not self._views:
            raise UsageError(f"dataset {self.model}/{self.name}: its model is gone", errno=errno.ENODEV)
        return self._views[(self.generation + 1) % len(self._views)]

    def commit(self, count: int) -> None:
        """The first ``count`` rows of :attr:`tail` are filled."""
        if not 0 <= count <= self.room:
            raise UsageError(f"dataset {self.name}: commit of {count} rows, there is room for {self.room}")
        self._count += count

    def append(self, rows: Rows) -> int:
        """Appends rows as far as there is room; returns how many.  The rest is counted as lost.

        EINVAL for values that do not fit into their columns, and for an array of another dtype: numpy would convert
        it column by column, whatever their names, and cut off what does not fit.
        """
        try:
            given = rows if isinstance(rows, np.ndarray) else np.array(list(rows), dtype=self.dtype)
        except (TypeError, ValueError, OverflowError) as exc:
            raise UsageError(f"dataset {self.name}: {exc}: expected rows of {self.dtype}") from None
        if given.dtype != self.dtype or given.ndim != 1:
            raise UsageError(f"dataset {self.name}: {given.ndim}-d {given.dtype}: expected rows of {self.dtype}")
        taken = min(len(given), self.room)
        self._working[self._count : self._count + taken] = given[:taken]
        self._count += taken
        self.lost += len(given) - taken
        return taken

    def preprocess(self) -> int:
        """Applies the dataset's own filter to the rows appended since the last time; returns how many there are now.

        What it leaves out is wiped: the capability of a reader spans the whole slot.
        """
        if self._preprocess is not None and self._sifted < self._count:
            fresh = self._working[self._sifted : self._count]
            kept = np.array(self._preprocess(fresh), dtype=self.dtype)
            end = self._sifted + min(len(kept), self.capacity - self._sifted)
            self.lost += self._sifted + len(kept) - end
            self._working[self._sifted : end] = kept[: end - self._sifted]
            self._wipe(end)
            self._sifted = end
        return self._count

    def _wipe(self, count: int) -> None:
        """Only the first ``count`` of the rows appended stay."""
        self._working[count : self._count] = np.zeros((), self.dtype)
        self._count = count
        self._sifted = min(self._sifted, count)

    def prepare(self) -> int:
        """Makes the rows appended the next generation, without telling anybody; returns its number."""
        self.preprocess()
        size = self._count * self.dtype.itemsize
        self._extraction.prepared(size)
        self.generation += 1
        self._count, self._sifted, self.lost_before, self.lost = 0, 0, self.lost, 0
        self._revoke((self.generation + 1) % len(self._views))  # the next to be filled
        if self.checked:
            self._checksum = self._sum()
        self._on_prepared(self)
        return self.generation

    def publish(self) -> int:
        """Makes the rows appended the next generation and tells all attached agents; returns its number."""
        self.prepare()
        self._on_push(self)
        return self.generation

    def request(self) -> bool:
        """Asks whoever makes its rows for new ones, once until they come; False if nobody does."""
        if self._ask is not None and not self._asked:
            self._ask()
            self._asked = True
        return self._ask is not None

    def fill(self, rows: Rows, failed: str = "") -> int:
        """What was asked for is there, or not: publishes it; returns the generation."""
        self._asked = False
        self._wipe(0)
        if failed:
            self._extraction.step(Step.FAIL)
            return self.generation
        self.append(rows)
        return self.publish()

    def extract(self) -> int:
        """Fills it anew by the subsystem's own function, if it has one, and prepares it; returns the generation.

        What goes wrong leaves EXTRACTION_FAILURE and nothing of what was extracted, and is raised as EIO.
        """
        try:
            if self._extract is not None:
                self._wipe(0)
                self._extract(self)
            return self.prepare()
        except (UxkError, ValueError, ArithmeticError, LookupError) as exc:
            self._extraction.step(Step.FAIL)
            if self._extract is not None:
                self._wipe(0)
            raise UsageError(f"dataset {self.model}/{self.name}: extraction failed: {exc}", errno=errno.EIO) from exc

    def discard(self) -> None:
        """OBSOLETE: nobody may read it any more; the next request extracts anew."""
        self._extraction.step(Step.DISCARD)
        for slot in range(len(self._views)):
            self._revoke(slot)

    # --- reading ---

    def pull(self, agent: KernelAgent | None, offset: int, size: int) -> tuple[Dataset, CapId]:
        """A portion for an agent, or for the administrator, who needs no capability; extracts first if nothing fresh is
        there.  EINVAL, ENODATA, EIO, EAGAIN."""
        if self.state not in READABLE and self.request():
            where = f"dataset {self.model}/{self.name}"
            raise UsageError(f"{where}: state {self.state.name}: new rows are asked for", errno=errno.EAGAIN)
        if self.state not in READABLE:
            self.extract()
        if self.checked and self._sum() != self._checksum:
            self._extraction.step(Step.CORRUPT)
            raise UsageError(f"dataset {self.model}/{self.name}: CORRUPTED: its checksum is wrong", errno=errno.EIO)
        cap = CapId(0) if agent is None else self._cap(agent)
        portion = self._extraction.portion(offset, size)
        return self.describe(portion.offset, portion.size), cap

    def push(self, agent: KernelAgent) -> bool:
        """Hands the whole generation to an agent, as an event; False if it can take no more: the subsystem goes on."""
        if not agent.has_room or agent.host is None:
            agent.account.reject("event_dropped")
            return False
        try:
            cap = self._cap(agent)
        except CapabilityError:  # its own limit
            agent.account.reject("event_dropped")
            return False
        self._extraction.portion(0, 0)
        return agent.event("dataset", self.model, encode(self.describe()), cap)

    def describe(self, offset: int = 0, size: int = -1) -> Dataset:
        """The descriptor, of the whole or of a portion."""
        have = self._extraction.size
        return Dataset(
            self.id, self.name, self.type, self.state, self.capacity * self.dtype.itemsize, offset,
            have if size < 0 else size, self.schema, self.generation, have // self.dtype.itemsize, self.lost_before,
        )  # fmt: skip

    @property
    def type(self) -> DatasetType:
        """A stream if it has but one column of bytes, else a table."""
        stream = len(self.schema) == 1 and self.dtype[0] == np.dtype("u1")
        return DatasetType.MEMORY_STREAM if stream else DatasetType.STRUCTURE

    @property
    def published(self) -> NDArray[Any]:
        """The present generation, to look at; empty if there is none to read."""
        count = self._extraction.size // self.dtype.itemsize if self.state in READABLE else 0
        if not count:
            return np.empty(0, self.dtype)
        rows = self._views[self.generation % len(self._views)][:count]
        rows.flags.writeable = False
        return rows

    # --- taking back ---

    def forget(self, instance: int) -> None:
        """An instance, or its right to read, is gone."""
        for caps in self._caps:
            cap = caps.pop(instance, None)
            if cap is not None:
                self._machine.caps.revoke(cap)

    def free(self) -> None:
        """Gives the memory back; every capability on it ends."""
        for slot in range(len(self._caps)):
            self._revoke(slot)
        self._views.clear()
        for offset in self._offsets:
            self._machine.arena.free(KERNEL_ID, offset)
        self._offsets.clear()
        self._extraction.free()

    # --- inside ---

    def _cap(self, agent: KernelAgent) -> CapId:
        slot = self.generation % len(self._views)
        caps = self._caps[slot]
        if agent.id not in caps:
            length = self._views[slot].nbytes
            offset = self._offsets[slot]
            caps[agent.id] = self._machine.caps.grant(
                agent.id, "arena", str(offset), Rights.READ, start=offset, length=length
            )
        return caps[agent.id]

    def _revoke(self, slot: int) -> None:
        caps, self._caps[slot] = self._caps[slot], {}
        for cap in caps.values():
            self._machine.caps.revoke(cap)

    def _sum(self) -> int:
        offset = self._offsets[self.generation % len(self._offsets)]
        return zlib.crc32(self._machine.arena.view(offset, self._extraction.size))
