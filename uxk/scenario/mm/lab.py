"""``[subsystems.mm]``: memory over a log-structured volume, threads that use both, and an agent in their midst."""

from __future__ import annotations

from typing import Any, Final, cast

from uxk.core.suggest import did_you_mean
from uxk.core.waitfor import Node
from uxk.errors import ConfigError
from uxk.faults.host import FaultyHost
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.limits import PPM
from uxk.scenario.mm.load import Hog, Writer
from uxk.scenario.mm.params import MmScenario
from uxk.subsystems.kthread import Flow, Kthread
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.advice import GcAdvice
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.threads import Pages, ThreadedVolume
from uxk.subsystems.lfs.timed.device import DeviceSpec, FlashDevice
from uxk.subsystems.lfs.timed.volume import StepVolume
from uxk.subsystems.mm.advice import WritebackAdvice
from uxk.subsystems.mm.flusher import Flusher
from uxk.subsystems.mm.forbidden import SyncUpcall
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.mempool import Mempool
from uxk.subsystems.mm.userspace import PagedHost, Process
from uxk.subsystems.mm.zone import Use
from uxk.uapi.entries import Hint

DATA: Final = 0
"""The writers' file."""
MODEL: Final = 1
"""The file that the agent has mapped."""
GP_PPM: Final = 100_000
"""Least garbage of a victim that is cleaned before writers wait, and how the volume was aged."""
KEPT_SEGMENTS: Final = 8
"""Spare segments that ageing leaves alone."""
ALARM_ABOVE_LOW: Final = 1
"""The emergency begins so many clean segments before writers must wait."""


class Unreserved:
    """Memory for the cleaner without a pool: what a file system must not do."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def alloc(self, thread: Kthread, pages: int) -> Flow[None]:
        """As any allocation."""
        yield from self._memory.alloc(thread, Use.POOL, pages)

    def free(self, pages: int) -> None:
        """Back to the free pages."""
        self._memory.zone.move(Use.POOL, Use.FREE, pages)
        self._memory.freed()


class Lab:
    """Everything together.  Edges of the wait-for graph come from the wait queues of mm and lfs alone."""

    def __init__(self, kernel: Kernel, params: MmScenario) -> None:
        self._kernel, self._machine, self.params = kernel, kernel.machine, params
        self._origin_ns = self._machine.now_ns
        if params.agent_file_pages > params.volume_pages // 2:
            raise ConfigError(f"mm.agent_file_pages = {params.agent_file_pages}: at most half of mm.volume_pages")
        machine, flusher = self._machine, Node("kernel", "flusher of lfs0")
        self.memory = Memory(machine, params, flusher)
        self.gc_pool, self.bio_pool = self._pools()
        self.agent = self._find_agent()
        volume = self._age()
        marks = _marks(volume)
        self.gc = GcAdvice(kernel, "lfs0", volume, marks[0] + ALARM_ABOVE_LOW, trigger=params.trigger)
        self.order = WritebackAdvice(kernel, "mm0", self.memory, 2, trigger=params.trigger)
        self.upcall = self._forbidden()
        hints = params.policy != "default"
        self.volume = ThreadedVolume(
            machine, "lfs0", volume, FlashDevice(machine, self._device()),
            (0, params.volume_pages - params.agent_file_pages), marks, pages=self._pages(),
            choose=self.gc.choose if hints else lambda _: None, on_clean=self.gc.clean_changed,
            forbidden=self.upcall if params.ask == "gc" else None,
        )  # fmt: skip
        self.flusher = Flusher(
            machine, self.memory, self.volume, flusher, self.order.choose if hints else lambda _: -1, self.bio_pool,
            self.upcall if params.ask == "writeback" else None,
        )  # fmt: skip
        self.memory.flush = self.flusher.flush
        self.memory.on_pressure = self.order.pressure
        self.process = self._make_process()
        data_pages = params.volume_pages - params.agent_file_pages
        self.writers = [
            Writer(machine, self.memory, number, DATA, data_pages, params) for number in range(params.writers)
        ]
        self.hog = Hog(machine, self.memory, params) if params.hog_pages else None
        self.windows: list[int] = []
        """Pages that arrived on the volume, in each window of time."""
        self._counted = 0
        self._halted = False
        self._epoch_due()
        self._window_due()

    # --- building ---

    def _pools(self) -> tuple[Mempool | None, Mempool | None]:
        pages = self.params.pool_pages
        if not pages:
            return None, None
        machine, zone = self._machine, self.memory.zone
        return Mempool(machine, zone, "cleaner", max(pages, 32)), Mempool(machine, zone, "writeback", pages)

    def _pages(self) -> Pages:
        return self.gc_pool or Unreserved(self.memory)

    def _device(self) -> DeviceSpec:
        return DeviceSpec(program_bytes_per_s=self.params.program_bytes_per_s)

    def _age(self) -> StepVolume:
        """A volume that was written and overwritten, by the frozen rule and without time."""
        params = self.params
        pages, size = params.volume_pages, params.segment_blocks
        segments = -(-pages // size) + params.spare_segments
        spare_ppm = (params.spare_segments - KEPT_SEGMENTS) * PPM // (segments - KEPT_SEGMENTS)
        geometry = Geometry(
            pages=pages, segment_blocks=size, gp_ppm=min(GP_PPM, spare_ppm), logs=2, segments=segments
        )  # fmt: skip
        volume = StepVolume(geometry, policies.lookup(params.cleaning))
        volume.run(range(pages))
        stream = self._machine.streams.stream("mm/age")
        for _ in range(params.aged_volumes):
            volume.run(stream.integers(0, pages, pages).tolist())
        return volume

    def _find_agent(self) -> KernelAgent | None:
        name, agents = self.params.agent, self._kernel.agents
        if not name:
            if self.params.policy == "sync-upcall":
                raise ConfigError("mm.policy = 'sync-upcall': needs mm.agent, the instance to ask")
            return None
        if name not in agents:
            raise ConfigError(f"mm.agent = {name!r}: not loaded{did_you_mean(name, agents)}")
        return agents[name]

    def _forbidden(self) -> SyncUpcall | None:
        if self.params.policy != "sync-upcall" or self.agent is None:
            return None
        advice: GcAdvice | WritebackAdvice = self.gc if self.params.ask == "gc" else self.order
        upcall = SyncUpcall(self._machine, advice.site.name, self.agent.node, advice.publish, advice.site.follows)
        heard = self._kernel.models.on_hint

        def on_hint(agent: KernelAgent, hint: Hint, refused: str) -> None:
            if heard is not None:
                heard(agent, hint, refused)
            if hint.site == advice.site.name:
                upcall.answered()

        self._kernel.models.on_hint = on_hint
        return upcall

    def _make_process(self) -> Process | None:
        """Puts the emulated memory below the agent: now, and below every later incarnation."""
        agent, params = self.agent, self.params
        if agent is None:
            return None
        process = Process(
            self.memory, agent, anon_pages=params.agent_anon_pages, file=MODEL, file_pages=params.agent_file_pages,
            stores=params.agent_stores,
        )  # fmt: skip
        machine, before = self._machine, self._machine.host_filter
        host: Any = agent.host
        if isinstance(host, FaultyHost):
            host.slip_under(lambda inner: PagedHost(agent, inner, process))
        elif host is not None:
            agent.host = cast("Any", PagedHost(agent, host, process))
        machine.host_filter = lambda who, host: before(who, PagedHost(who, host, process) if who is agent else host)
        return process

    # --- while it runs ---

    def _epoch_due(self) -> None:
        if not self._halted:
            self._machine.heap.call_at_daemon(self._machine.now_ns + self.params.epoch_ns, self._epoch)

    def _epoch(self, _: object) -> None:
        if self._halted:
            return
        params, machine = self.params, self._machine
        volume = self.volume.volume
        words = (self.flusher.written, volume.moved, len(volume.clean), *self.memory.zone.count)
        machine.note("mm", 0, b" ".join(b"%d" % word for word in words))
        if params.policy == "hints":
            (self.gc if params.ask == "gc" else self.order).publish()
        self.gc.epoch(1)
        self.order.epoch(1)
        self._epoch_due()

    def _window_due(self) -> None:
        self._machine.heap.call_at_daemon(self._machine.now_ns + self.params.window_ns, self._window)

    def _window(self, _: object) -> None:
        self.windows.append(self.flusher.written - self._counted)
        self._counted = self.flusher.written
        self._window_due()

    def halt(self) -> None:
        """The end of the run: every thread stops where it stands, and waits for nothing any more."""
        self._halted = True
        threads = [writer.thread for writer in self.writers]
        threads += [self.flusher.thread, self.volume.cleaner, self.memory.kswapd]
        if self.hog is not None:
            threads.append(self.hog.thread)
        for thread in threads:
            thread.kill()
        if self.process is not None:
            self.process.exit()

    # --- figures ---

    def results(self) -> dict[str, Any]:
        """Figures of the run so far."""
        process, upcall = self.process, self.upcall
        return {
            "memory": self.memory.results(), "volume": self.volume.results(), "flusher": self.flusher.results(),
            "gc": self.gc.results(), "writeback": self.order.results(), "windows": list(self.windows),
            "writers": {"stores": sum(writer.done for writer in self.writers)},
            "hog": 0 if self.hog is None else self.hog.held,
            "agent": {} if process is None else {"turns": process.turns, "blocked": process.blocked},
            "upcall": {} if upcall is None else {"asked": upcall.asked, "answers": upcall.answers},
            "pools": {
                pool.name: {"least": pool.least, "from_reserve": pool.from_reserve}
                for pool in (self.gc_pool, self.bio_pool) if pool is not None
            },
        }  # fmt: skip


def _marks(volume: StepVolume) -> tuple[int, int]:
    """Low and high mark in clean segments: one per log and one more; and some background."""
    low = volume.logs + 1
    return low, 2 * low + volume.segments // 32


def attach(kernel: Kernel, params: MmScenario) -> Lab:
    """For :func:`uxk.scenario.subsystems.register_subsystem`."""
    return Lab(kernel, params)
