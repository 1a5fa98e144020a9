"""The end of a kernel: what is in flight is ended and told, and the user's own exceptions stay what they are."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

import uxk
from uxk.errors import UxkError

MS = 1_000_000


class Mute(uxk.Extension):
    """Never answers."""

    manifest = uxk.Manifest(name="end_mute", watchdog=uxk.Watchdog(timeouts_max=1000))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        pass


class Waiting(uxk.Extension):
    """Ready after 5 ms."""

    manifest = uxk.Manifest(name="end_waiting", ready="explicit")

    def setup(self, ctx: uxk.Context) -> None:
        ctx.call_later_ns(5 * MS, lambda _: ctx.ready())


async def test_leaving_with_everything_in_flight() -> None:
    ended: list[str] = []

    class Task(uxk.Extension):
        manifest = uxk.Manifest(name="end_task")

        async def run(self, ctx: uxk.Context) -> None:
            try:
                await ctx.sleep_ns(10**15)
            finally:
                ended.append("task")

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            ended.append(reason)

    _keep = [Mute, Task, Waiting]
    failed: list[str] = []

    async def wait_for(what: Callable[[], Any]) -> None:
        try:
            await what()
        except UxkError as exc:
            failed.append(exc.errno_name)

    async with trio.open_nursery() as outer:
        async with uxk.Kernel() as kernel:
            mute = await kernel.modprobe("end_mute")
            task = await kernel.modprobe("end_task")
            outer.start_soon(wait_for, kernel.run)
            outer.start_soon(wait_for, lambda: kernel.run_until_ns(10**16))
            outer.start_soon(wait_for, mute.submit)
            outer.start_soon(wait_for, lambda: kernel.modprobe("end_waiting"))
            await kernel.sleep_ns(MS)
        assert mute.account.holdings() == task.account.holdings() == {}
        assert ended == ["shutdown", "task"] and kernel.agents == {} and len(kernel.machine.caps) == 0
    # the request was answered with ENODEV; the others had to be told that there is no kernel any more
    assert sorted(failed) in (["ENODEV"] + ["ESHUTDOWN"] * 3, ["ESHUTDOWN"] * 4)
    for use in (kernel.run, lambda: kernel.sleep_ns(1), lambda: kernel.modprobe("end_waiting")):
        with pytest.raises(UxkError, match="not running"):
            await use()
    assert kernel.agents == {}


async def test_a_kernel_is_used_between_boot_and_shutdown_and_boots_once() -> None:
    _keep = Mute
    kernel = uxk.Kernel()
    for _ in range(2):
        for use in (kernel.run, lambda: kernel.run_until_ns(5), lambda: kernel.modprobe("end_mute")):
            with pytest.raises(UxkError, match="not running") as caught:
                await use()
            assert caught.value.errno == errno.ESHUTDOWN
        if not kernel.kmsg.records():
            async with kernel:
                await kernel.modprobe("end_mute")
    assert kernel.lsmod() == []
    with pytest.raises(UxkError, match="boots once"):
        async with kernel:
            pass


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("k"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_in_the_body_reaches_the_user_as_it_is(error: BaseException) -> None:
    class Task(uxk.Extension):
        manifest = uxk.Manifest(name="end_bodytask")

        async def run(self, ctx: uxk.Context) -> None:
            await trio.sleep_forever()

    async def main() -> None:
        async with uxk.Kernel() as kernel:
            await kernel.modprobe("end_bodytask")
            raise error

    with pytest.raises(type(error)) as caught:
        trio.run(main)
    assert caught.value is error


def test_a_group_of_the_users_own_stays_a_group() -> None:
    async def main() -> None:
        async with uxk.Kernel():
            raise ExceptionGroup("mine", [ValueError("one")])

    with pytest.raises(ExceptionGroup, match="mine") as caught:
        trio.run(main)
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError]


def test_an_exception_of_a_scheduled_callback_reaches_the_user_as_it_is() -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError("in a workload")

    async def main() -> None:
        async with uxk.Kernel() as kernel:
            kernel.call_at_ns(5, fail)
            await kernel.run()

    with pytest.raises(ZeroDivisionError, match="in a workload"):
        trio.run(main)


@pytest.mark.parametrize("where", ["setup", "on_batch", "run", "timer", "on_stop", "__init__"])
def test_keyboard_interrupt_passes_to_the_user(where: str) -> None:
    class Interrupted(uxk.Extension):
        manifest = uxk.Manifest(name="end_interrupted")

        def __init__(self) -> None:
            if where == "__init__":
                raise KeyboardInterrupt

        def setup(self, ctx: uxk.Context) -> None:
            if where == "setup":
                raise KeyboardInterrupt
            if where == "timer":
                ctx.call_later_ns(1, self.fire)

        def fire(self, _: Any) -> None:
            raise KeyboardInterrupt

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            if where == "on_batch":
                raise KeyboardInterrupt
            for request in requests:
                ctx.complete(request)

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            if where == "on_stop":
                raise KeyboardInterrupt

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(1)
            if where == "run":
                raise KeyboardInterrupt

    async def main() -> None:
        async with uxk.Kernel() as kernel:
            module = await kernel.modprobe("end_interrupted")
            await module.submit()
            await kernel.run()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_an_outer_cancellation_passes_through() -> None:
    _keep = Waiting
    kernel = uxk.Kernel()
    with trio.CancelScope() as scope:
        async with kernel:
            await kernel.modprobe("end_waiting")
            scope.cancel()
            await kernel.run_until_ns(10**12)
    assert scope.cancelled_caught and kernel.agents == {}
