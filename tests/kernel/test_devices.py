"""Driver classes and devices: they come and go at run time, and bind by rule."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

import uxk
from uxk import limits
from uxk.errors import UxkError

MS = 1_000_000


class Disk(uxk.Extension):
    """A device of a class that the kernel has never heard of; requests do what their payload says."""

    manifest = uxk.Manifest(
        name="dev_disk", driver_class="dev-blocks", restart=uxk.RestartPolicy(backoff_ns=MS), capabilities=("device:*",)
    )

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            word, _, name = request.payload.decode().partition(" ")
            if word == "die":
                raise ValueError("died")
            if word == "add":
                ctx.add_device(name, vendor="uxk-lab").then(self.answer(ctx, request))
            elif word == "remove":
                ctx.remove_device(name).then(self.answer(ctx, request))
            else:
                ctx.complete(request, f"{ctx.name} {request.device}".encode())

    @staticmethod
    def answer(ctx: uxk.Context, request: uxk.Request) -> Any:
        return lambda done: ctx.complete(request, done.payload, status=done.status, result=done.result)


class Cache(uxk.Extension):
    """Binds to every disk of the lab and writes down what it is told."""

    manifest = uxk.Manifest(
        name="dev_cache", kind="ml-agent", binds=(uxk.Bind({"class": "dev-block*", "name": "dev_disk*"}),),
        restart=uxk.RestartPolicy(backoff_ns=MS),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.caps: dict[str, int] = {}

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.log(f"{event.topic} {event.name} {event.value.decode()}")
        if event.topic == "device_add":
            self.caps[event.name] = event.cap
            ctx.submit(event.cap, payload=b"hello").then(lambda done: self.told(ctx, event.name, done))
        else:
            ctx.submit(self.caps[event.name]).then(lambda done: self.told(ctx, event.name, done))

    @staticmethod
    def told(ctx: uxk.Context, name: str, done: uxk.Completion) -> None:
        ctx.log(f"{name}: {errno.errorcode.get(done.status) or done.payload.decode()}")


def said(kernel: uxk.Kernel, source: str = "dev_cache") -> list[str]:
    return [r.text for r in kernel.kmsg.records(source=source, max_level=6) if r.text.startswith(("device_", "dev_"))]


async def test_a_class_comes_with_its_first_device_and_goes_with_its_last() -> None:
    _keep = Disk
    async with uxk.Kernel() as kernel:
        assert not kernel.sysfs.exists("/sys/class/dev-blocks")
        await kernel.modprobe("dev_disk")
        await kernel.modprobe("dev_disk", instance="dev_other")
        assert kernel.sysfs.listdir("/sys/class/dev-blocks") == ["dev_disk0", "dev_other"]
        uevent = kernel.sysfs.read("/sys/class/dev-blocks/dev_disk0/uevent").split()
        assert uevent == ["CLASS=dev-blocks", "MODULE=dev_disk", "NAME=dev_disk0"]
        assert kernel.sysfs.readlink("/sys/class/dev-blocks/dev_other/module").endswith("/module/dev_other")
        assert kernel.sysfs.read("/sys/class/dev-blocks/dev_other/driver").strip() == "dev_disk"
        await kernel.rmmod("dev_disk")
        assert kernel.sysfs.listdir("/sys/class/dev-blocks") == ["dev_other"]
        await kernel.rmmod("dev_other")
        assert not kernel.sysfs.exists("/sys/class/dev-blocks") and kernel.devices.devices == {}


async def test_an_agent_has_no_device() -> None:
    _keep = Cache
    async with uxk.Kernel() as kernel:
        assert (await kernel.modprobe("dev_cache")).devices == ()


@pytest.mark.parametrize("order", [("dev_disk", "dev_cache"), ("dev_cache", "dev_disk")])
async def test_rules_bind_whoever_comes_first_with_a_capability_that_works(order: tuple[str, str]) -> None:
    _keep = [Disk, Cache]
    async with uxk.Kernel() as kernel:
        for name in order:
            await kernel.modprobe(name)
        await kernel.run_until_ns(1)
        assert said(kernel) == ["device_add dev_disk0 dev-blocks", "dev_disk0: dev_disk 0"]
        assert kernel.sysfs.read("/sys/class/dev-blocks/dev_disk0/bound").strip() == "dev_cache"
        with pytest.raises(uxk.InUse, match="dev_cache"):  # it is a client now
            await kernel.rmmod("dev_disk")
        await kernel.rmmod("dev_cache")
        assert kernel.sysfs.read("/sys/class/dev-blocks/dev_disk0/bound").strip() == ""
        await kernel.rmmod("dev_disk")


class Opener(uxk.Extension):
    """Opens a disk without being bound to it."""

    manifest = uxk.Manifest(name="dev_opener", kind="ml-agent", capabilities=("device:*",))

    def setup(self, ctx: uxk.Context) -> None:
        ctx.open_device("dev_disk_a").then(lambda done: setattr(self, "cap", done.result))
        ctx.open_device("dev_disk_a")  # and again: told once all the same

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.submit(self.cap).then(
            lambda done: ctx.log(f"{event.topic} {event.name}: {errno.errorcode.get(done.status)}")
        )


async def test_who_has_a_device_open_is_told_that_it_has_gone() -> None:
    _keep = [Disk, Opener]
    async with uxk.Kernel() as kernel:
        disk = await kernel.modprobe("dev_disk")
        await disk.submit(b"add dev_disk_a")
        await disk.submit(b"add dev_disk_b")
        await kernel.modprobe("dev_opener")
        await disk.submit(b"remove dev_disk_b")
        await disk.submit(b"remove dev_disk_a")
        await kernel.sleep_ns(1)
        assert said(kernel, "dev_opener") == ["device_remove dev_disk_a: ESTALE"]
        await kernel.rmmod("dev_disk")


async def test_devices_that_no_rule_fits_are_left_alone() -> None:
    _keep = [Disk, Cache]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("dev_cache")
        await kernel.modprobe("dev_disk", instance="dev_tape")
        await kernel.run_until_ns(1)
        assert said(kernel) == []


async def test_further_devices_have_numbers_and_can_be_taken_away() -> None:
    _keep = [Disk, Cache]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("dev_cache")
        disk = await kernel.modprobe("dev_disk")
        assert (await disk.submit(b"add dev_disk_a")).result == 1
        assert (await disk.submit(b"add dev_disk_b")).result == 2
        assert (await disk.submit(b"add dev_disk_a")).result == 1  # it is there
        await kernel.run_until_ns(1)
        assert said(kernel)[2:] == [
            "device_add dev_disk_a dev-blocks", "dev_disk_a: dev_disk 1",
            "device_add dev_disk_b dev-blocks", "dev_disk_b: dev_disk 2",
        ]  # fmt: skip
        assert "VENDOR=uxk-lab" in kernel.sysfs.read("/sys/class/dev-blocks/dev_disk_a/uevent")
        before = len(said(kernel))
        await disk.submit(b"remove dev_disk_a")
        await kernel.run_until_ns(2)
        # told, and the capability is revoked already
        assert said(kernel)[before:] == ["device_remove dev_disk_a ", "dev_disk_a: ESTALE"]
        assert not kernel.sysfs.exists("/sys/class/dev-blocks/dev_disk_a") and disk.account.devices == 2
        for what, status in ((b"remove dev_disk_a", errno.ENODEV), (b"remove ../x", errno.ENODEV)):
            assert (await disk.submit(what, check=False)).status == status


@pytest.mark.parametrize("name", ["", "UP", "a/b", "..", "x" * 56, "a b", "\x00"])
async def test_bad_device_names_are_refused(name: str) -> None:
    _keep = Disk
    async with uxk.Kernel() as kernel:
        disk = await kernel.modprobe("dev_disk")
        answer = await disk.submit(f"add {name}".encode(), check=False)
        assert answer.status in (errno.EINVAL, errno.EBADMSG) and disk.devices == ("dev_disk0",)


async def test_nobody_takes_or_removes_a_name_of_others() -> None:
    _keep = Disk
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("dev_disk")
        two = await kernel.modprobe("dev_disk", instance="dev_two")
        answer = await two.submit(b"add dev_disk0", check=False)
        assert answer.status == errno.EEXIST and b"belongs to dev_disk" in answer.payload
        assert (await two.submit(b"remove dev_disk0", check=False)).status == errno.EACCES
        assert one.devices == ("dev_disk0",)


async def test_there_is_a_limit() -> None:
    _keep = Disk
    async with uxk.Kernel() as kernel:
        disk = await kernel.modprobe("dev_disk")
        for i in range(1, limits.DEVICES_PER_INSTANCE_MAX):
            await disk.submit(f"add dev_n{i}".encode())
        assert (await disk.submit(b"add dev_more", check=False)).status == errno.ENOSPC
        await kernel.rmmod("dev_disk")
        assert kernel.devices.devices == {} and not kernel.sysfs.exists("/sys/class/dev-blocks")


async def test_a_name_that_somebody_took_during_the_probe_fails_the_probe() -> None:
    class Slow(uxk.Extension):
        manifest = uxk.Manifest(name="dev_slow", ready="explicit")

        def setup(self, ctx: uxk.Context) -> None:
            ctx.call_later_ns(5, self.others, ctx)

        def others(self, ctx: uxk.Context) -> None:
            rival.open_port(lambda _: None).submit(uxk.Request(0, payload=b"add dev_slow0"))
            ctx.call_later_ns(5, lambda _: ctx.ready())

    _keep = Disk
    async with uxk.Kernel() as kernel:
        rival = await kernel.modprobe("dev_disk")
        with pytest.raises(UxkError, match="'dev_slow0' belongs to dev_disk"):
            await kernel.modprobe("dev_slow")
        assert kernel.now_ns == 10 and [row.name for row in kernel.lsmod()] == ["dev_disk"]
        assert sorted(rival.devices) == ["dev_disk0", "dev_slow0"]


async def test_devices_outlive_a_crash_and_binding_is_made_anew_for_the_binder() -> None:
    _keep = [Disk, Cache]
    async with uxk.Kernel() as kernel:
        disk = await kernel.modprobe("dev_disk")
        await disk.submit(b"add dev_disk_a")
        await kernel.modprobe("dev_cache")
        await kernel.run_until_ns(1)
        first = said(kernel)
        assert (await disk.submit(b"die", check=False)).status == errno.EIO
        assert kernel.sysfs.read("/sys/class/dev-blocks/dev_disk0/state").strip() != "open"
        await kernel.run()
        assert kernel.sysfs.read("/sys/class/dev-blocks/dev_disk0/state").strip() == "open"
        assert sorted(disk.devices) == ["dev_disk0", "dev_disk_a"] and said(kernel) == first  # nothing came or went
        assert (await disk.submit(b"add dev_disk_a")).result == 1
        kernel._incarnations.supervisor.hung(kernel.agents["dev_cache"], "test")
        await kernel.run()
        assert sorted(said(kernel)[len(first) :]) == sorted(first)


async def test_a_binder_with_no_room_for_capabilities_keeps_nobody_from_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CAPS_PER_HOLDER_MAX", 2)
    _keep = [Disk, Cache]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("dev_cache")
        for i in range(4):
            await kernel.modprobe("dev_disk", instance=f"dev_disk{i}")
        assert any("not bound to dev_disk3" in r.text for r in kernel.kmsg.records(source="dev_cache"))


async def test_requests_for_a_device_reach_it_by_number() -> None:
    _keep = Disk
    async with uxk.Kernel() as kernel:
        disk = await kernel.modprobe("dev_disk")
        assert (await disk.submit(b"?", device=0)).payload == b"dev_disk 0"
        assert (await disk.submit(b"?", device=3)).payload == b"dev_disk 3"
        for device in (-1, 1 << 31):
            with pytest.raises(UxkError):
                await disk.submit(b"?", device=device)
        assert (await disk.submit(b"?")).status == 0  # the kernel goes on


# --- news of devices ---


class Resizer(uxk.Extension):
    """Gives its device, or another, the properties that a request lists; tells what it hears."""

    manifest = uxk.Manifest(name="dev_resizer", driver_class="dev-sizes", capabilities=("device:*:submit",))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            word, _, rest = request.payload.decode().partition(" ")
            if word == "open":
                ctx.open_device(rest).then(Disk.answer(ctx, request))
                continue
            properties = dict(pair.split("=") for pair in rest.split())
            ctx.add_device(word or ctx.device, **properties).then(Disk.answer(ctx, request))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.log(f"{event.topic} {event.name} {event.value.decode()!r} {event.cap}")


class Sized(uxk.Extension):
    """Binds to devices of a size."""

    manifest = uxk.Manifest(name="dev_sized", kind="ml-agent", binds=(uxk.Bind({"size": "*"}),))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.log(f"{event.topic} {event.name} {event.value.decode()!r} {bool(event.cap)}")


async def test_those_who_watch_hear_of_devices_before_their_clients_do() -> None:
    _keep = [Resizer, Sized]
    async with uxk.Kernel() as kernel:
        heard: list[str] = []

        def observe(device: Any, change: str) -> None:
            heard.append(f"{change} {device.name} {device.properties.get('size', '-')} {len(device.bound)}")

        kernel.devices.on_change.append(observe)
        one = await kernel.modprobe("dev_resizer")
        await kernel.modprobe("dev_sized")
        other = await kernel.modprobe("dev_resizer", instance="dev_reader")
        assert heard == ["add dev_resizer0 - 0", "add dev_reader - 0"]
        opened = await other.submit(b"open dev_resizer0")
        assert opened.payload == b"dev_resizer"  # whose it is
        await one.submit(b" size=5")
        await one.submit(b" size=5")  # nothing new
        await one.submit(b"")  # nothing said
        await one.submit(b" size=7 colour=red")
        await one.submit(b"extra size=1")
        await kernel.rmmod("dev_reader")
        await kernel.rmmod("dev_sized")
        await kernel.rmmod("dev_resizer")
        assert heard[2:] == [
            "change dev_resizer0 5 0", "change dev_resizer0 7 1", "add extra 1 0",
            "remove dev_reader - 0", "remove dev_resizer0 7 0", "remove extra 1 0",
        ]  # fmt: skip
        sizes = ["CLASS=dev-sizes\\nMODULE=dev_resizer\\nNAME=dev_resizer0\\nSIZE=5"]
        sizes += ["CLASS=dev-sizes\\nCOLOUR=red\\nMODULE=dev_resizer\\nNAME=dev_resizer0\\nSIZE=7"]
        assert said(kernel, "dev_reader") == [f"device_change dev_resizer0 '{text}' {opened.result}" for text in sizes]
        assert said(kernel, "dev_sized") == [
            "device_add dev_resizer0 'dev-sizes' True",  # it fits now
            f"device_change dev_resizer0 '{sizes[1]}' True",
            "device_add extra 'dev-sizes' True",
        ]


async def test_properties_that_cannot_be_leave_a_device_as_it_was() -> None:
    _keep = Resizer
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("dev_resizer")
        await one.submit(b" size=5")
        long = " ".join(f"k{index}={'x' * 1000}" for index in range(5)).encode()
        done = await one.submit(b" " + long, check=False)
        assert done.status == errno.E2BIG
        assert "SIZE=5" in kernel.sysfs.read("/sys/class/dev-sizes/dev_resizer0/uevent")
        other = await kernel.modprobe("dev_resizer", instance="dev_reader")
        assert (await other.submit(b"dev_resizer0 size=9", check=False)).status == errno.EEXIST


async def test_a_device_keeps_its_properties_over_a_restart() -> None:
    from uxk.testing.kernels import crash

    _keep = Resizer
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("dev_resizer")
        await one.submit(b" size=5")
        crash(kernel, "dev_resizer")
        await kernel.sleep_ns(10 * MS)
        assert kernel.devices.get("dev_resizer0").properties["size"] == "5"
