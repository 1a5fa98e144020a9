"""A program in another language as a module: the C example compiled and loaded, and what a file may get wrong."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.actor import sandbox, wire
from uxk.cli import main
from uxk.errors import ManifestError, ModuleError, NoSuchModule, ParamError, ProbeError, UsageError, UxkError
from uxk.scenario import ClosedLoop, Load
from uxk.scenario.results import Result
from uxk.uapi.manifest import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ROOT / "examples/c"
READ, WRITE = uxk.Op.READ, uxk.Op.WRITE
FLAGS = ("-Wall", "-Wextra", "-Werror", "-O2")

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def ramdisk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled: its TOML file."""
    folder = tmp_path_factory.mktemp("c")
    for name in ("ramdisk.c", "ramdisk.toml", "wire.h"):
        shutil.copy(SOURCES / name, folder)
    subprocess.run(["cc", *FLAGS, "-o", "ramdisk", "ramdisk.c"], cwd=folder, check=True)
    return folder / "ramdisk.toml"


def texts(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records()]


# --- the example ----------------------------------------------------------------------------------------


def under_load(file: Path, clock: str) -> Result:
    load = ClosedLoop(device="cramdisk0", count=1500, depth=32, span_bytes=1 << 20, read_ppm=400_000, verify=True)
    loads = (Load(file=str(file), params={"size": "1MiB"}),)
    scenario = uxk.Scenario(name="c", clock=clock, modules=loads, workloads=(load,))  # type: ignore[arg-type]
    return uxk.run(scenario)


@pytest.mark.parametrize("clock", ["virtual", "charged"])
def test_it_serves_under_load_and_every_run_is_the_same(ramdisk: Path, clock: str) -> None:
    results = [under_load(ramdisk, clock) for _ in range(2)]
    for result in results:
        assert result.ok, result.report()
        assert result["workloads.load.completed"] >= 1500
    assert results[0].event_hash == results[1].event_hash


async def test_large_transfers_leave_in_several_messages(ramdisk: Path) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(ramdisk)
        size = 128 << 10
        blocks = [hashlib.shake_128(bytes([n])).digest(size) for n in range(48)]  # 6 MiB: a frame holds 1
        writes = [uxk.Request(0, WRITE, block, n * size, size) for n, block in enumerate(blocks)]
        assert {answer.status for answer in await module.submit_batch(writes)} == {0}
        reads = [uxk.Request(0, READ, b"", n * size, size) for n in range(48)]
        assert [answer.payload for answer in await module.submit_batch(reads)] == blocks


def newer_than(file: Path) -> Path:
    """The same module in another version."""
    newer = file.with_name("newer.toml")
    newer.write_text(file.read_text("utf-8").replace('version = "1.0"', 'version = "2.0"'), "utf-8")
    return newer


async def test_a_killed_disk_has_its_data_when_it_is_back(ramdisk: Path) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(ramdisk)
        await module.submit(b"a" * 512, opcode=WRITE, offset=0, length=512)
        for count in range(1, 4):
            os.kill(kernel.lsmod()[0].pid, 9)
            answer = await module.submit(b"", opcode=READ, offset=0, length=512)
            assert answer.payload == b"a" * 512, "asked of the dead, answered by the next"
            assert module.account.restarts == count
        assert "oops: Killed in process: signal 9 (SIGKILL)" in texts(kernel)
        await kernel.upgrade("cramdisk", newer_than(ramdisk))
        assert kernel.lsmod()[0].version == "2.0"
        assert (await module.submit(b"", opcode=READ, offset=0, length=3)).payload == b"aaa"


class Client(uxk.Extension):
    """Reads and writes through memory of its own."""

    manifest = uxk.Manifest(name="client", kind="ml-agent", capabilities=("device:*:submit",))

    async def run(self, ctx: uxk.Context) -> None:
        cap = (await ctx.allocate(8192)).result
        view = ctx.map(cap, writable=True)
        view[4096:4104] = b"from far"
        disk = (await ctx.open("device", "cramdisk0", uxk.Rights.SUBMIT)).result
        await ctx.submit(disk, WRITE, offset=512, length=8, region=cap, buffer=4096)
        await ctx.submit(disk, READ, offset=512, length=8, region=cap, buffer=100)
        ctx.log(bytes(view[100:108]).decode())


async def test_data_may_lie_in_a_clients_memory(ramdisk: Path) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(ramdisk)
        await kernel.insmod(Client)
        await kernel.run()
        said = texts(kernel)
        assert "from far" in said


async def test_on_the_real_clock(ramdisk: Path) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(ramdisk)
        for number in range(50):
            await module.submit(b"%08d" % number, opcode=WRITE, offset=8 * number, length=8)
        os.kill(kernel.lsmod()[0].pid, 9)
        answer = await module.submit(b"", opcode=READ, offset=0, length=400)
        assert answer.payload == b"".join(b"%08d" % number for number in range(50))


REFUSED = (
    (uxk.Request(0, READ, b"", 16 << 20, 1), errno.EINVAL),
    (uxk.Request(0, READ, b"", (1 << 63) - 1, (1 << 32) - 1), errno.EINVAL),
    (uxk.Request(0, READ, b"", 0, 1 << 20), errno.EINVAL),
    (uxk.Request(0, WRITE, b"short", 0, 512), errno.EINVAL),
    (uxk.Request(0, 99, b"", 0, 0), errno.EOPNOTSUPP),
    (uxk.Request(0, READ, b"", 16 << 20, 0), 0),
)


async def test_what_it_cannot_do_it_refuses(ramdisk: Path) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(ramdisk)
        answers = await module.submit_batch([request for request, _ in REFUSED])
        assert [answer.status for answer in answers] == [status for _, status in REFUSED]
        assert module.account.restarts == 0


# --- a kernel that lies ---------------------------------------------------------------------------------


START = wire.Start(
    version=1, name="c", instance=1, seed=7, depth=64, now_ns=0, params=msgspec.msgpack.encode({"size": 4096}),
    device="c0", module="", qualname="", file="", search=(), held=True, boot_ns=0, memory_bytes=1 << 30,
    sandbox=Sandbox(),
)  # fmt: skip


def served(program: Path, data: bytes) -> tuple[int, bytes]:
    """What the program makes of a stream of bytes and its end: exit status, what it printed."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(
        [program], env={"UXK_FD": str(theirs.fileno()), "ASAN_OPTIONS": "detect_leaks=0"}, pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        theirs.close()
        with contextlib.suppress(ConnectionError):  # it ends before it has read everything
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            while ours.recv(1 << 16):
                pass
        assert running.stderr is not None
        return running.wait(), running.stderr.read()


def test_lengths_that_lead_nowhere_are_noticed(ramdisk: Path) -> None:
    start, program = wire.packed(START), ramdisk.with_suffix("")
    turn = msgspec.msgpack.encode([2, 0, [msgspec.msgpack.encode([[1, 1, 1, b"", 0, 0, 0, 0, 0, 0, 0]])], [], False])
    assert served(program, start + len(turn).to_bytes(4, "little") + turn) == (0, b"")
    for body, complaint in (
        (b"\xdd\xff\xff\xff\xff", b"beyond the end"),
        (b"\x95\x02\x00\xdd\xff\xff\xff\xf0", b"beyond the end"),
        (b"\x95\x02\x00\x91\xc6\xff\xff\xff\xff", b"beyond the end"),
        (b"\x95\x02\x00\x91\xc4\x05\x91\x9b\x01\x01\x01", b"beyond the end"),
        (b"\x92\x02\xcf\x00", b"cut off"),
        (b"\x92\x02\xc1", b"does not have"),
        (b"\x93\x02\x00\xa0", b"another kind"),
        (b"", b"too early"),
    ):
        status, printed = served(program, start + len(body).to_bytes(4, "little") + body)
        assert (status, complaint in printed) == (1, True), (body, printed)
    assert b"longer than any" in served(program, b"\xff\xff\xff\xff")[1]


@pytest.fixture(scope="module")
def guarded(ramdisk: Path) -> Path:
    """The program with checks of every access, where the compiler has them."""
    program = ramdisk.with_name("guarded")
    command = ["cc", "-g", "-fsanitize=address,undefined", "-o", str(program), str(ramdisk.with_suffix(".c"))]
    done = subprocess.run(command, stderr=subprocess.PIPE)
    return program if done.returncode == 0 else ramdisk.with_suffix("")


@settings(max_examples=40)
@given(st.data())
def test_no_bytes_make_it_do_more_than_end(guarded: Path, data: st.DataObject) -> None:
    frame = msgspec.msgpack.encode([[1, 1, 2, b"data" * 9, 0, 36, 0, 0, 0, 0, 0], [2, "x", "", b"", 0], [3, 9]])
    stream = bytearray(wire.packed(START) + wire.packed(wire.Turn(0, [frame], [])) + wire.packed(wire.Stop("end")))
    for at in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        stream[at] = data.draw(st.integers(0, 255))
    status, printed = served(guarded, bytes(stream))
    assert status in (0, 1)
    assert b"Sanitizer" not in printed
    assert b"runtime error" not in printed


# --- programs that lie ----------------------------------------------------------------------------------


def shell(folder: Path, script: str, **keys: str) -> Path:
    """A module whose program is a shell that says what the script says, then waits."""
    lines = {"name": '"liar"', "exec": f"['/bin/sh', '-c', {script + '; read x <&3'!r}]", **keys}
    file = folder / "liar.toml"
    file.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()), "utf-8")
    return file


def said(*messages: wire.Message) -> str:
    """A shell command that sends these."""
    return f"printf '{''.join(f'{chr(92)}{byte:03o}' for byte in b''.join(map(wire.packed, messages)))}' >&3"


HELLO, OUT = wire.Hello("uxk", 1, 1), wire.Out(0, [], [], None, False, 0)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (r"printf '\377\377\377\377' >&3", "ProtocolError in process: a message of 4294967295 bytes, expected at most"),
        (r"printf '\005\000\000\000\335\377\377\377\377' >&3", "ProtocolError in process: 5 bytes that are no message"),
        (said(wire.Hello("uxk", 7, 9)), "HELLO with versions 7 to 9, this kernel speaks 1 to 1"),
        (said(wire.Hello("nbd", 1, 1)), "HELLO with magic 'nbd', expected 'uxk'"),
        (said(wire.Dirty()), "Dirty before HELLO"),
        (said(HELLO, HELLO), "a second Hello"),
        (said(HELLO, wire.Out(5, [], [], None, False, 0)), "OUTPUT 5"),
        (
            said(HELLO, wire.Crashed("setup", "NoDisk", "the disk is gone", "", 6), OUT),
            "NoDisk in setup: the disk is gone",
        ),
        ("echo the last words >&2; exit 3", "Exited in process: status 3"),
    ],
)
async def test_what_is_no_answer_ends_the_program(tmp_path: Path, script: str, complaint: str) -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(ProbeError, match=re.escape(complaint)):
            await kernel.insmod(shell(tmp_path, script))
        assert kernel.lsmod() == []


async def test_the_program_is_confined(tmp_path: Path) -> None:
    """It finds its folder and its connection, has nobody's secrets, and starts nothing."""
    script = 'pwd; echo "fd $UXK_FD, secret ${SECRET-none}"; (echo forked); exit 1'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET", "key")
        async with uxk.Kernel() as kernel:
            with pytest.raises(ProbeError):
                await kernel.insmod(shell(tmp_path, script))
            oops = "\n".join(texts(kernel))
    assert str(tmp_path) in oops
    assert "fd 3, secret none" in oops
    assert ("forked" in oops) is not sandbox.available()["seccomp"]


# --- files ----------------------------------------------------------------------------------------------


GOOD = "name = 'good'\nexec = ['/bin/true']\n"
WRONG: tuple[tuple[str, type[UxkError], str], ...] = (
    ("name = ", ModuleError, r"bad\.toml: Invalid value \(at "),
    ("name = 'good'\n", ManifestError, r"bad\.toml: no key 'exec': expected the program and its arguments"),
    (GOOD.replace("['/bin/true']", "'/bin/true'"), ManifestError, r"exec = '/bin/true': expected the program"),
    (GOOD.replace("['/bin/true']", "[]"), ManifestError, r"exec = \[\]: expected the program"),
    ("exec = ['/bin/true']\n", ManifestError, r"bad\.toml: Object missing required field `name`"),
    (GOOD + "driver_clas = 'block'\n", ManifestError, r"unknown key 'driver_clas'.*driver_class.*known: exec, "),
    (GOOD + "placement = 'task'\n", ManifestError, r"unknown key 'placement'"),
    (GOOD + "fate = 'retry'\n", ManifestError, r"bad\.toml: fate = 'retry': Invalid enum value 'retry'"),
    (GOOD + "[budget]\nmemory = 5\n", ManifestError, r"bad\.toml: budget: unknown key 'memory'.*known: memory_bytes"),
    (GOOD + "[budget]\nmemory_bytes = '5 pages'\n", ManifestError, r"budget\.memory_bytes = '5 pages': unknown unit"),
    (GOOD + "[budget]\nmemory_bytes = 1.5\n", ManifestError, r"budget\.memory_bytes = 1\.5: Expected `int`"),
    (GOOD + "[budget]\nqueue_depth = 3\n", ManifestError, r"budget\.queue_depth is 3, expected a power of two"),
    (GOOD + "params = 5\n", ManifestError, r"params = 5: expected a table for each parameter"),
    (GOOD + "[params]\nsize = 5\n", ManifestError, r"params\.size = 5: expected a table with a key 'type'"),
    (GOOD + "[params.size]\ntype = 'float'\n", ManifestError, r"params\.size\.type = 'float': Invalid enum value"),
    (GOOD + "[params.size]\nkind = 'int'\n", ManifestError, r"params\.size: unknown key 'kind'.*known: type, default"),
    (GOOD + "[params.size]\ntype = 'int'\ndefault = true\n", ManifestError, r"params\.size\.default = True: Expected"),
    (GOOD + "[params.size]\ntype = 'int'\nge = 'x'\n", ManifestError, r"params\.size\.ge = 'x': not an integer"),
    (GOOD + "[params.size]\ntype = 'str'\nge = 1\n", ManifestError, r"bad\.toml: params\.size: "),
    (GOOD + "[params.'a-b']\ntype = 'int'\n", ManifestError, r"params\.a-b: expected a name of letters"),
    (
        GOOD + "[params.size]\ntype = 'int'\ndefault = 1\nge = 2\n",
        ManifestError,
        r"params\.size\.default = 1: Expected",
    ),
    (GOOD.replace("/bin/true", "./missing"), NoSuchModule, r"bad\.toml: exec: no file '.*missing'.*compile it first"),
    (GOOD.replace("/bin/true", "no-such-program"), NoSuchModule, r"no program 'no-such-program' on the PATH"),
    (GOOD.replace("/bin/true", "./bad.toml"), ModuleError, r"may not be executed \(chmod \+x\?\)"),
    (GOOD.replace("/bin/true", "./garbage"), ProbeError, r"status 127"),
)


@pytest.mark.parametrize(("text", "error", "complaint"), WRONG, ids=[complaint for _, _, complaint in WRONG])
async def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, text: str, error: type[UxkError], complaint: str
) -> None:  # fmt: skip
    file, garbage = tmp_path / "bad.toml", tmp_path / "garbage"
    file.write_text(text, "utf-8")
    garbage.write_bytes(b"\0\1\2")
    garbage.chmod(0o755)
    async with uxk.Kernel() as kernel:
        with pytest.raises(error, match=complaint):
            await kernel.insmod(file)
        assert kernel.lsmod() == []


async def test_parameters_are_checked_before_the_program_starts(ramdisk: Path) -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(ParamError, match="size"):
            await kernel.insmod(ramdisk, size=17)
        with pytest.raises(UsageError, match=r"placement='task', expected process: \./ramdisk is a program of its own"):
            await kernel.insmod(ramdisk, placement="task")
        with pytest.raises(ModuleError, match=r"expected a \.py file, or a \.toml file"):
            await kernel.insmod(ramdisk.with_suffix(".c"))
        info = kernel.modinfo(kernel.catalog.add_file(ramdisk).name)
        assert [(each.name, each.default_text, each.unit) for each in info.parameters] == [
            ("size", "16777216", "bytes")
        ]
        assert info.filename == str(ramdisk)
        assert (info.placement, info.description) == ("process", "A RAM disk in C")


def test_the_document_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs/wire-protocol.md").read_text("utf-8")
    for name, language, most in (("ramdisk.c", "c", 150), ("wire.h", "c", 265), ("ramdisk.toml", "toml", 40)):
        text = (SOURCES / name).read_text("utf-8")
        assert f"```{language} file={name}\n{text}```\n" in page
        assert text.count("\n") <= most, "a small client is promised"


def test_the_conformance_suite_examines_a_program(ramdisk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", str(ramdisk), "-p", "size=64KiB"]
    assert main([*words, "--only", "manifest", "--only", "load_unload", "--only", "hostile_requests"]) == 0
    assert capsys.readouterr().out.endswith("3 passed, 0 failed\n")
    assert main([*words, "--only", "misuse"]) == 2
    assert "--only check_misuse: no such check of this module" in capsys.readouterr().err
