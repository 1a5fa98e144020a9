"""The control socket with both ends in this process: every operation, errors, streams, many clients."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import trio
import trio.testing

import uxk
from uxk import errors
from uxk.bridges.control import Connection, error_of, failure_of, frame_of
from uxk.bridges.control_client import ControlClient
from uxk.bridges.control_server import CLIENTS_MAX, ControlServer, encode_value
from uxk.core.kmsg import format_dmesg
from uxk.core.tree import Attribute
from uxk.uapi import control as c

NOBODY = 65534


class Knobs(uxk.Params):
    """Two of them."""

    depth: Annotated[int, uxk.param(ge=1, le=8, help="how deep", writable=True)] = 2
    broken: bool = False


class Demo(uxk.Extension[Knobs]):
    """Logs a line and answers."""

    manifest = uxk.Manifest(
        name="ctl_demo", version="3", license="MIT", kind="driver", driver_class="misc", params=Knobs
    )

    def setup(self, ctx: uxk.Context) -> None:
        if self.params.broken:
            raise RuntimeError("no such hardware")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, payload=request.payload)


class Runner(uxk.Extension[Any]):
    """Is ready only after its own Trio task has run: the kernel must find a quiet moment."""

    manifest = uxk.Manifest(name="ctl_runner", ready="explicit", depends=("ctl_demo",))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.lowlevel.checkpoint()
        ctx.ready()
        await trio.sleep_forever()


@dataclass
class Served:
    """A kernel that listens."""

    kernel: uxk.Kernel
    server: ControlServer
    nursery: trio.Nursery

    @property
    def path(self) -> Path:
        """Where."""
        return self.server.path


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Served]:
    """A virtual kernel with a control socket."""
    async with uxk.Kernel(seed=5) as kernel, trio.open_nursery() as nursery:
        server = ControlServer(kernel, path)
        await nursery.start(server.serve)
        yield Served(kernel, server, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path / "k.sock") as found:
        yield found


# --- operations ---------------------------------------------------------------------------------------


async def test_every_operation(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        assert (kernel.welcome.version, kernel.welcome.clock, kernel.welcome.pid) == (2, "virtual", os.getpid())
        assert await kernel.lsmod() == ()
        assert await kernel.modprobe("ctl-demo", {"depth": "4"}) == "ctl_demo"
        (row,) = await kernel.lsmod()
        assert msgspec.structs.asdict(row) == msgspec.structs.asdict(served.kernel.lsmod()[0])
        assert "ctl_demo" in {each.name for each in await kernel.available()}

        base = "/sys/module/ctl_demo/parameters"
        assert await kernel.read(f"{base}/depth") == "4"
        await kernel.write(f"{base}/depth", "8\n")
        assert await kernel.read(f"{base}/depth") == "8"
        assert [entry.name for entry in await kernel.listdir(base)] == ["broken", "depth"]
        assert (await kernel.stat(f"{base}/depth")).mode == 0o644
        (link,) = await kernel.listdir("/sys/class/misc")
        assert (link.kind, link.target) == ("link", served.kernel.sysfs.readlink("/sys/class/misc/ctl_demo0"))
        assert await kernel.render("/sys", values=True) == served.kernel.sysfs.render("/sys", values=True)

        assert (await kernel.statistics("ctl_demo"))["devices"] == 1
        assert (await kernel.statistics())["event_hash"] == served.kernel.event_hash()
        await kernel.rmmod("ctl_demo")
        assert await kernel.lsmod() == ()
        assert await kernel.dmesg() == served.kernel.kmsg.records()
        assert await kernel.dmesg(levels=1 << 3) == []


async def test_modinfo_and_depmod_are_the_kernels_own(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        shown = await kernel.modinfo("ctl_demo")
        assert shown == served.kernel.modinfo("ctl_demo")
        assert [parameter.help for parameter in shown.parameters] == ["how deep", ""]
        assert msgspec.structs.asdict(await kernel.depmod()) == msgspec.structs.asdict(served.kernel.depmod())


async def test_insmod_takes_a_file(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "ctl_file.py"
    file.write_text("import uxk\nclass F(uxk.Extension):\n    manifest = uxk.Manifest(name='ctl_file')\n")
    async with ControlClient(served.path) as kernel:
        assert await kernel.insmod(file, instance="other") == "other"
        with pytest.raises(errors.NoSuchModule, match="no file"):
            await kernel.insmod(tmp_path / "absent.py")
        with pytest.raises(errors.UsageError, match="absolute"):
            await kernel._call(c.Insmod, str, "ctl_file.py")


async def test_errors_keep_class_errno_and_message(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        with pytest.raises(errors.NoSuchModule, match="did you mean 'ctl_demo'") as no_module:
            await kernel.modprobe("ctl_dem")
        assert no_module.value.errno == errno.ENOENT
        with pytest.raises(errors.ParamError, match="depth='9'"):
            await kernel.modprobe("ctl_demo", {"depth": "9"})
        with pytest.raises(errors.ParamError, match="further instance"):
            await kernel.modprobe("ctl_demo", {"instance": "x"})
        with pytest.raises(errors.ProbeError, match="no such hardware"):
            await kernel.modprobe("ctl_demo", {"broken": "1"})
        await kernel.modprobe("ctl_runner")
        with pytest.raises(errors.InUse, match="ctl_runner"):
            await kernel.rmmod("ctl_demo")
        for path, number in (("/nope", errno.ENOENT), ("/sys", errno.EISDIR), ("sys", errno.EINVAL)):
            with pytest.raises(errors.TreeError) as refused:
                await kernel.read(path)
            assert refused.value.errno == number
        with pytest.raises(errors.TreeError) as denied:
            await kernel.write("/sys/kernel/seed", "1")
        assert denied.value.errno == errno.EACCES
        assert len(await kernel.lsmod()) == 2


async def test_what_cannot_be_sent_is_refused_and_the_connection_lives(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        for value in ("x" * 5000, "\ud800"):
            with pytest.raises(errors.UsageError):
                await kernel.write("/sys/kernel/seed", value)
        assert await kernel.lsmod() == ()
    with pytest.raises(errors.UsageError, match="not connected"):
        await kernel.lsmod()


async def test_a_defect_of_the_kernel_is_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(served.kernel, "modinfo", broken)
    async with ControlClient(served.path) as kernel:
        with pytest.raises(errors.KernelBug, match="ZeroDivisionError: oops"):
            await kernel.modinfo("ctl_demo")
        monkeypatch.setattr(served.kernel, "modinfo", lambda name: object())
        with pytest.raises(errors.KernelBug):
            await kernel.modinfo("ctl_demo")
        assert await kernel.lsmod() == ()
    assert any("oops" in record.text for record in served.kernel.kmsg.records(source="control"))


async def test_answers_larger_than_a_frame_come_in_parts(served: Served) -> None:
    for number in range(2000):
        served.kernel.sysfs.add(f"/sys/big/{number:0200d}/{number:0200d}", object(), ())
    served.kernel.sysfs.add_attribute("/sys/big", Attribute("a", show=lambda _: "1"))
    async with ControlClient(served.path) as kernel:
        picture = await kernel.render("/sys/big")
        assert len(picture.encode()) > uxk.limits.FRAME_MAX_BYTES >> 1 > c.PART_MAX_BYTES
        assert picture == served.kernel.sysfs.render("/sys/big")
        assert len(await kernel.listdir("/sys/big")) == 2001


def test_an_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "REPLY_MAX_BYTES", 100)
    with pytest.raises(errors.UsageError) as refused:
        encode_value("x" * 101)
    assert refused.value.errno == errno.EFBIG


async def test_what_enters_is_part_of_the_run(tmp_path: Path) -> None:
    async def run(depth: str) -> str:
        async with serving(tmp_path / "k.sock") as served, ControlClient(served.path) as kernel:
            await kernel.modprobe("ctl_demo")
            await kernel.write("/sys/module/ctl_demo/parameters/depth", depth)
            await kernel.lsmod()
            return served.kernel.event_hash()

    assert await run("3") == await run("3") != await run("4")


# --- versions, errors as data -----------------------------------------------------------------------------


async def raw(path: Path) -> Connection[c.ToClient]:
    return Connection(await trio.open_unix_socket(path), c.ToClient)


@pytest.mark.parametrize(
    ("oldest", "newest", "agreed"), [(1, 1, 1), (1, 2, 2), (0, 9, 2), (2, 9, 2), (3, 9, 0), (0, 0, 0)]
)
async def test_version_negotiation(served: Served, oldest: int, newest: int, agreed: int) -> None:
    link = await raw(served.path)
    await link.send(c.Hello(oldest, newest))
    answer = await link.receive()
    if agreed:
        assert isinstance(answer, c.Welcome) and answer.version == agreed
    else:
        assert isinstance(answer, c.Failure) and answer.errno == errno.EPROTONOSUPPORT
        assert await link.receive() is None
    await trio.aclose_forcefully(link.stream)


ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.UxkError)]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_crosses(cls: type[errors.UxkError]) -> None:
    came = error_of(failure_of(3, cls("what happened", errno=errno.EXDEV)))
    assert type(came) is cls and came.errno == errno.EXDEV and came.args == ("what happened",)


def test_errors_of_others_cross_as_the_nearest() -> None:
    class Special(errors.ParamError):
        pass

    assert type(error_of(failure_of(1, Special("x")))) is errors.ParamError
    assert type(error_of(failure_of(1, ValueError("\ud800" + "x" * 9999)))) is errors.KernelBug
    assert type(error_of(c.Failure(1, 5, "OSError", "x"))) is errors.UxkError
    assert type(error_of(c.Failure(1, 5, "annotations", "x"))) is errors.UxkError


# --- the log as a stream ------------------------------------------------------------------------------------


async def test_follow_shows_what_is_held_and_what_comes(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        stream = await kernel.follow()
        records, lost = await anext(stream)
        assert records == served.kernel.kmsg.records() and lost == 0
        served.kernel.machine.log("err", "x", "one")
        records, _ = await anext(stream)
        assert [format_dmesg(record) for record in records] == ["[    0.000000] x: one"]


async def test_follow_only_new_records_of_some_levels(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        stream = await kernel.follow(levels=1 << 3 | 1 << 7, oldest=False)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for level in ("info", "err", "warning", "debug"):
            served.kernel.machine.log(level, "x", level)
        records, _ = await anext(stream)
        assert [record.text for record in records] == ["err", "debug"]


async def test_a_slow_follower_loses_records_and_holds_up_nobody(served: Served) -> None:
    total = 3 * served.kernel.kmsg.capacity
    link = await raw(served.path)
    await link.send(c.Hello(1, 1))
    await link.receive()
    await link.send(c.Follow(9, oldest=False))
    await trio.testing.wait_all_tasks_blocked(0.01)
    first = served.kernel.kmsg.next_seq
    for number in range(total):
        served.kernel.machine.log("info", "x", f"{number} " + "x" * 900)
        if number % 1000 == 0:
            await trio.testing.wait_all_tasks_blocked()
    async with ControlClient(served.path) as other:
        assert await other.lsmod() == ()

    seen, lost = list[int](), 0
    while not seen or seen[-1] != first + total - 1:
        data, more = b"", True
        while more:
            part = await link.receive()
            assert isinstance(part, c.Part)
            data, more = data + part.data, part.more
        batch = msgspec.msgpack.decode(data, type=c.LogBatch)
        seen += [record.seq for record in batch.records]
        lost += batch.lost
    assert lost > 0 and len(seen) + lost == total and seen == sorted(set(seen))
    assert served.server.statistics().records_lost == lost
    await trio.aclose_forcefully(link.stream)


async def test_a_follower_that_hangs_up_is_forgotten(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        await anext(await kernel.follow())
        assert served.kernel.kmsg.statistics().followers == 1
    await until_quiet(served)
    assert served.kernel.kmsg.statistics().followers == 0
    assert served.server.statistics().clients == 0


async def test_too_many_followers_are_refused(served: Served) -> None:
    for _ in range(uxk.limits.POLL_WAITERS_MAX):
        served.kernel.kmsg.subscribe(lambda: None)
    async with ControlClient(served.path) as kernel:
        with pytest.raises(errors.TreeError) as refused:
            await anext(await kernel.follow())
        assert refused.value.errno == errno.ENOSPC


async def until_quiet(served: Served) -> None:
    """Waits until the server has noticed who is gone."""
    with trio.fail_after(30):
        while served.server.statistics().clients:
            await trio.testing.wait_all_tasks_blocked(0.001)


# --- clients come and go ------------------------------------------------------------------------------------


async def test_many_clients_at_a_time(served: Served) -> None:
    served.kernel.machine.log("info", "x", "hello")

    async def use(number: int) -> None:
        async with ControlClient(served.path) as kernel:
            await kernel.modprobe("ctl_demo", instance=f"d{number}")
            assert f"d{number}" in {row.name for row in await kernel.lsmod()}
            await kernel.rmmod(f"d{number}")

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(use, number)
    await until_quiet(served)
    assert served.kernel.lsmod() == [] and served.server.statistics().accepted == 40


async def test_no_more_clients_than_there_is_room(served: Served) -> None:
    links = [await raw(served.path) for _ in range(CLIENTS_MAX)]
    for link in links:
        await link.send(c.Hello(1, 1))
        assert isinstance(await link.receive(), c.Welcome)
    with pytest.raises(errors.RingFull, match=f"{CLIENTS_MAX} clients"):
        async with ControlClient(served.path):
            pass
    assert served.server.statistics().refused == 1
    for link in links:
        await trio.aclose_forcefully(link.stream)
    await until_quiet(served)
    async with ControlClient(served.path) as kernel:
        assert await kernel.lsmod() == ()


async def test_tasks_share_a_client(served: Served) -> None:
    async with ControlClient(served.path) as kernel, trio.open_nursery() as nursery:

        async def ask(path: str) -> None:
            for _ in range(20):
                assert await kernel.read(path) == served.kernel.sysfs.read(path)

        for path in ("/sys/kernel/seed", "/sys/kernel/clock", "/sys/kernel/now_ns"):
            nursery.start_soon(ask, path)


async def test_the_server_ends_while_clients_are_connected(tmp_path: Path) -> None:
    async with serving(tmp_path / "k.sock") as served:
        idle = ControlClient(served.path)
        await idle.__aenter__()
        follower = ControlClient(served.path)
        await follower.__aenter__()
        stream = await follower.follow()
        await anext(stream)
        served.nursery.cancel_scope.cancel()
    assert not served.path.exists()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    with pytest.raises(errors.UxkError, match="is gone") as gone:
        await idle.lsmod()
    assert gone.value.errno == errno.ECONNRESET
    await follower.aclose()
    with pytest.raises(errors.UsageError, match=r"no kernel at .*uxk boot --socket") as absent:
        await ControlClient(served.path).__aenter__()
    assert absent.value.errno == errno.ENOENT


async def test_a_request_that_is_cancelled_ends_the_connection(served: Served) -> None:
    async with ControlClient(served.path) as kernel:
        async with served.server._turn, trio.open_nursery() as nursery:  # it has the request, but cannot answer yet
            nursery.start_soon(kernel.lsmod)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        with pytest.raises(errors.UsageError, match="not connected"):
            await kernel.lsmod()
    async with ControlClient(served.path) as kernel:
        assert await kernel.lsmod() == ()


async def test_a_client_that_floods_cannot_stop_the_kernel(served: Served) -> None:
    stop = threading.Event()
    going = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(served.path))
            sock.sendall(frame_of(c.Hello(1, 1)))
            burst = frame_of(c.StatPath(1, "/sys")) * 100
            while not stop.is_set():
                sock.sendall(burst)
                sock.recv(1 << 20)
                going.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, flood)
        try:
            await trio.to_thread.run_sync(going.wait)
            with trio.fail_after(60):
                await served.kernel.modprobe("ctl_runner")
                assert not stop.is_set()
        finally:
            stop.set()


# --- who may ----------------------------------------------------------------------------------------------

_ASK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
    try:
        sock.sendall(bytes.fromhex(sys.argv[2]))
    except BrokenPipeError:
        pass  # refused already: the reason can still be read
    print(sock.recv(4096).hex())
except OSError as exc:
    print(exc.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_other_users_are_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "k.sock")

        async def ask() -> str:
            done = await trio.run_process(
                ["/usr/bin/env", "python3", "-c", _ASK, str(path), frame_of(c.Hello(1, 1)).hex()],
                capture_stdout=True, capture_stderr=True, check=False, user=NOBODY,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"no Python that uid {NOBODY} can run: {done.stderr.decode()}")
            return str(done.stdout.decode().strip())

        async with serving(path) as served:
            assert int(await ask()) == errno.EACCES
            os.chmod(path, 0o666)  # an administrator's mistake: the peer's credentials still count
            answer = msgspec.msgpack.decode(bytes.fromhex(await ask())[4:], type=c.ToClient)
            assert isinstance(answer, c.Failure) and answer.kind == "CapabilityError"
            assert str(NOBODY) in answer.message
            assert served.server.statistics().refused == 1


def test_the_client_imports_no_kernel() -> None:
    program = (
        "import uxk.bridges.control_client, sys; print(*{'uxk.kernel.kernel', 'numpy', 'river'} & set(sys.modules))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
