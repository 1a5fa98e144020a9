"""Bytes that no honest client would send: the connection ends with an error, the kernel goes on."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.bridges.control import Connection, frame_of, is_hosted
from uxk.bridges.control_client import ControlClient
from uxk.bridges.control_server import ControlServer
from uxk.errors import ProtocolError
from uxk.kernel.process_child import HOSTS
from uxk.limits import FRAME_MAX_BYTES
from uxk.uapi import control as c

HELLO = frame_of(c.Hello(1, 1))


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


async def _attack(data: bytes) -> tuple[list[Any], str]:
    """What the kernel answers to ``data``, and what another client sees afterwards."""
    answers: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "k")
        async with uxk.Kernel() as kernel, trio.open_nursery() as nursery:
            server = ControlServer(kernel, path)
            await nursery.start(server.serve)
            stream = await trio.open_unix_socket(path)
            link: Connection[c.ToClient] = Connection(stream, c.ToClient)

            async def read() -> None:
                try:
                    while (answer := await link.receive()) is not None:
                        answers.append(answer)
                except trio.BrokenResourceError:
                    pass

            with trio.fail_after(60):
                async with trio.open_nursery() as inner:
                    inner.start_soon(read)
                    try:
                        await stream.send_all(data)
                        await stream.send_eof()
                    except trio.BrokenResourceError:
                        pass
            await stream.aclose()
            async with ControlClient(path) as other:
                seed = await other.read("/sys/kernel/seed")
            assert not any(record.level < 4 for record in kernel.kmsg.records())
            nursery.cancel_scope.cancel()
    return answers, seed


def attack(data: bytes) -> list[Any]:
    answers, seed = trio.run(_attack, data)
    assert seed == "0"
    return answers


requests = st.sampled_from([
    c.ListModules(1), c.Modprobe(2, "x", {"a": "b"}), c.Rmmod(3, "x"), c.Depmod(4), c.Dmesg(5), c.Follow(6),
    c.ReadAttribute(7, "/sys"), c.WriteAttribute(8, "/sys", "v"), c.Render(9, "/"), c.Statistics(10), c.Hello(1, 1),
])  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
entries = st.builds(lambda tag, rest: [tag, *rest], st.integers(0, 70), st.lists(values, max_size=5))


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    attack(data)


@given(st.binary(max_size=400))
def test_random_bytes_after_a_proper_start(data: bytes) -> None:
    answers = attack(HELLO + data)
    assert isinstance(answers[0], c.Welcome)


@given(st.lists(entries | values, min_size=1, max_size=4))
def test_random_messagepack(bodies: list[Any]) -> None:
    answers = attack(HELLO + b"".join(framed(msgspec.msgpack.encode(body)) for body in bodies))
    assert isinstance(answers[0], c.Welcome) and len(answers) > 1


@given(requests, st.data())
def test_messages_cut_short(request: c.ToKernel, data: st.DataObject) -> None:
    frame = frame_of(request)
    cut = data.draw(st.integers(1, len(frame) - 1))
    answers = attack(HELLO + frame[:cut])
    assert [type(answer) for answer in answers] == [c.Welcome, c.Failure]
    assert answers[1].kind == "ProtocolError"


@given(requests, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 255)), min_size=1, max_size=4))
def test_messages_with_bytes_changed(request: c.ToKernel, changes: list[tuple[int, int]]) -> None:
    frame = bytearray(frame_of(request))
    for place, byte in changes:
        frame[place % len(frame)] = byte
    attack(HELLO + bytes(frame))


@given(st.lists(requests, max_size=8))
@settings(max_examples=20)
def test_requests_without_end(sent: list[c.ToKernel]) -> None:
    """Valid ones, all at once and without waiting: each is answered until one ends the connection."""
    answers = attack(HELLO + b"".join(map(frame_of, sent)))
    plain = next((i for i, request in enumerate(sent) if isinstance(request, c.Hello | c.Follow)), len(sent))
    answered = [answer.cid for answer in answers[1:] if isinstance(answer, c.Part | c.Failure) and answer.cid]
    wanted = [request.cid for request in sent[:plain] if not isinstance(request, c.Hello)]
    assert answered[: len(wanted)] == wanted


@pytest.mark.parametrize("length", [0, FRAME_MAX_BYTES + 1, 2**32 - 1])
def test_lengths_out_of_range(length: int) -> None:
    answers = attack(HELLO + struct.pack("<I", length) + b"x" * 10)
    assert isinstance(answers[1], c.Failure) and answers[1].errno == errno.EPROTO and str(length) in answers[1].message


def test_the_largest_frame_is_read() -> None:
    answers = attack(HELLO + framed(b"\xc6" + struct.pack(">I", FRAME_MAX_BYTES - 5) + bytes(FRAME_MAX_BYTES - 5)))
    assert "no message" in answers[1].message


def test_deep_nesting() -> None:
    answers = attack(HELLO + framed(b"\x91" * 100_000))
    assert answers[1].kind == "ProtocolError"


def test_a_request_before_hello() -> None:
    (answer,) = attack(frame_of(c.ListModules(1)))
    assert answer.kind == "ProtocolError" and "ListModules, expected Hello" in answer.message


def test_a_second_hello() -> None:
    assert "second Hello" in attack(HELLO + HELLO)[1].message


def test_floods_of_bad_connections_do_not_fill_the_log() -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "k")
            async with uxk.Kernel() as kernel, trio.open_nursery() as nursery:
                server = ControlServer(kernel, path)
                await nursery.start(server.serve)
                for _ in range(50):
                    stream = await trio.open_unix_socket(path)
                    await stream.send_all(bytes(4))
                    await stream.receive_some()
                    await stream.aclose()
                assert server.statistics().bad_frames == 50
                assert len(kernel.kmsg.records(source="control", max_level=4)) == 8
                nursery.cancel_scope.cancel()

    trio.run(run)


def test_a_server_that_lies_to_its_client() -> None:
    """The client survives whatever the other side sends, too."""

    async def run(reply: bytes) -> None:
        async def lie(stream: trio.SocketStream) -> None:
            await stream.receive_some(1000)
            await stream.send_all(reply)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "k")
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(path))
            sock.listen(1)
            async with trio.open_nursery() as nursery:
                listener = trio.SocketListener(sock)
                nursery.start_soon(trio.serve_listeners, lie, [listener])
                with pytest.raises(uxk.UxkError):
                    async with ControlClient(path) as kernel:
                        await kernel.lsmod()
                nursery.cancel_scope.cancel()

    welcome = frame_of(c.Welcome(1, "real", 1))
    for reply in (
        b"", b"\0\0\0\0", b"\xff" * 9, framed(b"\xc0"), welcome + frame_of(c.Part(7, b"\xc0")), frame_of(c.End(1)),
        welcome + frame_of(c.Part(1, b"\xc1")), welcome + frame_of(c.End(1)), welcome + frame_of(c.Part(1, b"", True)),
    ):  # fmt: skip
        trio.run(run, reply)


def test_frames_too_long_are_not_sent() -> None:
    with pytest.raises(ProtocolError) as refused:
        frame_of(c.Part(1, bytes(FRAME_MAX_BYTES)))
    assert refused.value.errno == errno.EMSGSIZE


INTRUDER = """
import socket
from contextlib import suppress

import uxk
from uxk.bridges.control import frame_of
from uxk.uapi import control as c


class Intruder(uxk.Extension):
    manifest = uxk.Manifest(name="intruder", placement="process", sandbox=uxk.Sandbox(network=True))

    def setup(self, ctx):
        self.socket = socket.socket(socket.AF_UNIX)

    def on_batch(self, ctx, requests):
        for request in requests:
            if request.payload:
                self.socket.connect(request.payload.decode())
                with suppress(BrokenPipeError):  # refused already: the reason can still be read
                    self.socket.sendall(frame_of(c.Hello(1, 1)) + frame_of(c.Rmmod(2, "intruder")))
                ctx.complete(request)
            else:
                ctx.complete(request, self.socket.recv(4096))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="extensions are processes on Linux only")
async def test_an_extension_that_may_use_sockets_does_not_rule_its_kernel(tmp_path: Path) -> None:
    file = tmp_path / "intruder.py"
    file.write_text(INTRUDER)
    async with uxk.Kernel(clock="real") as kernel, trio.open_nursery() as nursery:
        server = ControlServer(kernel, tmp_path / "k")
        await nursery.start(server.serve)
        intruder = await kernel.insmod(file)
        await intruder.submit(bytes(tmp_path / "k"))
        assert b"may not tell a kernel what to do" in (await intruder.submit()).payload
        pid = int(kernel.sysfs.read("/sys/module/intruder/pid"))
        assert is_hosted(pid, HOSTS) and not is_hosted(os.getpid(), HOSTS)
        await kernel.rmmod("intruder")
        nursery.cancel_scope.cancel()
    assert is_hosted(pid, HOSTS), "nobody knows what it was, so it counts as one"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_a_host_has_started_counts_as_the_host_and_a_child_of_the_kernel_s_user_does_not() -> None:
    line = [sys.executable, "-c", "import subprocess; subprocess.run(['cat'])"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(b"x")
        parent.stdin.flush()
        parent.stdout.read(1)  # so the grandchild runs
        child = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text())
        assert is_hosted(child, {parent.pid}) and is_hosted(parent.pid, {parent.pid})
        assert not is_hosted(child, set()) and not is_hosted(None, {parent.pid})
