"""The module: memory, the controller's bring-up, requests, events, attributes."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from itertools import count
from struct import iter_unpack
from typing import Final
from weakref import WeakValueDictionary

import uxk
from uxk.uapi.blk import NvmeOp, pack_extents
from uxk_nvme.adminqueue import ADMIN_ENTRIES, AdminQueue
from uxk_nvme.advice import Advice, advice_of
from uxk_nvme.begin import make_namespaces, resume_controllers
from uxk_nvme.bounce import BOUNCE_BYTES, Bounce
from uxk_nvme.disks import Disks
from uxk_nvme.faults import FaultTable
from uxk_nvme.figures import Figures
from uxk_nvme.host import Host
from uxk_nvme.iommu import OFFSET_BITS, Iommu
from uxk_nvme.ioqueue import IoQueue
from uxk_nvme.kept import KEPT_BYTES, KeptTable
from uxk_nvme.medium import Medium, open_medium
from uxk_nvme.nscontrol import NamespaceControl
from uxk_nvme.params import NvmeParams
from uxk_nvme.passthru import Passthrough
from uxk_nvme.pcie import Registers
from uxk_nvme.queues import DOORBELL_BYTES, HostQueue, Rings, ring_bytes
from uxk_nvme.spec import PAGE_BYTES, SQE_BYTES
from uxk_nvme.store import record_bytes
from uxk_nvme.subsystem import Settings, Subsystem
from uxk_nvme.translate import Disk
from uxk_nvme.watch import LOOKS

_PAGES: Final = 1
"""Pages for data of the driver's admin commands."""
WORK_BYTES: Final = DOORBELL_BYTES + BOUNCE_BYTES + _PAGES * PAGE_BYTES + ring_bytes(ADMIN_ENTRIES) + PAGE_BYTES
QUEUES_BYTES: Final = 16 * ring_bytes(4096)
MARKS_BYTES: Final = 1 << 20
_CHECKED: Final = ({"integrity": "Y", "lba_bytes": str(lba_bytes)} for lba_bytes in (512, 4096))
MEMORY: Final = (
    uxk.MemoryParam("size", {"backing": "ram"}),
    uxk.MemoryParam("write_cache"),  # what a loss of power would take back
    *(uxk.MemoryParam("size", when, times=5, per=int(when["lba_bytes"])) for when in _CHECKED),
)
"""What comes on top of the budget with parameters; the last two are checksums."""
"""For what cannot be read: enough for 4 GiB of memory.  Beyond that it is forgotten when the driver is killed."""
_lives: Final = count(1)
_media: Final[WeakValueDictionary[int, Medium]] = WeakValueDictionary()
"""Media of this process that were opened and may not be closed yet."""


class Nvme(uxk.Extension[NvmeParams]):
    """An NVMe controller with its medium, and the driver that talks to it: disks ``nvme0n1``, ...

    Its own device ``nvme0`` takes passthrough commands (uxk.uapi.blk.NvmeOp); reads and writes sent to it go to the
    first namespace.
    """

    manifest = uxk.Manifest(
        name="nvme",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        kind="driver",
        driver_class="block",
        exclusive=True,  # its file is locked, and its kept memory follows what it does
        passthrough="nvme",
        params=NvmeParams,
        budget=uxk.Budget(
            memory_bytes=WORK_BYTES + QUEUES_BYTES + KEPT_BYTES + MARKS_BYTES + (1 << 20),
            memory_params=MEMORY,
            queue_depth=1024,
        ),
        # A sparse file may have to be made, and marks of bad blocks beside it.
        sandbox=uxk.Sandbox(write=("{backing:sparse}/..", "{backing:file}")),
        # The medium outlives the driver; writes may be done twice.
        fate="reissue",
        # A command that the device swallows is the device's fault, not the driver's: it aborts it itself.
        watchdog=uxk.Watchdog(timeouts_max=1 << 16),
        ready="explicit",
    )

    # --- bring-up ---

    def setup(self, ctx: uxk.Context) -> None:
        """Asks for memory; the rest happens when it is there."""
        self._ctx = ctx
        self._memory: dict[str, memoryview] = {}
        self._host: Host | None = None
        self._medium: Medium | None = None
        self._advice: Advice | None = None
        self._sweeping = self._admin_due = False
        queues = self.params.queues * ring_bytes(self.params.queue_entries)
        wanted = {"work": WORK_BYTES + queues, "table": KEPT_BYTES}
        if self.params.backing == "ram":
            wanted["medium"] = self.params.size
            if record_bytes(self.params.size) <= MARKS_BYTES:
                wanted["marks"] = record_bytes(self.params.size)
        for name, size_bytes in wanted.items():
            keep = "" if name == "work" else name
            ctx.allocate(size_bytes, keep=keep).then(partial(self._granted, name, len(wanted)))

    def _granted(self, name: str, wanted: int, answer: uxk.Completion) -> None:
        if answer.status:
            raise uxk.BudgetError(answer.payload.decode(errors="replace"), errno=answer.status)
        self._memory[name] = self._ctx.map(answer.result, writable=True)
        if len(self._memory) == wanted:
            self._bring_up()

    def _bring_up(self) -> None:
        ctx, params, work = self._ctx, self.params, self._memory["work"]
        self._iommu = iommu = Iommu(lambda cap, writable: ctx.map(cap, writable=writable))
        handle = iommu.pin(work)
        self._kept = KeptTable(self._memory["table"])
        kept = self._kept.load()
        serial = params.serial or (kept.serial if kept else f"UXK{ctx.random_streams.integer('serial'):016X}")
        if kept is not None and kept.life in _media:
            _media[kept.life].close()  # it may hold the lock on its file
        self._medium = medium = open_medium(
            params, ctx.random("medium"), self._memory.get("medium"), self._memory.get("marks"), fresh=kept is None
        )
        self._faults = FaultTable(ctx.random("faults"))
        settings = Settings(
            serial, "nqn.2026-11.example.uxk:" + serial.replace(" ", "-"), params.queues, params.queue_entries,
            params.write_cache > 0 or params.backing != "ram",
        )  # fmt: skip
        self._subsystem = subsystem = Subsystem(
            settings, medium, self._faults, iommu, ctx, self._after, lambda text: ctx.log(text, level=4)
        )
        subsystem.life = next(_lives)
        _media[subsystem.life] = medium
        self._advice = advice_of(ctx, medium) if params.medium == "ftl" else None
        if kept is None:
            make_namespaces(subsystem, params)
        else:
            subsystem.restore(kept)
        doorbells = work[:DOORBELL_BYTES]
        bounce = Bounce(work[DOORBELL_BYTES : DOORBELL_BYTES + BOUNCE_BYTES], handle, DOORBELL_BYTES)
        registers = Registers(subsystem, doorbells, self._interrupt)
        self._host = host = Host(ctx, registers, iommu, bounce, self._other, self._after)
        self._apply()
        self._passthrough = Passthrough(ctx, subsystem, iommu, bounce)
        if kept is not None:
            resume_controllers(subsystem, kept, ctx.now_ns)
        at = DOORBELL_BYTES + BOUNCE_BYTES
        page, at = at, at + PAGE_BYTES
        rings = Rings(
            0, ADMIN_ENTRIES, work[at : at + ADMIN_ENTRIES * SQE_BYTES],
            work[at + ADMIN_ENTRIES * SQE_BYTES : at + ring_bytes(ADMIN_ENTRIES)], doorbells,
        )  # fmt: skip
        registers.enable(rings)
        self._admin = AdminQueue(
            registers, HostQueue(rings), work[page : page + PAGE_BYTES], handle << OFFSET_BITS | page, ctx
        )
        self._disks = Disks(ctx, self._admin, host.disks, params.queues, settings.write_cache, self._live)
        self._queue_memory = handle, -(-(at + ring_bytes(ADMIN_ENTRIES)) // PAGE_BYTES) * PAGE_BYTES
        self._figures = Figures(ctx, subsystem, self._save)
        self._control = NamespaceControl(ctx, subsystem, params.lba_bytes.bit_length() - 1)
        self._admin.identify_controller(lambda page: self._create_queues(0))

    def _apply(self) -> None:
        """What may be set while the module is loaded."""
        assert self._host is not None
        self._host.retries = self.params.retries
        self._subsystem.coalesce_ns = self.params.coalesce_ns

    def _create_queues(self, index: int) -> None:
        """One I/O queue pair after the other, then namespaces."""
        host, entries = self._host, self.params.queue_entries
        assert host is not None
        if index == self.params.queues:
            self._admin.watch_events(self._disks.rescan)
            self._disks.rescan()
            return
        handle, base = self._queue_memory
        at = base + index * ring_bytes(entries)
        sq_bytes = entries * SQE_BYTES
        work = self._memory["work"]

        def created(_: bytes) -> None:
            rings = Rings(
                index + 1, entries, work[at : at + sq_bytes], work[at + sq_bytes : at + ring_bytes(entries)],
                work[:DOORBELL_BYTES],
            )  # fmt: skip
            host.queues.append(IoQueue(HostQueue(rings)))
            self._create_queues(index + 1)

        address = handle << OFFSET_BITS | at
        self._admin.create_queue(index + 1, entries, address + sq_bytes, address, created)

    def _live(self) -> None:
        self._faults.publish(self._ctx)
        self._figures.publish()
        self._control.publish()
        self._settle()
        self._ctx.ready()

    # --- requests ---

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Commands into rings, doorbells, completions."""
        host = self._host
        if host is None:  # not brought up yet: nobody can have asked
            for request in requests:
                ctx.fail(request, errno.ENODEV)
            return
        host.submit(requests)
        self._after()

    def _other(self, request: uxk.Request, disk: Disk | None) -> None:
        """What is neither read, written nor erased."""
        ctx = self._ctx
        if NvmeOp.ADMIN <= request.opcode <= NvmeOp.WAIT_EVENT:
            if request.device:
                ctx.complete(request, status=errno.ENOTTY)  # it is for the controller's own device
            else:
                self._passthrough.request(request)
        elif request.opcode == uxk.Op.NOP:
            ctx.complete(request)
        elif request.opcode == uxk.Op.RELEASE and request.port and not request.device:
            self._passthrough.release(request)
        elif request.opcode == uxk.Op.EXTENTS and disk is not None:
            self._extents(request, disk)
        else:
            ctx.complete(request, status=errno.EOPNOTSUPP)

    def _extents(self, request: uxk.Request, disk: Disk) -> None:
        namespace = self._subsystem.namespaces.table.get(disk.nsid)
        if namespace is None or not 0 < request.length <= disk.size_bytes - request.offset:
            self._ctx.complete(request, status=errno.EINVAL)
            return
        pieces = self._subsystem.medium.extents(namespace.base + request.offset, request.length)
        self._ctx.complete(
            request, pack_extents(pieces), result=sum(piece.length_bytes for piece in pieces)
        )  # fmt: skip

    def _interrupt(self, qid: int) -> None:
        if not qid:
            self._admin_due = True
        elif self._host is not None:
            self._host.pending[qid] = None

    def _after(self) -> None:
        """The end of every turn: completions, what the device's table keeps, timers, attributes."""
        host = self._host
        assert host is not None
        passthrough = self._passthrough
        host.poll()
        # Each may give work to the others: an Abort ends commands, what has waited may be passthrough.
        while self._admin_due or host.pending or passthrough.pending:
            self._admin_due = False
            passthrough.run()
            self._admin.poll()
            host.poll()
        if self._iommu.retired:
            self._iommu.settle()
        if self._subsystem.dirty:
            self._settle()
        figures = self._figures
        if not figures.armed or self._ctx.now_ns >= figures.next_ns:
            figures.due()
        if self._advice is not None:
            self._advice.check()
        if self._faults.dirty:
            self._faults.publish(self._ctx)
        if not self._sweeping and (host.busy or self._admin.busy):
            self._sweeping = True
            self._ctx.call_later_ns(self.params.timeout_ns // LOOKS, self._sweep, daemon=True)

    def _settle(self) -> None:
        if self._subsystem.dirty:
            self._subsystem.dirty = False
            self._save()
            self._control.publish()

    def _save(self) -> None:
        self._kept.save(self._subsystem.record())

    def _sweep(self, _: object) -> None:
        """Aborts what has been under way for too long."""
        self._sweeping = False
        assert self._host is not None
        limit_ns = self.params.timeout_ns
        for qid, cid in self._host.hung(limit_ns):
            self._admin.abort(qid, cid)
        self._admin.sweep(limit_ns)
        self._after()

    # --- news ---

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """Written attributes and parameters, requests that the kernel has taken back."""
        if self._host is None:
            return
        if event.topic == "param":
            self._apply()
        elif event.topic == "abort":
            for qid, cid in self._host.taken_back({cid for (cid,) in iter_unpack("<Q", event.value)}):
                self._admin.abort(qid, cid)
            self._after()
        elif event.topic == "store":
            if event.name == "faults":
                self._faults.store(ctx, event.value)
            elif event.name == "namespaces":
                self._control.store(event.value)
            else:
                self._figures.store(event.name, event.value)
            self._after()

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        """An orderly shutdown: what is cached is written."""
        if self._medium is not None:
            self._medium.flush(ctx.now_ns)
            self._medium.close()
