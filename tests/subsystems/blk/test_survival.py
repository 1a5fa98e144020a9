"""Whatever becomes of driver, device and settings: each request is answered exactly once, and the books are even.

The driver dies with each fate, loses requests, errs; the device goes and comes back; schedulers, limits and deadlines
change under load.  ``UXK_SOAK=1`` tries thousands of stories.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from tests.subsystems.blk.conftest import Client, Lab, lab_of
from uxk.uapi.entries import Op, Request

BLOCK: Final = 512
DISK_BLOCKS: Final = 2048
NS_PER_S: Final = 10**9
OPS: Final = (Op.READ, Op.WRITE, Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES, Op.EXTENTS, Op.CALL)
SETTINGS: Final = {
    "scheduler": ("none", "mq-deadline"), "nr_requests": ("4", "8", "64"), "io_timeout": ("1", "5", "100"),
    "nomerges": ("0", "1", "2"), "iostats": ("0", "1"), "write_cache": ("write back", "write through"),
    "max_sectors_kb": ("4", "32"), "discard_max_bytes": ("0", "4096"),
}  # fmt: skip

Step = tuple[Any, ...]


def batches() -> st.SearchStrategy[Step]:
    """Some client's batch: so many requests of one kind, side by side or apart."""
    return st.tuples(
        st.just("ask"), st.integers(0, 2), st.sampled_from([1, 3, 20, 40]), st.sampled_from(OPS),
        st.sampled_from([1, 2, 8, 64]), st.integers(0, DISK_BLOCKS - 1), st.sampled_from([0, 0, 1, 2, 3, 64]),
        st.sampled_from([0, 1, 70]),
    )  # fmt: skip


def changes() -> st.SearchStrategy[Step]:
    """Something written under ``queue/``."""
    pairs = [(name, value) for name, values in SETTINGS.items() for value in values]
    return st.sampled_from(pairs).map(lambda pair: ("set", *pair))


STEPS = st.one_of(
    batches(), batches(), batches(), changes(),
    st.just(("crash",)), st.sampled_from([("trace", "1"), ("trace", "0"), ("ro", "1"), ("ro", "0")]),
    st.sampled_from([0, 1000, 10**6]).map(lambda ns: ("away", ns)),
    st.sampled_from(["2097152", "524288", "-5", ""]).map(lambda size: ("resize", size)),
    st.sampled_from([0, 1, 500, 1000, 10**6]).map(lambda ns: ("wait", ns)),
)  # fmt: skip
SPANS = st.sampled_from([0, 8192, 1 << 18])
LIMITS = st.fixed_dictionaries({
    "write_cache": st.integers(0, 1), "fua": st.integers(0, 1), "max_discard_bytes": SPANS,
    "max_write_zeroes_bytes": SPANS, "max_transfer_bytes": st.sampled_from([2048, 1 << 16]),
})  # fmt: skip
MANIFEST = st.fixed_dictionaries({
    "fate": st.sampled_from(["fail", "requeue", "reissue"]), "full": st.sampled_from(["defer", "reject"]),
    "restart": st.sampled_from([0, 1000, 10**7]).map(
        lambda ns: uxk.RestartPolicy(mode="permanent", backoff_ns=ns, max_restarts=1024)
    ),
    "watchdog": st.builds(
        uxk.Watchdog, request_timeout_ns=st.sampled_from([10**7, NS_PER_S]), timeouts_max=st.sampled_from([3, 10**6])
    ),
})  # fmt: skip


class Story:
    """One run: three clients, a driver that is not to be relied on, and what happens to it."""

    def __init__(self, it: Lab, lose: int, err: int) -> None:
        self.it = it
        self.every = 0
        self.refused: set[int | None] = set()
        self.clients: list[Client] = []
        self.asked: list[tuple[Client, set[int]]] = []
        it.medium.swallow = lambda request: self.each(lose)
        it.medium.judge = lambda request: (errno.EIO, errno.EOPNOTSUPP)[self.every & 1] if self.each(err) else 0
        self.connect()

    def each(self, period: int) -> bool:
        """Every so many requests; 0 for never."""
        self.every += 1
        return bool(period) and self.every % period == 0

    def connect(self) -> None:
        """New clients: of a disk that is gone, nobody gets anything any more."""
        self.clients = [self.it.client(f"c{n}", tagged=bool(n)) for n in range(3)]
        self.asked += [(client, set()) for client in self.clients]

    def ask(self, who: int, count: int, op: int, blocks: int, at: int, flags: int, apart: int) -> None:
        client, cids = self.asked[who - 3]
        requests = []
        for n in range(count):
            offset = (at + n * (blocks + apart)) % (DISK_BLOCKS - blocks) * BLOCK
            size = 0 if op == Op.FLUSH else blocks * BLOCK
            data = bytes(size) if op == Op.WRITE else b""
            requests.append(Request(0, op, data, 0 if op == Op.FLUSH else offset, size, flags=flags))
        try:
            new = client.submit(*requests)
        except uxk.UxkError as exc:
            self.refused.add(exc.errno)
            return
        assert len(set(new)) == count and not cids & set(new)
        cids.update(new)

    async def away(self, ns: int) -> None:
        """The device goes, and comes back."""
        properties = self.properties()
        self.it.kernel.devices.remove(self.it.disk.device)
        await self.it.kernel.sleep_ns(ns)
        self.add(properties)

    def properties(self) -> dict[str, str]:
        """What the device says of itself, when it says what makes sense."""
        properties = {**self.it.disk.device.properties, "capacity_bytes": str(DISK_BLOCKS * BLOCK)}
        return {name: text for name, text in properties.items() if name not in ("class", "module", "name")}

    def add(self, properties: dict[str, str]) -> None:
        it = self.it
        it.kernel.devices.add(it.kernel.agents["blkram"], "blkram0", properties)
        if it.layer.disks.get("blkram0") is not it.disk:
            it.disk = it.layer.disk("blkram0")
            self.connect()

    def resize(self, size: str) -> None:
        """To another size, or to nonsense, or to none: then the disk is gone until it has one again."""
        before = self.properties()
        after = {name: text for name, text in {**before, "capacity_bytes": size}.items() if text}
        self.it.kernel.devices.add(self.it.kernel.agents["blkram"], "blkram0", after)
        if not size:
            self.add(before)

    async def step(self, kind: str, *rest: Any) -> None:
        it = self.it
        match kind:
            case "ask":
                self.ask(*rest)
            case "set":
                try:
                    it.set(*rest)
                except uxk.UxkError as exc:  # out of range for this disk, or it is being switched
                    self.refused.add(exc.errno)
            case "crash":
                it.crash()
            case "trace":
                it.kernel.sysfs.write(f"{it.path}/trace/enable", rest[0])
            case "ro":
                it.kernel.sysfs.write(f"{it.path}/ro", rest[0])
            case "away":
                await self.away(*rest)
            case "resize":
                self.resize(*rest)
            case _:
                await it.kernel.sleep_ns(rest[0])

    async def end(self) -> None:
        """The driver is itself again: all is answered, nothing is left, and the disk works."""
        it = self.it
        it.medium.swallow = lambda request: False
        it.medium.judge = lambda request: 0
        it.medium.latency_ns = 0
        await it.kernel.sleep_ns(100 * NS_PER_S)
        assert self.refused <= {errno.EAGAIN, errno.ENODEV, errno.EINVAL, errno.EBUSY}
        for client, cids in self.asked:
            assert set(client.answers) == cids, "answered exactly once"
        it.check_empty()
        (cid,) = self.clients[0].submit(Request(0, Op.READ, b"", 0, BLOCK))
        await it.run()
        assert self.clients[0].answers[cid].status == 0
        it.check_empty()
        for client, _ in self.asked:
            client.port.close()
        assert len(it.kernel.agents["blkram"]._ports) == 1, "the disk's own"
        assert not [record.text for record in it.kernel.kmsg.records() if "BUG" in record.text]


@settings(max_examples=3000 if os.environ.get("UXK_SOAK") else 80)
@given(
    depth=st.sampled_from([2, 4, 8]), latency_ns=st.sampled_from([0, 1000, 10**6]),
    lose=st.sampled_from([0, 0, 7, 40]), err=st.sampled_from([0, 0, 5, 23]), limits=LIMITS, manifest=MANIFEST,
    steps=st.lists(STEPS, min_size=8, max_size=40),
)  # fmt: skip
def test_each_request_is_answered_once_and_the_books_are_even(
    depth: int, latency_ns: int, lose: int, err: int, limits: Any, manifest: Any, steps: list[Step]
) -> None:
    async def run() -> None:
        async with lab_of(depth=depth, manifest=manifest, **limits) as it:
            it.medium.latency_ns = latency_ns
            story = Story(it, lose, err)
            for step in steps:
                await story.step(*step)
            await story.end()

    trio.run(run)
