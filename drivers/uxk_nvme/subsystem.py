"""The NVM subsystem: medium, namespaces and controllers, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import uxk
from uxk_nvme.controller import Controller, Handler
from uxk_nvme.counters import FOLD, Counters
from uxk_nvme.faults import FaultTable
from uxk_nvme.iommu import Iommu
from uxk_nvme.kept import ControllerRecord, Kept
from uxk_nvme.later import Clock, Later
from uxk_nvme.logs import critical_warning
from uxk_nvme.medium import Medium
from uxk_nvme.namespaces import Namespace, Namespaces
from uxk_nvme.spec import Refused, Status, final

PRIMARY: Final = 1
"""CNTLID of the kernel's own controller."""
CNTLID_MAX: Final = 0xFFEF
CONTROLLERS_MAX: Final = 64
"""Each holds an error log of 4 KiB and queues of pending commands."""
LATENCY_MAX_NS: Final = 60_000_000_000

HOSTS_MAX: Final = 16
"""Hosts that a namespace remembers."""


class Settings(NamedTuple):
    """What the subsystem is made with."""

    serial: str
    nqn: str
    queue_limit: int
    queue_entries: int
    write_cache: bool


class Subsystem:
    """Shared state; ``clock`` gives time and timers, ``after`` is called when completions have come by themselves."""

    def __init__(
        self, settings: Settings, medium: Medium, faults: FaultTable, iommu: Iommu, clock: Clock,
        after: Callable[[], object], say: Callable[[str], object],
    ) -> None:  # fmt: skip
        self.serial = settings.serial
        self.nqn = settings.nqn
        self.queue_limit = settings.queue_limit
        self.queue_entries = settings.queue_entries
        self.has_write_cache = self.write_cache_on = settings.write_cache
        self.medium = medium
        self.faults = faults
        self.iommu = iommu
        self.later = Later(clock, after)
        medium.busy = self.later.busy_ns
        self.counters = Counters()
        self.say = say
        self._clock = clock
        self._after = after
        self.namespaces = Namespaces(medium.store.size_bytes, settings.serial)
        self.controllers: dict[int, Controller] = {}
        self.thermal = 0
        """Feature 10h."""
        self.power_cycles = 1
        self.extra_latency_ns = 0
        self.coalesce_ns = 0
        """Completions of I/O commands wait for the next multiple of it, unless feature 08h says how long."""
        self.slow = False
        """Whether the fast path is closed."""
        self.life = 0
        """See :class:`Kept`."""
        self.dirty = True
        """Whether what outlives the driver has changed."""
        self._last_cntlid = PRIMARY
        self._warning = 0
        self._background_ns: int | None = None

    # --- controllers ---

    def add_controller(
        self, host: str, host_id: bytes, port: int, tables: tuple[Mapping[int, Handler], Mapping[int, Handler]], *,
        cntlid: int = 0,
    ) -> Controller:  # fmt: skip
        """A controller for a host: it gets the shared namespaces that the kernel's controller has, and its own.

        With a ``cntlid``, it is one that there was before, or the kernel's: what is attached to it is.
        """
        if not cntlid:
            cntlid = self._free_cntlid()
            for namespace in self.namespaces.table.values():
                if namespace.is_due_to(host, PRIMARY):
                    namespace.attached[cntlid] = None
        made = self.controllers[cntlid] = Controller(
            self, cntlid, host=host, host_id=host_id, port=port, fabrics=cntlid != PRIMARY, tables=tables
        )
        self.dirty = True
        return made

    def crowd(self, port: int) -> list[Controller]:
        """Controllers of which one must go before that client gets another; empty if there is room.

        A client has at most as many as are left for others: one alone half of them.
        """
        hosts = [each for each in self.controllers.values() if each.cntlid != PRIMARY]
        own = [each for each in hosts if each.port == port]
        free = CONTROLLERS_MAX - len(self.controllers)
        if len(own) >= free > 0:
            return own
        return [] if free > 0 else hosts

    def remove_controller(self, controller: Controller) -> None:
        """The host is gone: its CNTLID is free, nothing is attached to it any more."""
        del self.controllers[controller.cntlid]
        for namespace in self.namespaces.table.values():
            namespace.attached.pop(controller.cntlid, None)
        self.dirty = True

    def _free_cntlid(self) -> int:
        """The next one, so that a CNTLID is not given to another host at once."""
        for step in range(1, CNTLID_MAX):
            candidate = (self._last_cntlid + step - 1) % CNTLID_MAX + 1
            if candidate != PRIMARY and candidate not in self.controllers:
                self._last_cntlid = candidate
                return candidate
        raise Refused(Status.INTERNAL)

    # --- namespaces ---

    def attach(self, namespace: Namespace, cntlids: Iterable[int], *, attach: bool) -> None:
        """Attaches to, or detaches from, controllers; their hosts get an event and keep it for the next time."""
        for cntlid in cntlids:
            controller = self.controllers[cntlid]
            if attach:
                namespace.attached[cntlid] = namespace.hosts[controller.host] = None
                namespace.refused.pop(controller.host, None)
            else:
                del namespace.attached[cntlid]
                namespace.hosts.pop(controller.host, None)
                namespace.refused[controller.host] = None
            controller.namespace_changed(namespace.nsid)
        for book in (namespace.hosts, namespace.refused):
            while len(book) > HOSTS_MAX:
                del book[next(iter(book))]
        self.dirty = True

    def namespace_changed(self, namespace: Namespace) -> None:
        """It looks different: all of its controllers say so."""
        for cntlid in namespace.attached:
            self.controllers[cntlid].namespace_changed(namespace.nsid)
        self.dirty = True

    def delete(self, namespace: Namespace, now_ns: int) -> None:
        """It is gone, and its space is free and erased."""
        self.namespaces.delete(namespace.nsid)
        for cntlid in namespace.attached:
            self.controllers[cntlid].namespace_changed(namespace.nsid)
        namespace.attached.clear()
        self.medium.deallocate(namespace.base, namespace.size_bytes, now_ns)
        self.dirty = True

    def occupy(self, namespace: Namespace, until_ns: int) -> None:
        """A format is under way; what it changes shows when it is done."""
        if until_ns <= self._clock.now_ns:
            self._formatted(namespace)
            return
        namespace.busy_until_ns = until_ns
        namespace.refresh()
        self._clock.call_at_ns(until_ns, self._format_done, namespace)

    def _format_done(self, namespace: Namespace) -> None:
        self._formatted(namespace)
        self._after()

    def _formatted(self, namespace: Namespace) -> None:
        namespace.busy_until_ns = 0
        namespace.refresh()
        self.namespace_changed(namespace)

    def used_blocks(self, namespace: Namespace) -> int:
        """NUSE: blocks that are allocated on the medium, as far as one answer tells."""
        pieces = self.medium.extents(namespace.base, namespace.size_bytes)
        seen = sum(piece.length_bytes for piece in pieces)
        used = sum(piece.length_bytes for piece in pieces if not piece.hole)
        return min(used + namespace.size_bytes - seen >> namespace.shift, namespace.blocks)

    # --- the device as a whole ---

    def set_power_state(self, state: int, now_ns: int) -> None:
        """Feature 02h."""
        self.medium.set_power_state(state, now_ns)

    def set_write_cache(self, on: bool, now_ns: int) -> int:
        """Feature 06h; when it is done.  Refused: what was cached cannot be written, and the cache stays on."""
        due_ns = self.medium.set_write_cache(on, now_ns)
        if due_ns < 0:
            raise Refused(final(-due_ns), retry=True)
        self.write_cache_on = on
        return due_ns

    def set_thermal(self, value: int, now_ns: int) -> None:
        """Feature 10h."""
        self.thermal = value
        self.medium.set_thermal(value >> 16, value & 0xFFFF, now_ns)

    def set_latency(self, latency_ns: int) -> None:
        """Every I/O command takes so much longer.  UsageError beyond a minute."""
        if latency_ns > LATENCY_MAX_NS:
            raise uxk.UsageError(f"extra_latency_ns={latency_ns}: expected 0 to {LATENCY_MAX_NS}")
        self.extra_latency_ns = latency_ns
        self.slow = bool(latency_ns)

    def power_loss(self, now_ns: int) -> None:
        """The volatile cache is lost; what was under way fails, and may be tried again."""
        self.power_cycles += 1
        self.medium.power_loss(now_ns)
        self.later.fail_all(Status.POWER_LOSS)
        self.dirty = True
        self.say("power loss: what was cached is gone")

    def keep(self) -> None:
        """Something that outlives the driver has changed."""
        self.dirty = True

    def settle(self, now_ns: int) -> None:
        """After every batch: counters, background work of the medium."""
        if len(self.counters.latencies) > FOLD:
            self.counters.fold()
        due_ns = self.medium.next_event_ns
        if due_ns is not None and (self._background_ns is None or due_ns < self._background_ns):
            self._background_ns = due_ns
            self._clock.call_at_ns(due_ns, self._background, due_ns, daemon=True)

    def _background(self, due_ns: int) -> None:
        if self._background_ns == due_ns:
            self._background_ns = None
        now_ns = self._clock.now_ns
        self.medium.run_background(now_ns)
        self.settle(now_ns)

    def check_health(self, now_ns: int) -> None:
        """Critical warnings that have come up since the last look become events."""
        for controller in self.controllers.values():
            warning = critical_warning(controller, now_ns)
            controller.events.warn(warning & ~controller.warned)
            controller.warned = warning

    # --- what outlives the driver ---

    def record(self) -> Kept:
        """All of it."""
        return Kept(
            self.serial, self.namespaces.generation, self._last_cntlid, self.power_cycles,
            [each.record() for each in self.namespaces.table.values()],
            [record_of(each) for each in self.controllers.values()],
            self.life, self.write_cache_on, self.medium.power_state, self.thermal,
            self.medium.lifetime(self._clock.now_ns),
        )  # fmt: skip

    def restore(self, kept: Kept) -> None:
        """The table as an earlier incarnation left it; controllers are added by their front ends, with :func:`resume`.

        To hosts nothing was reset: the features of the device are what they were.
        """
        now_ns = self._clock.now_ns
        self._last_cntlid = kept.last_cntlid
        self.power_cycles = kept.power_cycles
        self.namespaces.generation = kept.generation
        self.namespaces.restore(kept.namespaces)
        self.medium.resume(kept.lifetime)
        self.set_power_state(kept.power_state, now_ns)
        self.set_thermal(kept.thermal, now_ns)
        if self.has_write_cache:
            self.set_write_cache(kept.write_cache_on, now_ns)


def record_of(controller: Controller) -> ControllerRecord:
    """What to keep of a controller."""
    features = controller.features
    return ControllerRecord(
        controller.cntlid, controller.port, controller.host, features.host_id, features.values, features.saved,
        controller.events.enabled, features.delays, features.timestamp_ns, controller.errors.count,
    )  # fmt: skip


def resume(controller: Controller, record: ControllerRecord) -> None:
    """A controller goes on as it was kept."""
    features = controller.features
    features.values, features.saved = record.features, record.saved
    features.delays, features.timestamp_ns, features.host_id = record.delays, record.timestamp_ns, record.host_id
    controller.events.enabled = record.enabled
    controller.errors.count = record.errors
