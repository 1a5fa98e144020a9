"""Authority as extensions meet it: nothing without asking, nothing more than was given, nothing after revoke."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.core.sysctl import Sysctl
from uxk.uapi.ids import CapId

R = uxk.Rights
CALM = uxk.Watchdog(request_timeout_ns=1000, timeouts_max=1_000_000)


class Driver(uxk.Extension):
    manifest = uxk.Manifest(name="driver", restart=uxk.RestartPolicy(backoff_ns=100))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.payload == b"crash":
                raise ValueError("boom")
            ctx.complete(request, request.payload)


class Client(uxk.Extension):
    """The tests speak through ``Client.of[NAME]``."""

    manifest = uxk.Manifest(
        name="client",
        capabilities=("device:driver0:submit,grant", "lock:a*:lock,grant", "sysctl:vm/*:write"),
        watchdog=CALM,
    )
    of: ClassVar[dict[str, uxk.Context]] = {}
    events: ClassVar[list[uxk.Event]] = []

    def setup(self, ctx: uxk.Context) -> None:
        Client.of[ctx.name] = ctx
        Client.events.clear()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Client.events.append(event)

    async def run(self, ctx: uxk.Context) -> None:
        async for batch in ctx.batches():
            for request in batch:
                ctx.complete(request, b"from " + ctx.name.encode())


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def clients(kernel: uxk.Kernel, *names: str) -> list[uxk.Context]:
    for name in names:
        await kernel.insmod(Client, instance=name)
    return [Client.of[name] for name in names]


@pytest.mark.parametrize(
    ("kind", "target", "rights", "number"),
    [
        ("device", "other0", R.SUBMIT, errno.ENODEV),
        ("device", "stranger0", R.SUBMIT, errno.EACCES),
        ("device", "driver0", R.READ, errno.EACCES),
        ("lock", "b", R.LOCK, errno.EACCES),
        ("lock", "a", R.NONE, errno.EINVAL),
        ("lock", "a*", R.LOCK | R.WRITE, errno.EACCES),
        ("lock", "*", R.LOCK, errno.EACCES),
        ("lock", "", R.LOCK, errno.EACCES),
        ("lock", "a/../b", R.LOCK, errno.EACCES),
        ("kmsg", "*", R.READ, errno.EACCES),
        ("queue", "one", R.SUBMIT, errno.EINVAL),
        ("bogus", "x", R.READ, errno.EINVAL),
        ("snapshot", "x", R.READ, errno.EACCES),
        ("arena", "0", R.READ, errno.EINVAL),
    ],
)
async def test_what_the_manifest_did_not_ask_for_is_refused(kind: str, target: str, rights: R, number: int) -> None:
    class Stranger(uxk.Extension):
        manifest = uxk.Manifest(name="stranger")

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        await kernel.insmod(Stranger)
        (one,) = await clients(kernel, "one")
        answer = await ask(kernel, one.open(kind, target, rights))
        assert answer.status == number, answer.payload
        assert kernel.machine.caps.count(kernel.module("one").id) == 4  # type: ignore[arg-type]  # its queue and the manifest's


async def test_unknown_bits_of_rights_are_refused() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await clients(kernel, "one")
        bad: Any = 1 << 20
        assert (await ask(kernel, one.open("lock", "a", bad))).status == errno.EINVAL


async def test_a_sysctl_is_written_only_where_the_capability_reaches() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        kernel.sysctl.register(Sysctl("vm/swappiness", 60, minimum=0, maximum=200))
        kernel.sysctl.register(Sysctl("kernel/panic", 0))
        (one,) = await clients(kernel, "one")
        assert (await ask(kernel, one.write("/proc/sys/vm/swappiness", "10"))).status == 0
        assert kernel.sysfs.read("/proc/sys/vm/swappiness") == "10"
        assert (await ask(kernel, one.write("/proc/sys/vm/swappiness", "201"))).status == errno.EINVAL
        assert (await ask(kernel, one.write("/proc/sys/kernel/panic", "1"))).status == errno.EACCES
        for path in ("/proc/sys/kernel/x", "/sys/kernel/seed", "/proc/sys/vm/../kernel/x", "/proc/sys/vm/../../x"):
            assert (await ask(kernel, one.write(path, "1"))).status in (errno.EACCES, errno.ENOENT, errno.EINVAL), path


async def test_a_derived_device_works_for_the_other_until_it_is_revoked() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        one, two = await clients(kernel, "one", "two")
        mine = (await ask(kernel, one.open("device", "driver0", R.SUBMIT | R.GRANT))).result
        given = (await ask(kernel, one.derive(mine, "two", R.SUBMIT))).result
        assert Client.events[-1].cap == given
        assert (await ask(kernel, two.submit(given, payload=b"x"))).payload == b"x"
        assert (await ask(kernel, two.submit(mine))).status == errno.EBADF  # another's number
        assert (await ask(kernel, one.submit(given))).status == errno.EBADF  # given away is not held
        assert (await ask(kernel, two.derive(given, "one", R.SUBMIT))).status == errno.EACCES
        assert (await ask(kernel, two.revoke(mine))).status == errno.EBADF
        assert (await ask(kernel, one.derive(mine, "two", R.SUBMIT | R.READ))).status == errno.EACCES
        assert (await ask(kernel, one.derive(mine, "nobody", R.SUBMIT))).status == errno.ESRCH
        assert (await ask(kernel, one.revoke(given))).result == 1
        assert (await ask(kernel, two.submit(given))).status == errno.ESTALE
        assert (await ask(kernel, one.submit(mine, payload=b"y"))).payload == b"y"


async def test_revoking_takes_all_that_was_derived() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        one, two, three = await clients(kernel, "one", "two", "three")
        mine = (await ask(kernel, one.open("device", "driver0", R.SUBMIT | R.GRANT))).result
        second = (await ask(kernel, one.derive(mine, "two", R.SUBMIT | R.GRANT))).result
        third = (await ask(kernel, two.derive(second, "three", R.SUBMIT))).result
        assert (await ask(kernel, one.revoke(mine))).result == 3
        for ctx, cap in ((one, mine), (two, second), (three, third)):
            assert (await ask(kernel, ctx.submit(cap))).status == errno.ESTALE
        again = await ask(kernel, one.open_device("driver0"))  # the manifest's own grant is not touched
        assert again.status == 0


async def test_when_the_giver_dies_what_it_gave_is_void() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        one, two = await clients(kernel, "one", "two")
        mine = (await ask(kernel, one.open("device", "driver0", R.SUBMIT | R.GRANT))).result
        given = (await ask(kernel, one.derive(mine, "two", R.SUBMIT))).result
        await kernel.rmmod("one")
        assert (await ask(kernel, two.submit(given))).status == errno.ESTALE


async def test_a_device_whose_driver_was_unloaded_is_stale_and_can_be_opened_anew() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        (one,) = await clients(kernel, "one")
        cap = (await ask(kernel, one.open_device("driver0"))).result
        with pytest.raises(uxk.InUse, match="one"):  # open is enough, nothing need have been submitted
            await kernel.rmmod("driver")
        for _ in range(4):  # it dies more often than its policy allows, and stays down
            module = kernel.module("driver")
            assert (await module.submit(b"crash", check=False)).status == errno.EIO
            await kernel.run()
        assert "driver" not in kernel.agents
        assert (await ask(kernel, one.submit(cap))).status == errno.ESTALE
        assert (await ask(kernel, one.open_device("driver0"))).status == errno.ENODEV
        await kernel.insmod(Driver)
        assert (await ask(kernel, one.submit(cap))).status == errno.ESTALE
        fresh = await ask(kernel, one.open_device("driver0"))  # the manifest still asks for it
        assert fresh.status == 0
        assert (await ask(kernel, one.submit(fresh.result, payload=b"x"))).payload == b"x"


async def test_a_device_whose_driver_restarts_fails_cleanly_and_works_again() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        (one,) = await clients(kernel, "one")
        cap = (await ask(kernel, one.open_device("driver0"))).result
        assert (await ask(kernel, one.submit(cap, payload=b"crash"))).status == errno.EIO
        assert (await ask(kernel, one.submit(cap))).status == errno.ENODEV
        await kernel.run()
        assert (await ask(kernel, one.submit(cap, payload=b"x"))).payload == b"x"


async def test_a_client_that_gave_its_capability_up_holds_the_driver_no_longer() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Driver)
        (one,) = await clients(kernel, "one")
        cap = (await ask(kernel, one.open_device("driver0"))).result
        await ask(kernel, one.submit(cap))
        with pytest.raises(uxk.InUse, match="one"):
            await kernel.rmmod("driver")
        await ask(kernel, one.revoke(cap))
        await kernel.rmmod("driver")


async def test_an_instance_without_its_queue_capability_is_not_heard() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await clients(kernel, "one")
        module, agent = kernel.module("one"), kernel.agents["one"]
        assert (await module.submit()).payload == b"from one"
        kernel.machine.caps.revoke(CapId(agent.queue_cap))
        one.log("unheard")
        with pytest.raises(uxk.RequestError) as caught:
            await module.submit()
        assert caught.value.errno == errno.ETIMEDOUT
        assert "unheard" not in [record.text for record in kernel.kmsg.records()]
        assert module.account.rejects["queue_revoked"] >= 2
        assert [record for record in kernel.kmsg.records(source="one") if record.text.startswith("ESTALE")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "derive", "revoke", "free", "acquire", "pin", "map"]), st.integers(0, 1 << 63)
        ),
        max_size=15,
    )
)
def test_guessed_numbers_open_nothing(guesses: list[tuple[str, int]]) -> None:
    """Numbers of others, of the dead and of nobody: always EBADF, ESTALE or EACCES, and nothing changes hands."""

    async def main() -> None:
        async with uxk.Kernel(seed=1) as kernel:
            await kernel.insmod(Driver)
            one, two = await clients(kernel, "one", "two")
            mine = (await ask(kernel, two.open("device", "driver0", R.SUBMIT | R.GRANT))).result
            memory = (await ask(kernel, two.allocate(4096))).result
            held = {cap.id for cap in kernel.machine.caps.held(kernel.module("two").id)}  # type: ignore[arg-type]
            for what, guess in guesses:
                cap = sorted(held)[guess % len(held)] if guess & 1 else guess >> 1
                if what == "map":
                    with pytest.raises(uxk.UxkError):
                        one.map(cap)
                    continue
                reply = {
                    "submit": lambda cap=cap: one.submit(cap), "derive": lambda cap=cap: one.derive(cap, "one", R.ALL),
                    "revoke": lambda cap=cap: one.revoke(cap), "free": lambda cap=cap: one.free(cap),
                    "acquire": lambda cap=cap: one.acquire(cap), "pin": lambda cap=cap: one.pin(cap),
                }[what]()  # fmt: skip
                assert (await ask(kernel, reply)).status in (errno.EBADF, errno.ESTALE, errno.EACCES)
            assert held == {cap.id for cap in kernel.machine.caps.held(kernel.module("two").id)}  # type: ignore[arg-type]
            assert (await ask(kernel, two.submit(mine, payload=b"x"))).payload == b"x"
            assert len(two.map(memory)) == 4096

    trio.run(main)
