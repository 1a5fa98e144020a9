"""Arena memory through capabilities: granted zeroed, shared by derivation, gone when it is taken back (R8, R20)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import trio

import uxk

PAGE = 4096
READ, WRITE = uxk.Rights.READ, uxk.Rights.WRITE


class Party(uxk.Extension):
    """The tests speak through ``Party.of[NAME]``; requests with a region are kept."""

    manifest = uxk.Manifest(
        name="party", capabilities=("device:*:submit",), restart=uxk.RestartPolicy(backoff_ns=10),
        budget=uxk.Budget(memory_bytes=64 * PAGE),
    )  # fmt: skip
    of: ClassVar[dict[str, uxk.Context]] = {}
    events: ClassVar[list[uxk.Event]] = []
    held: ClassVar[list[uxk.Request]] = []

    def setup(self, ctx: uxk.Context) -> None:
        Party.of[ctx.name] = ctx
        Party.events.clear()
        Party.held.clear()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Party.events.append(event)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        Party.held.extend(requests)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def parties(kernel: uxk.Kernel, *names: str) -> list[uxk.Context]:
    for name in names:
        await kernel.insmod(Party, instance=name)
    return [Party.of[name] for name in names]


def refused(ctx: uxk.Context, cap: int, number: int, *, writable: bool = False) -> None:
    with pytest.raises(uxk.CapabilityError) as caught:
        ctx.map(cap, writable=writable)
    assert caught.value.errno == number


def crash(ctx: uxk.Context) -> None:
    def explode(_: object) -> None:
        raise ValueError("boom")

    ctx.call_later_ns(0, explode)


async def test_memory_is_private_zeroed_and_gone_when_freed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        cap = (await ask(kernel, one.allocate(100))).result
        view = one.map(cap, writable=True)
        assert (len(view), bytes(view)) == (PAGE, bytes(PAGE))
        view[:6] = b"secret"
        refused(two, cap, errno.EBADF)
        assert (await ask(kernel, two.free(cap))).status == errno.EBADF
        assert (await ask(kernel, one.free(cap))).status == 0
        with pytest.raises(ValueError, match="released"):
            view[0]
        refused(one, cap, errno.ESTALE)
        assert (await ask(kernel, one.free(cap))).status == errno.ESTALE
        again = (await ask(kernel, two.allocate(100))).result
        assert bytes(two.map(again)) == bytes(PAGE)


async def test_a_read_only_mapping_cannot_be_written() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await parties(kernel, "one")
        cap = (await ask(kernel, one.allocate(PAGE))).result
        assert one.map(cap).readonly
        with pytest.raises(TypeError):
            one.map(cap)[0] = 1


async def test_a_derived_part_is_seen_by_the_other_until_it_is_revoked() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        cap = (await ask(kernel, one.allocate(2 * PAGE))).result
        one.map(cap, writable=True)[PAGE : PAGE + 5] = b"hello"
        derived = await ask(kernel, one.derive(cap, "two", READ, start=PAGE, length=10))
        assert derived.status == 0
        assert [(event.topic, event.name, event.cap) for event in Party.events] == [
            ("capability", "one", derived.result)
        ]
        window = two.map(derived.result)
        assert (len(window), bytes(window[:5])) == (10, b"hello")
        refused(two, derived.result, errno.EACCES, writable=True)
        assert (await ask(kernel, two.derive(derived.result, "one", READ))).status == errno.EACCES  # no GRANT
        assert (await ask(kernel, two.free(derived.result))).status == errno.EACCES
        assert (await ask(kernel, one.revoke(derived.result))).result == 1
        refused(two, derived.result, errno.ESTALE)
        with pytest.raises(ValueError, match="released"):  # what was mapped is unmapped
            window[0]
        assert bytes(one.map(cap)[PAGE : PAGE + 5]) == b"hello"


@pytest.mark.parametrize(("start", "length"), [(PAGE, 1), (0, PAGE + 1), (1, PAGE), (0, 0), ((1 << 63) - 1, 1)])
async def test_no_more_than_there_is_can_be_derived(start: int, length: int) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, _ = await parties(kernel, "one", "two")
        cap = (await ask(kernel, one.allocate(PAGE))).result
        assert (await ask(kernel, one.derive(cap, "two", READ, start=start, length=length))).status == errno.EACCES


async def test_a_region_travels_with_a_request_and_comes_back_with_the_answer() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        one, two = await parties(kernel, "one", "two")
        cap = (await ask(kernel, one.allocate(PAGE))).result
        device = (await ask(kernel, one.open_device("two"))).result
        reply = one.submit(device, uxk.Op.READ, region=cap, length=PAGE)
        await kernel.sleep_ns(0)
        (request,) = Party.held
        view = two.map(request.region, writable=True)
        view[:4] = b"done"
        two.complete(request)
        assert (await ask(kernel, reply)).status == 0
        refused(two, request.region, errno.ESTALE)
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert bytes(one.map(cap)[:4]) == b"done"


async def test_mappings_of_many_requests_do_not_pile_up() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await parties(kernel, "one")
        cap = (await ask(kernel, one.allocate(PAGE))).result
        for _ in range(5000):
            one.map(cap, writable=True)[0] = 1
        kept = [one.map(cap) for _ in range(100)]
        memory: Any = getattr(kernel._incarnations._map_region, "__self__")  # noqa: B009
        assert memory.mappings <= 200
        assert all(view[0] == 1 for view in kept)
        await ask(kernel, one.free(cap))
        for view in kept:
            with pytest.raises(ValueError, match="released"):
                view[0]


async def test_kept_memory_survives_a_crash_and_ends_with_the_module() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await parties(kernel, "one")
        module = kernel.module("one")
        cap = (await ask(kernel, one.allocate(2 * PAGE, keep="medium"))).result
        lost = (await ask(kernel, one.allocate(PAGE))).result
        one.map(cap, writable=True)[:4] = b"data"
        one.map(lost, writable=True)[:4] = b"lost"
        crash(one)
        await kernel.sleep_ns(5)
        assert module.account.arena_bytes == 2 * PAGE
        await kernel.run()
        one = Party.of["one"]
        refused(one, cap, errno.ESTALE)
        kept = (await ask(kernel, one.allocate(PAGE, keep="medium"))).result
        assert bytes(one.map(kept)[:4]) == b"data"
        assert module.account.arena_bytes == 2 * PAGE
        assert (await ask(kernel, one.allocate(3 * PAGE, keep="medium"))).status == errno.EINVAL
        fresh = (await ask(kernel, one.allocate(PAGE))).result
        assert bytes(one.map(fresh)[:4]) == bytes(4)
        await kernel.rmmod("one")
        assert kernel.machine.arena.statistics().used_bytes == 0
        (one,) = await parties(kernel, "one")
        new = (await ask(kernel, one.allocate(2 * PAGE, keep="medium"))).result
        assert bytes(one.map(new)) == bytes(2 * PAGE)


async def test_a_view_of_a_dead_incarnation_sees_nothing_of_the_next() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await parties(kernel, "one")
        cap = (await ask(kernel, one.allocate(PAGE, keep="medium"))).result
        view = one.map(cap, writable=True)
        crash(one)
        await kernel.run()
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
