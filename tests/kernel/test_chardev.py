"""Char devices: what users may ask of an extension through ``/dev``, and what they get when it fails them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import pytest
import trio

import uxk
from uxk.kernel.chardev import POLLIN, POLLOUT
from uxk.limits import KMSG_TEXT_MAX_BYTES, OPEN_FILES_MAX, PAYLOAD_MAX_BYTES, POLL_WAITERS_MAX

Op = uxk.Op
MS = 1_000_000


class Area(msgspec.Struct):
    start: Annotated[int, msgspec.Meta(ge=0)]
    name: str = ""


class Tap(uxk.Extension):
    """``/dev/tap``: a byte store.  Ioctls by number: 1 clears, 2 measures an area, 3 lies, 4 is not served."""

    manifest = uxk.Manifest(
        name="tap", restart=uxk.RestartPolicy(backoff_ns=100),
        watchdog=uxk.Watchdog(request_timeout_ns=MS, timeouts_max=1000),
        ioctls=(
            uxk.Ioctl("clear", 1), uxk.Ioctl("measure", 2, Area, dict[str, int]), uxk.Ioctl("lie", 3, None, Area),
            uxk.Ioctl("absent", 4), uxk.Ioctl("any", 5, int, int),
        ),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    log: ClassVar[list[tuple[int, int]]]
    hangs: ClassVar[bool]
    refuses: ClassVar[int]

    def setup(self, ctx: uxk.Context) -> None:
        Tap.ctx, Tap.log, Tap.hangs, Tap.refuses = ctx, [], False, 0
        self.store = bytearray(b"hello world")
        ctx.add_chardev("tap")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            Tap.log.append((request.opcode, request.port))
            if not Tap.hangs:
                self.serve(ctx, request)

    def serve(self, ctx: uxk.Context, request: uxk.Request) -> None:
        if Tap.refuses and request.opcode == Op.OPEN:
            ctx.fail(request, Tap.refuses)
        elif request.opcode == Op.READ:
            end = request.offset + request.length
            ctx.complete(request, bytes(self.store[request.offset : end]))
        elif request.opcode == Op.WRITE:
            if request.payload == b"crash":
                raise ValueError("boom")
            if request.payload == b"poll":
                ctx.set_poll("tap", readable=True, writable=True)
            self.store[request.offset : request.offset + len(request.payload)] = request.payload
            ctx.complete(request, result=min(len(request.payload), 4))
        elif request.opcode == Op.IOCTL:
            self.ioctl(ctx, request)
        else:
            ctx.complete(request)

    def ioctl(self, ctx: uxk.Context, request: uxk.Request) -> None:
        if request.offset == 1:
            self.store.clear()
            ctx.complete(request, result=42)
        elif request.offset == 2:
            area = msgspec.msgpack.decode(request.payload, type=Area)
            ctx.complete(request, msgspec.msgpack.encode({"bytes": len(self.store) - area.start}))
        elif request.offset == 3:
            ctx.complete(request, b"\xc1 no area")
        elif request.offset == 5:
            ctx.complete(request, request.payload)
        else:
            ctx.fail(request, errno.ENOTTY)

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Fragile(Tap):
    """As Tap, but dies for good."""

    manifest = uxk.Manifest(name="fragile", restart=uxk.RestartPolicy(mode="temporary"))


def number(caught: pytest.ExceptionInfo[uxk.UxkError]) -> int:
    return caught.value.errno


# --- open, read, write, close ---


async def test_reads_and_writes_move_the_position() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            assert [await file.read(5), await file.read(1), await file.read(100), await file.read()] == [
                b"hello",
                b" ",
                b"world",
                b"",
            ]
            assert (module.account.files, module.state.name) == (1, "LIVE")
        assert module.account.files == 0
        assert [opcode for opcode, _ in Tap.log] == [Op.OPEN, Op.READ, Op.READ, Op.READ, Op.READ, Op.RELEASE]
        assert len({port for _, port in Tap.log}) == 1
        async with await kernel.open("tap") as file:
            assert await file.write(b"HELLO WORLD") == 4
            assert await file.read(3) == b"O W"
        with pytest.raises(uxk.UxkError) as caught:
            await file.read()
        assert number(caught) == errno.EBADF
        await file.close()


async def test_sizes_that_cannot_be_are_the_users_fault() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            for size in (-1, 1 << 32, 1 << 70):
                with pytest.raises(uxk.UsageError):
                    await file.read(size)
            with pytest.raises(uxk.UsageError) as caught:
                await file.write(bytes(PAYLOAD_MAX_BYTES + 1))
            assert number(caught) == errno.EMSGSIZE
            assert await file.write(bytes(PAYLOAD_MAX_BYTES)) == 4
        assert module.account.faults == 0


@pytest.mark.parametrize("path", ["/dev/none", "/dev/", "", "/dev/tap/x", "/etc/passwd"])
async def test_what_is_not_there_is_enoent(path: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        with pytest.raises(uxk.UxkError) as caught:
            await kernel.open(path)
        assert number(caught) == errno.ENOENT


async def test_a_refused_open_leaves_nothing_open() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        Tap.refuses = errno.EBUSY
        with pytest.raises(uxk.RequestError) as caught:
            await kernel.open("/dev/tap")
        assert (number(caught), module.account.files) == (errno.EBUSY, 0)
        await kernel.rmmod("tap")


async def test_open_files_are_bounded() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        files = [await kernel.open("/dev/tap") for _ in range(OPEN_FILES_MAX)]
        with pytest.raises(uxk.UxkError) as caught:
            await kernel.open("/dev/tap")
        assert number(caught) == errno.EMFILE
        await files[0].close()
        await (await kernel.open("/dev/tap")).close()
        for file in files:
            await file.close()
        await kernel.rmmod("tap")


async def test_names_belong_to_whom_they_were_given() -> None:
    class Thief(uxk.Extension):
        manifest = uxk.Manifest(name="thief")
        replies: ClassVar[list[int]] = []

        def setup(self, ctx: uxk.Context) -> None:
            for name in ("tap", "kmsg", "a/b", "..", "x" * 55 + "é", "mine", "mine"):
                ctx.add_chardev(name).then(lambda completion: Thief.replies.append(completion.status))

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        await kernel.run()
        await kernel.insmod(Thief)
        await kernel.run()
        assert sorted(Thief.replies) == [0, 0, errno.EEXIST] + [errno.EINVAL] * 4
        assert sorted(kernel.chardevs.devices) == ["mine", "tap"]


# --- ioctl ---


async def test_typed_ioctls() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            assert await file.ioctl("measure", {"start": 6}) == {"bytes": 5}
            assert await file.ioctl(2, Area(0, "all")) == {"bytes": 11}
            assert await file.ioctl("clear") == 42
            assert await file.read() == b""


BAD_IOCTLS: list[tuple[str | int, Any, int]] = [
    ("measure", None, errno.EINVAL),
    ("measure", {"start": "x"}, errno.EINVAL),
    ("measure", {"start": -1}, errno.EINVAL),
    ("measure", {}, errno.EINVAL),
    ("measure", object, errno.EINVAL),
    ("measure", {"start": 0, "name": "x" * (PAYLOAD_MAX_BYTES + 1)}, errno.EINVAL),
    ("measure", {"start": 0, "name": "\ud800"}, errno.EINVAL),
    ("clear", 1, errno.EINVAL),
    ("any", 1 << 70, errno.EINVAL),
    ("any", "1", errno.EINVAL),
    ("nothing", None, errno.ENOTTY),
    (99, None, errno.ENOTTY),
    (True, None, errno.ENOTTY),
    ("", None, errno.ENOTTY),
    ("absent", None, errno.ENOTTY),
    ("lie", None, errno.EBADMSG),
]


@pytest.mark.parametrize(("command", "argument", "expected"), BAD_IOCTLS, ids=lambda value: repr(value)[:30])
async def test_ioctls_that_are_wrong_say_how(command: str | int, argument: Any, expected: int) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            with pytest.raises(uxk.UxkError) as caught:
                await file.ioctl(command, argument)
            assert number(caught) == expected
        assert module.account.faults == 0


# --- poll ---


async def test_poll_sleeps_until_the_driver_says_ready() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            assert await file.poll() == POLLOUT
            kernel.call_at_ns(500, lambda _: Tap.ctx.set_poll("tap", readable=True))
            assert (await file.poll(POLLIN), kernel.now_ns) == (POLLIN, 500)
            Tap.ctx.set_poll("tap", writable=True)
            await kernel.sleep_ns(0)
            assert await file.poll() == POLLOUT
            for mask in (0, 2, 1 << 20):
                with pytest.raises(uxk.UsageError):
                    await file.poll(mask)


async def test_a_cancelled_poll_leaves_no_waiter_and_waiters_are_bounded() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        async with await kernel.open("/dev/tap") as file:
            device = kernel.chardevs.devices["tap"]
            with trio.CancelScope() as scope:
                kernel.call_at_ns(1000, lambda _: scope.cancel())
                kernel.call_at_ns(2000, lambda _: None)
                await file.poll(POLLIN)
            assert scope.cancelled_caught
            cancels = [device.watch(lambda: None) for _ in range(POLL_WAITERS_MAX)]
            with pytest.raises(uxk.UxkError) as caught:
                device.watch(lambda: None)
            assert number(caught) == errno.ENOSPC
            for cancel in cancels:
                cancel()
                cancel()


async def test_a_poller_hears_of_the_end_of_its_device() -> None:
    def explode(_: object) -> None:
        raise ValueError("boom")

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Fragile)
        file = await kernel.open("/dev/tap")
        Tap.ctx.set_poll("tap")
        await kernel.sleep_ns(0)
        Tap.ctx.call_at_ns(1000, explode)
        assert (await file.poll(), kernel.now_ns) == (0, 1000)
        with pytest.raises(uxk.UxkError) as caught:
            await file.poll()
        assert number(caught) == errno.EBADF


# --- failing drivers ---


async def test_a_hanging_driver_means_etimedout_and_can_be_closed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        file = await kernel.open("/dev/tap")
        Tap.hangs = True
        began_ns = kernel.now_ns
        with pytest.raises(uxk.RequestError) as caught:
            await file.read()
        assert (number(caught), kernel.now_ns - began_ns) == (errno.ETIMEDOUT, MS)
        await file.close()
        assert module.account.files == 0
        await kernel.rmmod("tap")


async def test_a_crash_while_open_fails_what_is_under_way_and_the_next_incarnation_serves() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Tap)
        file = await kernel.open("/dev/tap")
        with pytest.raises(uxk.RequestError) as caught:
            await file.write(b"crash")
        assert number(caught) == errno.EIO
        with pytest.raises(uxk.RequestError) as caught:
            await file.read()
        assert number(caught) == errno.ENODEV
        kernel.call_at_ns(kernel.now_ns + 500, lambda _: Tap.ctx.set_poll("tap", readable=True))
        assert await file.poll() == POLLIN  # after the crash nothing was ready until the driver said so again
        assert kernel.now_ns >= 500
        assert await file.read(5) == b"hello"
        assert (module.account.restarts, module.account.files) == (1, 1)
        await file.close()


async def test_rmmod_of_an_open_device_is_refused_and_names_who_has_it_open() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Tap)
        file = await kernel.open("/dev/tap", client="backup")
        with pytest.raises(uxk.InUse, match="backup") as caught:
            await kernel.rmmod("tap")
        assert number(caught) == errno.EBUSY
        assert kernel.sysfs.read("/sys/module/tap/holders") == "backup"
        await file.close()
        await kernel.rmmod("tap")
        assert kernel.chardevs.devices == {}


async def test_a_driver_that_gives_up_closes_its_files() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Fragile)
        file = await kernel.open("/dev/tap")
        with pytest.raises(uxk.RequestError):
            await file.write(b"crash")
        assert (module.state.name, module.account.holdings()) == ("GONE", {})
        with pytest.raises(uxk.UxkError) as caught:
            await file.read()
        assert number(caught) == errno.EBADF
        await file.close()


# --- /dev/kmsg ---


async def drain(file: Any) -> list[str]:
    """Everything that can be read now; then the file says EAGAIN."""
    lines: list[str] = []
    while await file.poll() & POLLIN:
        lines.append((await file.read(wait=False)).decode())
    with pytest.raises(uxk.UxkError) as caught:
        await file.read(wait=False)
    assert number(caught) == errno.EAGAIN
    return lines


async def test_kmsg_gives_one_record_a_read_in_linuxs_format() -> None:
    async with uxk.Kernel(seed=1) as kernel, await kernel.open("/dev/kmsg") as file:
        first = await file.read()
        assert first == b"6,0,0,-;kernel: booted, seed 1, virtual clock\n"
        await drain(file)
        await kernel.sleep_ns(1_234_567)
        kernel.kmsg.log(kernel.now_ns, 3, "disk", "bad\tsector \\ \x1b é", {"lba": 7, "why": "a\nb"})
        assert await file.read() == (
            b"3,%d,1234,-;disk: bad\\x09sector \\x5c \\x1b \\xc3\\xa9\n lba=7\n why=a\\x0ab\n"
            % (kernel.kmsg.next_seq - 1)
        )


async def test_kmsg_written_by_users_carries_level_and_never_the_kernels_facility() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        async with await kernel.open("/dev/kmsg", client="logger") as file:
            file.seek("now")  # type: ignore[union-attr]
            for data in (b"plain", b"<3>error\n", b"<0>kernel?", b"<30>daemon info", b"<x>no prefix", b"\xff\xfe"):
                assert await file.write(data) == len(data)
            heads = [line.split(",")[0] for line in await drain(file)]
            texts = [(record.source, record.text) for record in kernel.kmsg.records(source="logger")]
        assert heads == ["12", "11", "8", "30", "12", "12"]
        assert texts[:5] == [("logger", text) for text in ("plain", "error", "kernel?", "daemon info", "<x>no prefix")]


async def test_kmsg_read_waits_for_the_next_record_in_virtual_time() -> None:
    async with uxk.Kernel(seed=1) as kernel, await kernel.open("/dev/kmsg") as file:
        file.seek("now")  # type: ignore[union-attr]
        assert await file.poll() == POLLOUT
        kernel.call_at_ns(777, lambda _: kernel.kmsg.log(kernel.now_ns, 5, "x", "late"))
        assert (await file.read(), kernel.now_ns) == (b"5,%d,0,-;x: late\n" % (kernel.kmsg.next_seq - 1), 777)
        with pytest.raises(uxk.Stalled):  # nothing will ever come
            await file.read()
        assert kernel.kmsg.statistics().followers == 0


async def test_kmsg_tells_once_of_what_was_overwritten() -> None:
    async with uxk.Kernel(seed=1) as kernel, await kernel.open("/dev/kmsg") as file:
        for n in range(kernel.kmsg.capacity + 5):
            kernel.kmsg.log(0, 6, "flood", str(n))
        with pytest.raises(uxk.UxkError) as caught:
            await file.read()
        assert number(caught) == errno.EPIPE
        assert f",{kernel.kmsg.first_seq}," in (await file.read()).decode()
        assert len(await drain(file)) == kernel.kmsg.capacity - 1


async def test_kmsg_refuses_nonsense_and_bounds_a_chatterbox() -> None:
    async with uxk.Kernel(seed=1) as kernel, await kernel.open("/dev/kmsg", client="chatter") as file:
        with pytest.raises(uxk.UsageError):
            await file.read(5)
        assert (await file.read()).startswith(b"6,0,")  # it was not lost
        with pytest.raises(uxk.UsageError):
            await file.write(bytes(KMSG_TEXT_MAX_BYTES + 1))
        with pytest.raises(uxk.UxkError) as caught:
            await file.ioctl("any")
        assert number(caught) == errno.ENOTTY
        for _ in range(1000):
            await file.write(b"<6>spam")
        assert len(kernel.kmsg.records(source="chatter")) <= 64
        await file.close()
        with pytest.raises(uxk.UxkError) as caught:
            await file.read()
        assert number(caught) == errno.EBADF
