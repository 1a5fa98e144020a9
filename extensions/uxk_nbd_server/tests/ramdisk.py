"""A disk in memory as an author would write it: what the server's tests run against."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated

import uxk
from uxk.uapi.blk import BlockLimits, Extent, pack_extents, properties_of


class RamParams(uxk.Params):
    """What tests set."""

    size: Annotated[int, uxk.param(ge=512, unit="bytes")] = 64 << 20
    block: Annotated[int, uxk.param(ge=512)] = 512
    transfer: Annotated[int, uxk.param(ge=512, unit="bytes")] = 128 << 10
    span: Annotated[int, uxk.param(ge=0, unit="bytes")] = 1 << 30
    latency_ns: Annotated[int, uxk.param(ge=0, unit="ns", writable=True)] = 0
    fail: Annotated[int, uxk.param(ge=0, writable=True, help="errno of everything")] = 0
    record: Annotated[bool, uxk.param(help="publish opcode:offset:length:flags of the last requests")] = False
    write_cache: bool = False
    fua: bool = False
    hold: Annotated[bool, uxk.param(writable=True, help="answer no FLUSH until this is N")] = False
    inline: Annotated[bool, uxk.param(help="data of reads come with completions")] = False


class RamDisk(uxk.Extension[RamParams]):
    """Keeps what is written, and knows which blocks ever were."""

    manifest = uxk.Manifest(
        name="nbd_ram", kind="driver", driver_class="block", params=RamParams, fate="fail",
        budget=uxk.Budget(queue_depth=256),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.data = memoryview(bytearray(self.params.size))
        self.used = bytearray(self.params.size // self.params.block)
        self.log: list[str] = []
        self.held: list[uxk.Request] = []
        self.publish(ctx, self.params.size)

    def publish(self, ctx: uxk.Context, size: int) -> None:
        params = self.params
        limits = BlockLimits(
            capacity_bytes=size, logical_block_bytes=params.block, max_transfer_bytes=params.transfer,
            max_discard_bytes=params.span, max_write_zeroes_bytes=params.span, write_cache=int(params.write_cache),
            fua=int(params.fua),
        )  # fmt: skip
        ctx.add_device(ctx.device, **properties_of(limits))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "store" and event.name == "size":
            self.publish(ctx, int(event.value))
        elif event.topic == "store" and event.name == "gone":
            ctx.remove_device(ctx.device)
        elif event.topic == "param" and not self.params.hold:
            held, self.held = self.held, []
            self.serve_all(ctx, held)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.params.hold:
            self.held += [request for request in requests if request.opcode == uxk.Op.FLUSH]
            requests = [request for request in requests if request.opcode != uxk.Op.FLUSH]
        if self.params.latency_ns:
            ctx.call_later_ns(self.params.latency_ns, lambda _: self.serve_all(ctx, requests))
        else:
            self.serve_all(ctx, requests)

    def serve_all(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            status, payload = self.serve(ctx, request)
            ctx.complete(request, payload, status=status, result=0 if status else request.length)

    def serve(self, ctx: uxk.Context, request: uxk.Request) -> tuple[int, bytes]:
        op, start, length = request.opcode, request.offset, request.length
        end = start + length
        if self.params.record:
            self.log.append(f"{op}:{start}:{length}:{request.flags}")
            ctx.set_attribute("log", " ".join(self.log[-60:]))
        if self.params.fail:
            return self.params.fail, b""
        if end > len(self.data) or start % self.params.block or length % self.params.block:
            return errno.EINVAL, b""
        if op in (uxk.Op.READ, uxk.Op.WRITE) and length > self.params.transfer:
            return errno.EINVAL, b""
        block = self.params.block
        match op:
            case uxk.Op.READ if self.params.inline:
                return 0, bytes(self.data[start:end])
            case uxk.Op.READ:
                target = ctx.map(request.region, writable=True)
                target[request.buffer : request.buffer + length] = self.data[start:end]
            case uxk.Op.WRITE:
                self.data[start:end] = ctx.map(request.region)[request.buffer : request.buffer + length]
                self.used[start // block : end // block] = b"\1" * (length // block)
            case uxk.Op.DISCARD | uxk.Op.WRITE_ZEROES:
                self.data[start:end] = bytes(length)
                if op == uxk.Op.DISCARD or not request.flags & 4:
                    self.used[start // block : end // block] = bytes(length // block)
            case uxk.Op.EXTENTS:
                return 0, pack_extents(self.extents(start // block, end // block))
            case uxk.Op.FLUSH:
                pass
            case _:
                return errno.EOPNOTSUPP, b""
        return 0, b""

    def extents(self, first: int, last: int) -> list[Extent]:
        found: list[Extent] = []
        at = first
        while at < last and len(found) < 1000:
            used = self.used[at]
            until = self.used.find(not used, at, last)
            until = last if until < 0 else until
            found.append(Extent((until - at) * self.params.block, hole=not used, zero=not used))
            at = until
        return found
