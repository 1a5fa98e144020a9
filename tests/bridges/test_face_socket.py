"""Files over the control socket: drivers that fail, clients and kernels that misbehave, connections that end."""

from __future__ import annotations

import errno
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.bridges.control import Connection, frame_of
from uxk.bridges.control_client import ControlClient
from uxk.bridges.control_server import ControlServer
from uxk.bridges.face.api import POLLERR, POLLHUP, POLLIN, POLLPRI, Face
from uxk.bridges.face.memory import MemoryFace
from uxk.bridges.face.socket import SocketFace
from uxk.errors import CapabilityError, ProtocolError, TreeError, UsageError
from uxk.limits import PAYLOAD_MAX_BYTES
from uxk.uapi import control as c

SEED = "/sys/kernel/seed"


class Tap(uxk.Extension[Any]):
    """``/dev/tap``: answers, hangs or crashes."""

    manifest = uxk.Manifest(
        name="face_tap", kind="driver", driver_class="misc", restart=uxk.RestartPolicy(backoff_ns=100),
        watchdog=uxk.Watchdog(request_timeout_ns=1_000_000, timeouts_max=1000),
    )  # fmt: skip
    seen: ClassVar[list[int]] = []
    hangs: ClassVar[bool] = False

    def setup(self, ctx: uxk.Context) -> None:
        Tap.seen, Tap.hangs = [], False
        ctx.add_chardev("tap")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            Tap.seen.append(request.opcode)
            if request.payload == b"crash":
                raise ValueError("boom")
            if not Tap.hangs:
                ctx.set_poll("tap", readable=request.payload == b"ready", writable=True)
                ctx.complete(request, b"data" if request.opcode == uxk.Op.READ else b"", result=len(request.payload))


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[uxk.Kernel, ControlServer]]:
    async with uxk.Kernel(seed=5) as kernel, trio.open_nursery() as nursery:
        await kernel.insmod(Tap)
        server = ControlServer(kernel, path)
        await nursery.start(server.serve)
        yield kernel, server
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["memory", "socket"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[uxk.Kernel, Face]]:
    async with serving(tmp_path / "k") as (kernel, _):
        if request.param == "memory":
            yield kernel, MemoryFace(kernel)
            return
        async with SocketFace(tmp_path / "k") as face:
            yield kernel, face


async def refused(number: int, operation: Callable[..., Awaitable[object]], *arguments: object) -> None:
    with pytest.raises(TreeError) as caught:
        await operation(*arguments)
    assert caught.value.errno == number, caught.value


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


# --- drivers that fail ------------------------------------------------------------------------------------


async def test_a_driver_that_hangs(served: tuple[uxk.Kernel, Face]) -> None:
    _, face = served
    async with await face.open("/dev/tap", "rw") as file:
        Tap.hangs = True
        await refused(errno.ETIMEDOUT, file.read)
        await refused(errno.ETIMEDOUT, file.write, b"x")
        await refused(errno.ETIMEDOUT, face.open, "/dev/tap")
        assert await face.read_text(SEED) == "5"
    assert uxk.Op.RELEASE in Tap.seen


async def test_a_driver_that_crashes_keeps_its_files(served: tuple[uxk.Kernel, Face]) -> None:
    kernel, face = served
    async with await face.open("/dev/tap", "rw") as file:
        assert await file.read() == b"data" and await file.write(b"ready") == 5
        assert await file.poll(POLLIN) == POLLIN
        with pytest.raises(TreeError):
            await file.write(b"crash")
        await kernel.run_until_ns(kernel.now_ns + 1_000_000)
        assert await file.read() == b"data"
        await refused(errno.EMSGSIZE, file.write, bytes(PAYLOAD_MAX_BYTES + 1))


async def test_a_driver_that_is_removed(served: tuple[uxk.Kernel, Face]) -> None:
    kernel, face = served
    file = await face.open("/dev/tap", "rw")
    with pytest.raises(uxk.InUse):  # as Linux: an open file holds the module
        await kernel.rmmod("face_tap")
    await file.aclose()
    await kernel.rmmod("face_tap")
    await refused(errno.ENOENT, face.open, "/dev/tap")
    assert "tap" not in await face.listdir("/dev")


async def test_a_driver_that_dies_for_good_wakes_who_waits(served: tuple[uxk.Kernel, Face]) -> None:
    kernel, face = served

    class Mortal(Tap):
        manifest = uxk.Manifest(name="face_mortal", restart=uxk.RestartPolicy(mode="temporary"))

        def setup(self, ctx: uxk.Context) -> None:
            ctx.add_chardev("mortal")

    await kernel.insmod(Mortal)
    woken = list[int]()
    async with await face.open("/dev/mortal", "rw") as file:

        async def wait() -> None:
            woken.append(await file.poll(POLLIN))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(TreeError):
                await file.write(b"crash")
            await kernel.run()
        assert woken == [POLLERR | POLLHUP]
        await refused(errno.ENODEV, file.read)
        await refused(errno.ENODEV, file.ioctl, "x")


# --- the log ------------------------------------------------------------------------------------------------


async def test_the_log_as_a_file(served: tuple[uxk.Kernel, Face]) -> None:
    kernel, face = served
    async with await face.open("/dev/kmsg", "rw") as log:
        before = kernel.now_ns
        count = len(kernel.kmsg.records())
        lines = [await log.read() for _ in range(count)]
        assert b"booted" in lines[0] and all(line.endswith(b"\n") for line in lines)
        with pytest.raises(TreeError) as nothing:
            await log.read(wait=False)
        assert nothing.value.errno == errno.EAGAIN
        assert await log.write(b"<3>hello") == 8
        assert (await log.read()).endswith(
            b";" + (b"control" if isinstance(face, SocketFace) else b"user") + b": hello\n"
        )
        found = list[bytes]()

        async def wait() -> None:
            found.append(await log.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not found and kernel.now_ns == before, "waiting moves no virtual time"
            kernel.machine.log("info", "x", "news")
        assert b"news" in found[0]
        await log.write(b"too long for one byte")
        await refused(errno.EINVAL, log.read, 1)
        await refused(errno.ENOTTY, log.ioctl, "x")


async def test_looking_is_no_part_of_the_run_and_writing_is(tmp_path: Path) -> None:
    async def run(*, look: bool, write: str) -> str:
        async with serving(tmp_path / "k") as (kernel, _), SocketFace(tmp_path / "k") as face:
            if look:
                await face.walk("/")
                async with await face.open(SEED) as file, await face.open("/dev/kmsg") as log:
                    await file.read()
                    await log.read()
            if write:
                await face.write_text("/proc/sys/kernel/lock_lease_ns", write)
            return kernel.event_hash()

    assert await run(look=True, write="") == await run(look=False, write="")
    assert await run(look=True, write="5") == await run(look=False, write="5") != await run(look=False, write="6")


# --- connections that end -----------------------------------------------------------------------------------


async def test_nothing_outlives_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "k") as (kernel, server):
        for way in ("leave", "cancel", "cut"):
            face = SocketFace(tmp_path / "k")
            with trio.CancelScope() as scope:
                async with face, trio.open_nursery() as nursery:
                    files = [await face.open(path) for path in (SEED, "/dev/kmsg", "/dev/tap") for _ in range(3)]
                    for file in files[:6]:
                        nursery.start_soon(ignore, file.poll, POLLPRI)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert len(kernel.chardevs.devices["tap"].files) == 3 and kernel.sysfs.waiter_count == 3
                    if way == "cancel":
                        scope.cancel()
                    elif way == "cut":
                        assert face._link is not None
                        await trio.aclose_forcefully(face._link.stream)
                    else:
                        nursery.cancel_scope.cancel()
            await until(lambda: server.statistics().clients == 0)
            assert kernel.sysfs.waiter_count == 0 and kernel.kmsg.statistics().followers == 0
            assert not kernel.chardevs.devices["tap"].files
            await refused(errno.ENOTCONN, face.read, SEED)
        await kernel.run()
        assert Tap.seen.count(uxk.Op.RELEASE) == 9
        await kernel.rmmod("face_tap")


async def ignore(operation: Callable[..., Awaitable[object]], *arguments: object) -> None:
    with suppress(TreeError):
        await operation(*arguments)


async def test_an_open_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    async with serving(tmp_path / "k") as (kernel, _), SocketFace(tmp_path / "k") as face:
        for steps in range(1, 30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(face.open, "/dev/tap", "rw")
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await until(lambda: not kernel.chardevs.devices["tap"].files)
        assert await face.read_text(SEED) == "5"


async def test_a_kernel_that_ends(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel, trio.open_nursery() as nursery:
        servers = await nursery.start(until_told, ControlServer(kernel, tmp_path / "k"))
        async with SocketFace(tmp_path / "k") as face:
            file = await face.open(SEED)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(refused, errno.ECONNRESET, file.poll, POLLPRI)
                await trio.testing.wait_all_tasks_blocked(0.01)
                servers.cancel()
            await refused(errno.ECONNRESET, face.stat, SEED)
            await file.aclose()
    with pytest.raises(UsageError, match="no kernel at"):
        await SocketFace(tmp_path / "k").__aenter__()


async def until_told(server: ControlServer, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        task_status.started(nursery.cancel_scope)


async def test_a_face_that_is_not_entered(tmp_path: Path) -> None:
    await refused(errno.ENOTCONN, SocketFace(tmp_path / "k").stat, "/")


# --- bounds -------------------------------------------------------------------------------------------------


async def test_open_files_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path / "k"), SocketFace(tmp_path / "k") as face:
        files = [await face.open(SEED) for _ in range(c.FILES_MAX)]
        await refused(errno.EMFILE, face.open, SEED)
        await files[0].aclose()
        async with await face.open(SEED) as one, SocketFace(tmp_path / "k") as other, await other.open(SEED) as two:
            assert await one.read() == await two.read() == b"5\n"


async def test_requests_under_way_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path / "k") as (kernel, _), SocketFace(tmp_path / "k") as face:
        file = await face.open(SEED)
        async with trio.open_nursery() as nursery:
            for _ in range(c.FILE_REQUESTS_MAX):
                nursery.start_soon(file.poll, POLLPRI)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await refused(errno.EAGAIN, face.read, SEED)
            async with ControlClient(tmp_path / "k") as other:
                assert await other.read(SEED) == "5"
            nursery.cancel_scope.cancel()
        await until(lambda: kernel.sysfs.waiter_count == 0)
        assert await face.read_text(SEED) == "5"


async def test_a_client_that_takes_no_answers_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path / "k") as (kernel, _):
        kernel.sysfs.add("/sys/big", object())
        kernel.sysfs.add_attribute("/sys/big", uxk.core.tree.Attribute("a", show=lambda _: "x" * 4000))  # type: ignore[attr-defined]
        stream = await trio.open_unix_socket(tmp_path / "k")
        await stream.send_all(frame_of(c.Hello(1, 2)))
        burst = b"".join(frame_of(c.ReadFile(n, "/sys/big/a")) for n in range(1, 2000))
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, burst)
                await trio.testing.wait_all_tasks_blocked(0.02)
                async with SocketFace(tmp_path / "k") as other:
                    assert await other.read_text(SEED) == "5"
                nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


# --- clients that misbehave ---------------------------------------------------------------------------------


async def converse(path: Path, *messages: bytes, version: int = 2) -> list[Any]:
    """What the kernel answers, until it hangs up or we do."""
    answers: list[Any] = []
    link: Connection[c.ToClient] = Connection(await trio.open_unix_socket(path), c.ToClient)
    try:
        await link.stream.send_all(b"".join([frame_of(c.Hello(1, version)), *messages]))
        await link.stream.send_eof()
    except trio.BrokenResourceError:
        pass
    try:
        while (answer := await link.receive()) is not None:
            answers.append(answer)
    except trio.BrokenResourceError:
        pass
    await link.stream.aclose()
    return answers


async def test_files_need_the_second_version(tmp_path: Path) -> None:
    async with serving(tmp_path / "k"):
        for request in (c.StatFile(7, "/sys"), c.Cancel(7)):
            answers = await converse(tmp_path / "k", frame_of(request), version=1)
            assert isinstance(answers[0], c.Welcome) and answers[0].version == 1
            assert isinstance(answers[1], c.Failure) and answers[1].cid == 0 and "version 2" in answers[1].message


async def test_a_number_that_is_under_way_ends_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "k"):
        messages = [frame_of(m) for m in (c.OpenFile(1, SEED), c.PollOpen(2, 1, POLLPRI), c.PollOpen(2, 1, POLLPRI))]
        answers = await converse(tmp_path / "k", messages[0], *messages[1:])
        assert any(isinstance(each, c.Failure) and each.cid == 0 and "under way" in each.message for each in answers)


ARGUMENTS = st.one_of(
    st.integers(-1, 3), st.sampled_from(["/sys", SEED, "/dev/tap", "/dev/kmsg", "/", "", "rw", "x", "\0"]),
    st.booleans(), st.binary(max_size=5), st.none(), st.lists(st.integers(-9, 9), max_size=3),
    st.integers(2**31, 2**64 - 1),
)  # fmt: skip
BODIES = st.lists(
    st.builds(
        lambda tag, cid, rest: [tag, cid, *rest],
        st.integers(19, 31), st.integers(1, 4), st.lists(ARGUMENTS, max_size=4),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(BODIES)
@settings(max_examples=80)
def test_requests_of_any_form(bodies: list[Any]) -> None:
    async def main() -> None:
        frames = [msgspec.msgpack.encode(body) for body in bodies]
        with tempfile.TemporaryDirectory() as folder, trio.fail_after(60):
            async with serving(Path(folder, "k")) as (kernel, server):
                answers = await converse(Path(folder, "k"), *(struct.pack("<I", len(f)) + f for f in frames))
                assert isinstance(answers[0], c.Welcome)
                for answer in answers[1:]:
                    assert isinstance(answer, c.Part | c.Failure)
                    if isinstance(answer, c.Failure):
                        assert answer.errno != errno.EFAULT and answer.kind != "KernelBug", answer
                async with SocketFace(Path(folder, "k")) as other:
                    assert await other.read_text(SEED) == "5"
                await until(lambda: server.statistics().clients == 0)
                assert kernel.sysfs.waiter_count == 0 and not kernel.chardevs.devices["tap"].files

    trio.run(main)


# --- kernels that misbehave ---------------------------------------------------------------------------------


@asynccontextmanager
async def impostor(path: Path, *answers: Any, version: int = 2) -> AsyncIterator[None]:
    """A kernel that says what it is told to, whatever it is asked."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()

    async def serve(listener: trio.SocketListener) -> None:
        async with await listener.accept() as stream:
            link: Connection[c.ToKernel] = Connection(stream, c.ToKernel)
            await link.receive()
            await link.send(c.Welcome(version, "real", 1))
            for answer in answers:
                await link.receive()
                await link.send(answer)
            await trio.sleep_forever()

    async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve, listener)
        yield
        nursery.cancel_scope.cancel()


async def test_a_kernel_of_the_first_version(tmp_path: Path) -> None:
    async with impostor(tmp_path / "k", version=1):
        with pytest.raises(UsageError) as refusal:
            await SocketFace(tmp_path / "k").__aenter__()
        assert refusal.value.errno == errno.EPROTONOSUPPORT


@pytest.mark.parametrize(
    "answer",
    [
        c.Part(9, b"\xc4\x01x"),
        c.Welcome(2, "real", 1),
        c.Part(1, b"\xc1"),
        c.End(1),
        c.Part(1, b"\xa1x"),
        c.Part(1, b""),
    ],
    ids=str,
)
async def test_answers_that_are_none(tmp_path: Path, answer: Any) -> None:
    async with impostor(tmp_path / "k", answer), SocketFace(tmp_path / "k") as face:
        await refused(errno.EPROTO, face.read, SEED)


async def test_errors_of_any_class_are_tree_errors(tmp_path: Path) -> None:
    for number, exc in enumerate((CapabilityError("no"), ProtocolError("no"), uxk.RingFull("no"))):
        path = tmp_path / str(number)
        failure = c.Failure(1, exc.errno, type(exc).__name__, "no")
        async with impostor(path, failure), SocketFace(path) as face:
            await refused(exc.errno, face.read, SEED)


async def test_what_cannot_be_sent_is_refused_here(tmp_path: Path) -> None:
    async with serving(tmp_path / "k"), SocketFace(tmp_path / "k") as face, await face.open("/dev/tap", "rw") as file:
        await refused(errno.EINVAL, file.ioctl, "x" * 300)
        await refused(errno.EINVAL, file.ioctl, 1, object())
        await refused(errno.EINVAL, file.poll, -1)
        await refused(errno.EINVAL, face.read_at, SEED, -1, 1)
        assert await file.read() == b"data"
