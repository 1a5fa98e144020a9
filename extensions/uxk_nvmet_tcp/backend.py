"""The way to the NVMe controller: passthrough requests of one device, whose data lie in memory that both share."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import uxk
from uxk.uapi.blk import NvmeOp

Done: TypeAlias = Callable[[int, int, bytes], object]
"""Called with a completion's errno, result and payload."""

RETRY_NS: Final = 1_000_000
"""When a device that takes nothing now is asked again, if none of its answers is due before."""
_GONE: Final = frozenset({errno.ENODEV, errno.ESTALE, errno.EACCES, errno.ECANCELED, errno.EIO, errno.ESHUTDOWN})
"""Errors after which the device may be another than the one that was opened."""

Arguments: TypeAlias = tuple[int, int, int, bytes, int, int]


class Backend(Protocol):
    """Sends :class:`uxk.uapi.blk.NvmeOp` requests; every one is answered exactly once, in any order."""

    def request(
        self, op: int, cntlid: int, qid: int, payload: bytes, then: Done, *, length: int = 0, buffer: int = -1
    ) -> None:
        """``buffer`` is where its data lie in the shared region; negative: they are in the payloads."""


class Passthrough:
    """A :class:`Backend` on a device of the kernel's.  More requests than the queues hold wait here, in order."""

    def __init__(self, ctx: uxk.Context, device: str, region: int, on_answers: Callable[[], object]) -> None:
        self._ctx = ctx
        self._device = device
        self._region = region
        self._on_answers = on_answers
        self._queue = ctx.queue(0, self._on_completions)
        self._pending: dict[int, tuple[Arguments, Done]] = {}
        self._held: deque[tuple[Arguments, Done]] = deque()
        self._stale = True
        """The device must be opened (again)."""
        self._retrying = False

    @property
    def inflight(self) -> int:
        """Requests without an answer."""
        return len(self._pending) + len(self._held)

    def request(
        self, op: int, cntlid: int, qid: int, payload: bytes, then: Done, *, length: int = 0, buffer: int = -1
    ) -> None:
        """See :class:`Backend`.  ATTACH opens the device if that is necessary."""
        region, at = (0, 0) if buffer < 0 else (self._region, buffer)
        item: tuple[Arguments, Done] = ((op, cntlid << 16 | qid, length, payload, region, at), then)
        if self._stale and op == NvmeOp.ATTACH:
            self._reopen(item)
        elif self._held:
            self._held.append(item)
        else:
            self._submit(item)

    def _submit(self, item: tuple[Arguments, Done]) -> None:
        try:
            self._pending[self._queue.submit(*item[0])] = item
        except uxk.RingFull:
            self._held.appendleft(item)
            self._retry_later()

    def use(self, cap: int, instance: str) -> None:
        """Sends requests to a device that has been opened, of a driver's instance."""
        self._stale = False
        self._queue.cap = cap
        # Registered once, the memory is not lent anew with every request.
        self._ctx.derive(self._region, instance, uxk.Rights.READ | uxk.Rights.WRITE)

    def _reopen(self, item: tuple[Arguments, Done]) -> None:
        ctx = self._ctx

        def opened(completion: uxk.Completion) -> None:
            if completion.status:
                item[1](completion.status, 0, b"")
                self._on_answers()
                return
            self.use(completion.result, completion.payload.decode())
            self._submit(item)

        try:
            ctx.open_device(self._device).then(opened)
        except uxk.RingFull:
            item[1](errno.EBUSY, 0, b"")

    def _on_completions(self, completions: list[uxk.Completion]) -> None:
        for completion in completions:
            item = self._pending.pop(completion.cid, None)
            if item is None:
                continue
            if completion.status == errno.EAGAIN:
                self._held.append(item)
                continue
            if completion.status in _GONE:
                self._stale = True
            item[1](completion.status, completion.result, completion.payload)
        if self._held:
            if any(completion.status != errno.EAGAIN for completion in completions):
                self._resume()
            else:
                self._retry_later()
        self._on_answers()

    def _resume(self) -> None:
        for _ in range(min(len(self._held), self._queue.room)):
            self._submit(self._held.popleft())

    def _retry_later(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._ctx.call_later_ns(RETRY_NS, self._retry, daemon=True)

    def _retry(self, _: object) -> None:
        self._retrying = False
        self._resume()
        if self._held:
            self._retry_later()
