"""sysfs as extensions write it and hear of it: attributes, parameters, devices, kmsg as a stream."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import pytest
import trio

import uxk
from uxk.kernel.publish import ATTRIBUTES_MAX
from uxk.limits import DEVICES_PER_INSTANCE_MAX, SHOW_MAX_BYTES


class Knobs(uxk.Params):
    depth: Annotated[int, uxk.param(ge=1, le=64, writable=True, help="how deep")] = 8
    name: Annotated[str, uxk.param(max_length=10, writable=True)] = "x"
    fixed: int = 3


class Puppet(uxk.Extension[Knobs]):
    """The tests speak through ``Puppet.of[NAME]``; events are kept."""

    manifest = uxk.Manifest(
        name="puppet", params=Knobs, capabilities=("kmsg:read", "sysfs:/sys/module/puppet/parameters/*:write"),
        restart=uxk.RestartPolicy(backoff_ns=100), budget=uxk.Budget(log_burst=1000),
    )  # fmt: skip
    of: ClassVar[dict[str, uxk.Context]] = {}
    last: ClassVar[uxk.Extension[Knobs]]
    events: ClassVar[list[uxk.Event]] = []

    def setup(self, ctx: uxk.Context) -> None:
        Puppet.of[ctx.name] = ctx
        Puppet.last = self
        Puppet.events.clear()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        Puppet.events.append(event)
        if event.value == b"crash":
            raise ValueError("boom")

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


BASE = "/sys/module/puppet"


async def boot(kernel: uxk.Kernel, **params: Any) -> uxk.Context:
    await kernel.insmod(Puppet, **params)
    return Puppet.of["puppet"]


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


def bugs(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if "bug" in record.fields]


def failing(kernel: uxk.Kernel, path: str, value: str | None = None) -> int:
    with pytest.raises(uxk.UxkError) as caught:
        kernel.sysfs.read(path) if value is None else kernel.sysfs.write(path, value)
    return caught.value.errno


# --- attributes ---


async def test_readers_get_the_last_value_and_pollers_every_change() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("temperature", 20)
        await kernel.sleep_ns(0)
        path = f"{BASE}/attributes/temperature"
        changes: list[str] = []
        kernel.sysfs.poll(path, lambda: changes.append(kernel.sysfs.read(path)))
        for value in (20, 21, 21, 22):
            ctx.set_attribute("temperature", value)
            await kernel.sleep_ns(0)
        assert (kernel.sysfs.read(path), changes) == ("22", ["21", "22"])
        assert kernel.sysfs.stat(path).mode == 0o444
        assert failing(kernel, path, "1") in (errno.EACCES, errno.EPERM)


async def test_a_write_arrives_as_an_event_and_the_extension_decides() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("knob", "old", writable=True)
        await kernel.sleep_ns(0)
        path = f"{BASE}/attributes/knob"
        assert kernel.sysfs.stat(path).mode == 0o644
        kernel.sysfs.write(path, "new\n")
        assert kernel.sysfs.read(path) == "old"
        await kernel.sleep_ns(0)
        assert [(event.topic, event.name, event.value) for event in Puppet.events] == [("store", "knob", b"new")]


async def test_more_writes_than_its_queue_holds_are_eagain() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("knob", "old", writable=True)
        await kernel.sleep_ns(0)
        for _ in range(64):
            kernel.sysfs.write(f"{BASE}/attributes/knob", "x")
        assert failing(kernel, f"{BASE}/attributes/knob", "x") == errno.EAGAIN
        assert failing(kernel, f"{BASE}/parameters/depth", "9") == errno.EAGAIN
        assert kernel.sysfs.read(f"{BASE}/parameters/depth") == "8"  # refused means not done
        await kernel.sleep_ns(0)
        assert len(Puppet.events) == 64


def paths(kernel: uxk.Kernel) -> set[str]:
    return {path for path, _ in kernel.sysfs.walk("/")}


NAMES = ["", ".", "..", "a/b", "../../escape", "\0", "new\nline", "x" * 55, "é" * 55, "x" * 56, "~" * 20, " ", "-"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
async def test_no_name_of_an_attribute_leaves_its_folder(name: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        empty = paths(kernel)
        ctx = await boot(kernel)
        before = paths(kernel)
        ctx.set_attribute(name, "v", writable=True)
        await kernel.sleep_ns(0)
        assert all(path.startswith(f"{BASE}/attributes") for path in paths(kernel) - before)
        assert bugs(kernel) == []
        await kernel.rmmod("puppet")
        assert paths(kernel) == empty


@pytest.mark.parametrize(
    "value",
    ["", "x" * SHOW_MAX_BYTES, "é" * SHOW_MAX_BYTES, "a\nb\n", "\0\x1b[2J", "\u2028"],
    ids=lambda v: repr(v[:6]),
)
async def test_any_value_can_be_read_without_a_bug(value: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("value", value, writable=True)
        ctx.add_device("extra", **{f"key{n}": value for n in range(15)})
        await kernel.sleep_ns(0)
        for path in (f"{BASE}/attributes/value", "/sys/devices/virtual/misc/extra/uevent"):
            if kernel.sysfs.exists(path):
                assert len(kernel.sysfs.read(path).encode()) <= SHOW_MAX_BYTES
        kernel.sysfs.render("/", values=True)
        assert bugs(kernel) == []


async def test_a_property_cannot_pose_as_another_line_of_the_uevent() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        reply = ctx.add_device("extra", colour="red\nDRIVER=forged")
        await kernel.sleep_ns(0)
        assert reply.completion is not None
        if reply.completion.status == 0:
            assert "DRIVER=forged" not in kernel.sysfs.read("/sys/devices/virtual/misc/extra/uevent").splitlines()


async def test_attributes_and_devices_are_bounded() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        module = kernel.module("puppet")
        statuses: list[int] = []
        for n in range(ATTRIBUTES_MAX + 10):
            ctx.set_attribute(f"a{n}", n)
            statuses.append((await ask(kernel, ctx.add_device(f"d{n}"))).status)
        assert len(kernel.sysfs.listdir(f"{BASE}/attributes")) == ATTRIBUTES_MAX
        assert module.account.rejects["enospc"] >= 10
        assert len(module.devices) == DEVICES_PER_INSTANCE_MAX
        assert set(statuses) == {0, errno.ENOSPC}


async def test_a_crash_withdraws_attributes_and_a_store_kills_only_its_target() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("knob", "old", writable=True)
        await kernel.sleep_ns(0)
        woken: list[int] = []
        kernel.sysfs.poll(f"{BASE}/attributes/knob", lambda: woken.append(1))
        kernel.sysfs.write(f"{BASE}/attributes/knob", "crash")
        await kernel.sleep_ns(0)
        assert failing(kernel, f"{BASE}/attributes/knob") == errno.ENOENT
        assert woken
        await kernel.run()
        Puppet.of["puppet"].set_attribute("knob", "again")
        await kernel.sleep_ns(0)
        assert kernel.sysfs.read(f"{BASE}/attributes/knob") == "again"


# --- parameters ---


async def test_writable_parameters_arrive_and_update_the_extensions_own() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await boot(kernel, depth=4)
        assert kernel.sysfs.read(f"{BASE}/parameters/depth") == "4"
        kernel.sysfs.write(f"{BASE}/parameters/depth", "16")
        kernel.sysfs.write(f"{BASE}/parameters/name", "zwölf")
        assert kernel.sysfs.read(f"{BASE}/parameters/depth") == "16"
        await kernel.sleep_ns(0)
        assert [(event.topic, event.name) for event in Puppet.events] == [("param", "depth"), ("param", "name")]
        assert Puppet.last.params == Knobs(depth=16, name="zwölf")
        for name, value in (("depth", "0"), ("depth", "x"), ("depth", ""), ("depth", "1" * 400), ("name", "x" * 11)):
            assert failing(kernel, f"{BASE}/parameters/{name}", value) == errno.EINVAL, (name, value)
        assert failing(kernel, f"{BASE}/parameters/fixed", "4") in (errno.EACCES, errno.EPERM)
        assert kernel.module("puppet").params == Puppet.last.params
        assert bugs(kernel) == []


async def test_parameters_written_survive_a_restart() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        ctx.set_attribute("knob", "", writable=True)
        await kernel.sleep_ns(0)
        kernel.sysfs.write(f"{BASE}/parameters/depth", "16")
        kernel.sysfs.write(f"{BASE}/attributes/knob", "crash")
        await kernel.sleep_ns(10)
        kernel.sysfs.write(f"{BASE}/parameters/name", "down")  # while nobody is there to be told
        await kernel.run()
        assert Puppet.last.params == Knobs(depth=16, name="down")


async def test_an_extension_writes_what_its_capability_covers_and_reads_what_all_may() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        assert (await ask(kernel, ctx.write(f"{BASE}/parameters/depth", "5"))).status == 0
        assert (await ask(kernel, ctx.read(f"{BASE}/parameters/depth"))).payload == b"5"
        assert (await ask(kernel, ctx.write(f"{BASE}/parameters/depth", "x"))).status == errno.EINVAL
        assert (await ask(kernel, ctx.write(f"{BASE}/parameters/../parameters/depth", "5"))).status in (
            0,
            errno.EINVAL,
            errno.EACCES,
            errno.ENOENT,
        )
        assert (await ask(kernel, ctx.write(f"{BASE}/version", "5"))).status == errno.EACCES
        assert (await ask(kernel, ctx.read("/sys/none"))).status == errno.ENOENT
        assert (await ask(kernel, ctx.read("/sys"))).status == errno.EISDIR


# --- devices ---


async def test_devices_come_and_go_with_their_class() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        number = (await ask(kernel, ctx.add_device("extra", colour="red"))).result
        assert number == 1
        assert (await ask(kernel, ctx.add_device("extra"))).result == 1
        assert "COLOUR=red" in kernel.sysfs.read("/sys/class/misc/extra/uevent").splitlines()
        assert kernel.module("puppet").account.devices == 2
        assert (await ask(kernel, ctx.remove_device("extra"))).status == 0
        assert (await ask(kernel, ctx.remove_device("extra"))).status == errno.ENODEV
        for name in ("a/b", "..", "", "é"):
            assert (await ask(kernel, ctx.add_device(name))).status == errno.EINVAL
        await kernel.insmod(Puppet, instance="other")
        assert (await ask(kernel, Puppet.of["other"].remove_device("puppet0"))).status == errno.EACCES
        assert (await ask(kernel, Puppet.of["other"].add_device("puppet0"))).status == errno.EEXIST


# --- kmsg as a stream ---


async def test_others_records_arrive_as_events_and_ones_own_do_not() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        ctx = await boot(kernel)
        assert (await ask(kernel, ctx.follow_kmsg(max_level=4))).status == 0
        ctx.log("my own", level=3)
        kernel.kmsg.log(kernel.now_ns, 6, "disk", "too quiet")
        kernel.kmsg.log(kernel.now_ns, 3, "disk", "bad sector", {"lba": 7})
        await kernel.sleep_ns(0)
        (event,) = Puppet.events
        record = json.loads(event.value)
        assert (event.topic, event.name, record["text"], record["level"], record["fields"]) == (
            "kmsg",
            "disk",
            "bad sector",
            "err",
            {"lba": 7},
        )


async def test_two_that_answer_each_others_lines_do_not_hold_the_kernel() -> None:
    class Parrot(uxk.Extension):
        manifest = uxk.Manifest(name="parrot", capabilities=("kmsg:read",))

        def setup(self, ctx: uxk.Context) -> None:
            ctx.follow_kmsg()

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            ctx.log(f"{event.name} said something")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request)

    async with uxk.Kernel(seed=1) as kernel:
        one = await kernel.insmod(Parrot, instance="one")
        two = await kernel.insmod(Parrot, instance="two")
        kernel.kmsg.log(0, 6, "x", "start")
        await kernel.run()
        assert kernel.now_ns < 10**9
        assert len(kernel.kmsg.records(source="one")) < 200
        await one.submit()
        await two.submit()


async def test_following_without_the_capability_is_eacces() -> None:
    class Nosy(uxk.Extension):
        manifest = uxk.Manifest(name="nosy")
        got: ClassVar[list[int]] = []

        def setup(self, ctx: uxk.Context) -> None:
            ctx.follow_kmsg().then(lambda completion: Nosy.got.append(completion.status))

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Nosy)
        await kernel.run()
        assert Nosy.got == [errno.EACCES]


async def test_the_kernels_own_settings_take_effect() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        names = ["host_answer_ns", "lock_lease_ns", "turns_per_instant_max"]
        assert kernel.sysfs.listdir("/proc/sys/kernel") == names
        kernel.sysfs.write("/proc/sys/kernel/turns_per_instant_max", "77")
        assert kernel.dispatcher.turns_per_instant_max == 77
        with pytest.raises(uxk.UxkError, match="turns_per_instant_max"):
            kernel.sysfs.write("/proc/sys/kernel/turns_per_instant_max", "0")
