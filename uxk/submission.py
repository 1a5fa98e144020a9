"""Submission from extensions with as little as possible for each request: :meth:`uxk.Context.queue`.

A request costs its entry and a place in the table of outstanding commands; there is no object to hold its answer.
Answers come to one callback, a batch at a time, in the order in which the kernel gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from uxk.errors import RingFull
from uxk.uapi.entries import Completion, Submit

if TYPE_CHECKING:
    from uxk.context import Context


Plain: TypeAlias = tuple[int, int, int, int, int, int]
"""A request for :meth:`SubmissionQueue.submit_batch`: opcode, offset, length, region, buffer, flags."""


class SubmissionQueue:
    """Requests to the device that ``cap`` names.  Its depth is that of the instance's up queue, shared by all."""

    __slots__ = ("_ctx", "cap", "on_completions")

    def __init__(self, ctx: Context, cap: int, on_completions: Callable[[list[Completion]], object]) -> None:
        self._ctx = ctx
        self.cap = cap
        self.on_completions = on_completions

    @property
    def room(self) -> int:
        """How many more requests can be staged now."""
        ctx = self._ctx
        return ctx._depth - max(len(ctx._pending), len(ctx._up))

    def submit(
        self, opcode: int, offset: int = 0, length: int = 0, payload: bytes = b"", region: int = 0, buffer: int = 0,
        flags: int = 0,
    ) -> int:  # fmt: skip
        """Stages one request; its answer carries the number that is returned.

        ``offset`` and ``length`` are the device's, in bytes; data travel in ``payload``, or lie in ``region``, an
        arena capability, from byte ``buffer`` on.  Raises :class:`~uxk.errors.RingFull` (EAGAIN) without :attr:`room`.
        """
        ctx = self._ctx
        pending, up = ctx._pending, ctx._up
        if len(pending) >= ctx._depth or len(up) >= ctx._depth:
            raise RingFull(f"{ctx.name}: {len(pending)} commands are outstanding, {len(up)} staged, of {ctx._depth}")
        ctx._cid = cid = ctx._cid + 1
        up.append(Submit(cid, self.cap, opcode, payload, offset, length, region, False, buffer, flags))
        pending[cid] = self
        if ctx._inbox:
            ctx._answer_pings()
        if ctx._on_output is not None:
            ctx._on_output()
        return cid

    def submit_batch(self, requests: Sequence[Plain]) -> int:
        """Stages requests whose data lie in arena memory, all or none; the first's number, the others' follow it.

        Raises :class:`~uxk.errors.RingFull` (EAGAIN) with less :attr:`room` than that.
        """
        ctx, cap, count = self._ctx, self.cap, len(requests)
        if count > self.room:
            raise RingFull(f"{ctx.name}: {count} requests, room for {self.room} of {ctx._depth}")
        first = ctx._cid + 1
        ctx._cid += count
        ctx._up += [
            Submit(cid, cap, opcode, b"", offset, length, region, False, buffer, flags)
            for cid, (opcode, offset, length, region, buffer, flags) in enumerate(requests, first)
        ]
        ctx._pending.update(dict.fromkeys(range(first, first + count), self))
        if ctx._inbox:
            ctx._answer_pings()
        if ctx._on_output is not None:
            ctx._on_output()
        return first
