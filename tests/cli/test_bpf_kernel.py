"""``uxk bpf prog`` and ``uxk bpf map`` on a running kernel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.maps import ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bridges.control_server import ControlServer
from uxk.cli import bpf_maps, main
from uxk.core.site import DecisionSite

LIMIT = "r0 = *(u64 *)(r1 + 0)\nr2 = map[fd:3][0]+0\nr2 = *(u64 *)(r2 + 0)\nr0 -= r2\nexit\n"
S64 = (-(1 << 63), (1 << 63) - 1)
Said = Callable[..., Awaitable[tuple[int, str]]]
FILLS_IN = "*(u64 *)(r1 + 64) = 7\nr0 = 1\nexit\n"


class Quiet(uxk.Extension):
    manifest = uxk.Manifest(name="quiet", version="1.0", license="Apache-2.0")


@asynccontextmanager
async def running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[tuple[uxk.Kernel, Said]]:
    """A kernel with a site, and the command."""

    async def said(*parts: str) -> tuple[int, str]:
        code = await trio.to_thread.run_sync(main, ["bpf", *" ".join(parts).split(), "-k", str(tmp_path / "k")])
        streams = capsys.readouterr()
        assert not (streams.out and streams.err)
        assert bool(streams.err) == bool(code)
        return code, streams.out + streams.err

    async with uxk.Kernel(seed=5) as kernel, trio.open_nursery() as nursery:
        await nursery.start(ControlServer(kernel, tmp_path / "k").serve)
        yield kernel, said
        nursery.cancel_scope.cancel()


def limit_program(kernel: uxk.Kernel) -> None:
    """Program 1 at a site, with map 1."""
    schema = Schema([Feature("age", 0, 1000, "writes")])
    kernel.policies.offer(DecisionSite("disk.pick", lambda payload: ""), schema, S64)
    table = kernel.bpf.add_map(ArrayMap(8, 1, "limit"))
    kernel.bpf.attach(kernel.bpf.load(assemble(LIMIT), "site/disk.pick", {3: table}, "limit"))


async def test_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capsys) as (kernel, said):
        assert await said("prog", "show") == await said("map", "list") == (0, "")
        assert await said("prog", "show", "-j") == (0, "[]\n")
        assert (await said("prog", "unpin", "keep"))[1].startswith("uxk: bpf: no pin 'keep'; there are: none [ENOENT]")
        limit_program(kernel)
        code, out = await said("prog", "show")
        assert code == 0 and out.startswith("1: name limit  tag ") and "attached site/disk.pick  map_ids 1\n" in out
        shown = json.loads((await said("prog", "show", "id", "1", "--json"))[1])
        assert shown["instructions"] == 6 and shown["map_ids"] == [1] and shown["takes_bytes"] == 16
        for words in ("prog list -p", "-p prog show", "-j prog show"):
            assert json.loads((await said(words))[1]) == [shown]
        for handle in ("name limit", f"tag {shown['tag']}", "1"):
            assert "r0 -= r2" in (await said("prog dump xlated", handle))[1]
        assert "0: r0 = *(u64 *)(r1 + 0)\n      79 10 00 00" in (await said("prog", "dump", "1", "opcodes"))[1]
        assert json.loads((await said("prog", "dump", "1", "-j"))[1])[1] == {
            "slot": 1, "disasm": "r2 = map[id:1][0]+0 ll", "opcodes": "18220000030000000000000000000000",
        }  # fmt: skip
        file = tmp_path / "code"
        assert await said("prog", "dump", "1", "file", str(file)) == (0, "") and file.read_bytes() == assemble(LIMIT)
        assert await said("prog", "pin", "1", "/sys/fs/bpf/keep") == await said("map", "pin", "1", "limit") == (0, "")
        assert set(kernel.bpf.pinned) == {"keep", "limit"}
        assert (await said("prog", "show", "pinned", "/sys/fs/bpf/keep"))[1].startswith("1: ")
        assert "did you mean 'keep'?" in (await said("prog", "unpin", "kep"))[1]
        assert await said("prog", "unpin", "/sys/fs/bpf/pinned/keep") == (0, "")
        assert await said("prog", "dump", "7") == (1, "uxk: bpf: no program 7; there are: 1 [ENOENT]\n")
        assert "name 'limt' (did you mean 'limit'?); there" in (await said("prog", "show", "name", "limt"))[1]


async def test_runs_and_detaching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capsys) as (kernel, said):
        limit_program(kernel)
        assert await said("prog", "run", "1", "2a" + "00" * 15) == (0, "42\n")
        assert await said("prog", "run", "1", "fields", "42") == (0, "42\n")
        assert await said("prog run 1 fields 7 0 repeat 3") == (0, "7\n")
        assert "bytes 0 to 7 are -3; program 1 was verified for 0 to 1000" in (await said("prog run 1 fields -3"))[1]
        assert "8 bytes; program 1 takes 16" in (await said("prog", "run", "1", "00" * 8))[1]
        given, after = tmp_path / "in", tmp_path / "out"
        given.write_bytes(bytes([9]) + bytes(15))
        ran = await said("prog", "run", "name", "limit", "data_in", str(given), "data_out", str(after), "-j")
        assert json.loads(ran[1]) == {"r0": 9, "memory": given.read_bytes().hex(), "cost_ns": 30, "repeat": 1}
        assert after.read_bytes() == given.read_bytes()
        await kernel.insmod(Quiet)
        kernel.bpf.attach(kernel.bpf.load(assemble(FILLS_IN), "queue/quiet0", {}, "fills"))
        code, out = await said("prog", "run", "2", "00" * 72, "data_out", str(after))
        assert (code, out) == (0, "1\n") and after.read_bytes()[64] == 7
        assert (await said("prog", "run", "2", "00" * 72))[1].endswith("07" + "00" * 7 + "\n")
        wrong = await said("prog", "detach", "2", "queue/quiet")
        assert wrong[0] == 1 and "not attached to 'queue/quiet' (did you mean 'queue/quiet0'?)" in wrong[1]
        assert await said("prog", "detach", "2") == (0, "") and kernel.bpf.points["queue/quiet0"].programs == []  # type: ignore[attr-defined]
        assert await said("prog", "detach", "1", "site/disk.pick") == (0, "")
        assert "detached from site/disk.pick: by the administrator" in str([r.text for r in kernel.kmsg.records()])


async def test_elements_of_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capsys) as (kernel, said):
        table, seen = ArrayMap(2, 3, "table"), HashMap(2, 3, 2, "seen")
        for each in (table, seen, RingBuffer(4096, "ring")):
            kernel.bpf.add_map(each)
        assert "owner kernel\n\tkey_bytes 4  value_bytes 2" in (await said("map", "show", "1"))[1]
        assert await said("map update name table key 1 0 0 0 value 1 0xff") == (0, "")
        assert table[1] == b"\x01\xff"
        out = "key: 01 00 00 00  value: 01 ff\n"
        assert await said("map lookup 1 key hex 01000000") == (0, out)
        assert json.loads((await said("map lookup 1 key hex 01 0 0 0 -j"))[1]) == {
            "key": ["0x01", "0x00", "0x00", "0x00"], "value": ["0x01", "0xff"],
        }  # fmt: skip
        code, out = await said("map", "dump", "1")
        assert code == 0 and out.count("key: ") == 3 and out.endswith("Found 3 elements\n")
        assert "is an array" in (await said("map delete 1 key 1 0 0 0"))[1]
        assert "no key 03000000; it has 0 to 2 [ENOENT]" in (await said("map lookup 1 key 3 0 0 0"))[1]
        assert await said("map getnext 1 key 0 0 0 0") == (
            0, "key: 00 00 00 00  next key: 01 00 00 00\n",
        )  # fmt: skip
        assert "no key after 02000000 [ENOENT]" in (await said("map getnext 1 key 2 0 0 0"))[1]
        assert await said("map", "dump", "2", "-j") == (0, "[]\n")
        assert (await said("map update 2 key 1 2 value 1 2 3 exist"))[1].endswith("is not there [ENOENT]\n")
        for key in ("1 2", "3 4"):
            assert (await said(f"map update 2 key {key} value 1 2 3 noexist"))[0] == 0
        assert (await said("map update 2 key 1 2 value 1 2 3 noexist"))[1].endswith("already [EEXIST]\n")
        assert (await said("map update 2 key 5 5 value 1 2 3"))[1].endswith("finds no room [E2BIG]\n")
        assert await said("map", "getnext", "2") == (0, "next key: 01 02\n")
        assert await said("map delete 2 key 1 2") == (0, "") and dict(seen.items()) == {b"\3\4": b"\1\2\3"}
        assert (await said("map delete 2 key 1 2"))[1].endswith("map 2 has no key 0102 [ENOENT]\n")
        assert "of kind ringbuf, and has no elements [ENOTSUP]" in (await said("map", "dump", "3"))[1]
        assert "value '0102' has 2 bytes; expected 3" in (await said("map update 2 key 1 1 value 1 2"))[1]
        said_so = [record.text for record in kernel.kmsg.records(source="bpf")]
        assert "map 1 (table): 01000000 set to 01ff" in said_so and "map 2 (seen): 0102 deleted" in said_so


async def test_large_and_many_elements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capsys) as (kernel, said):
        long, many, each = ArrayMap(5001, 2, "long"), HashMap(4, 1, 900, "many"), InstanceArrayMap(2, 2, "each")
        long[1] = bytes(number % 251 for number in range(5001))
        for number in range(900):
            many[number.to_bytes(4, "big")] = bytes([number % 256])
        each.select(3)
        each[1] = b"ab"
        for made in (long, many, each):
            kernel.bpf.add_map(made)
        found = json.loads((await said("map", "dump", "1", "-j"))[1])
        assert [bytes(int(digit, 16) for digit in row["value"]) for row in found] == [bytes(5001), long[1]]
        code, out = await said("map lookup 1 key 1 0 0 0")
        assert code == 0 and bytes.fromhex(out.split("value: ")[1]) == long[1]
        code, out = await said("map", "dump", "2")
        assert code == 0 and out.endswith("key: 00 00 03 83  value: 83\nFound 900 elements\n")
        assert (await said("map lookup 3 key 1 0 0 0"))[1] == (
            "key: 01 00 00 00  value: 00 00  instance: 0\nkey: 01 00 00 00  value: 61 62  instance: 3\n"
            "Found 2 elements\n"
        )
        assert "for each instance" in (await said("map update 3 key 1 0 0 0 value 1 1"))[1]


async def test_answers_to_others_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks is overtaken now and then; here always."""
    async with running(tmp_path, capsys) as (kernel, said):
        table = kernel.bpf.add_map(ArrayMap(8, 2, "table"))
        write, path = kernel.sysfs.write, f"/sys/fs/bpf/map/{table.id}/lookup"
        asked = 0

        def between(self: object, at: str) -> str:
            nonlocal asked
            if at == path:
                asked += 1
                write(path, "01000000")
            return read(self, at)

        read = type(kernel.machine.tree).read
        monkeypatch.setattr(type(kernel.machine.tree), "read", between)
        code, out = await said("map lookup 1 key 0 0 0 0")
        assert code == 1 and "others keep asking" in out and asked == bpf_maps.ASKED_MAX


async def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, capsys) as (kernel, said):
        (tmp_path / "good.s").write_text("r0 = *(u64 *)(r1 + 0)\nexit\n")
        (tmp_path / "bad.s").write_text("r0 = *(u64 *)(r1 + 16)\nexit\n")
        (tmp_path / "queue.s").write_text("call 5\nr0 &= 1\nexit\n")
        good, bad, queue = (str(tmp_path / f"{name}.s") for name in ("good", "bad", "queue"))
        assert "no decision site 'disk.pick' takes programs; there are: none [ENODEV]" in (
            await said("prog", "verify", good, "site/disk.pick")
        )[1]  # fmt: skip
        limit_program(kernel)
        await kernel.insmod(Quiet)
        assert await said("prog", "verify", good, "site/disk.pick") == (
            0, "safe at site/disk.pick: 2 instructions, at most 2 a run, 12 ns\n",
        )  # fmt: skip
        code, out = await said("prog", "verify", bad, "site/disk.pick")
        assert code == 1 and "insn 0" in out
        assert "did you mean 'disk.pick'?" in (await said("prog", "verify", good, "site/disk.pik"))[1]
        assert json.loads((await said("prog", "verify", queue, "queue/quiet0", "-j"))[1]) == {
            "safe": True, "instructions": 3, "followed": 3, "longest": 3, "cost_ns": 18, "at": "queue/quiet0",
        }  # fmt: skip
        kernel.bpf.load(assemble((tmp_path / "queue.s").read_text()), "queue/quiet0")  # the kernel says so, too
        assert "the verdict is" in (await said("prog", "verify", good, "queue/quiet0"))[1]
        assert (await said("prog", "verify", queue, "agent/quiet"))[0] == 0
        assert "no instance 'quit' (did you mean 'quiet'?)" in (await said("prog", "verify", good, "agent/quit"))[1]
        assert "no device 'quiet' (did you mean 'quiet0'?)" in (await said("prog", "verify", good, "queue/quiet"))[1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("prog", "required"),
        ("prog list", "needs a running kernel"),
        ("prog lst", "invalid choice: 'lst'"),
        ("prog dump -k x", "too few words; expected a number"),
        ("prog dump a -k x", "'a': expected a number"),
        ("prog dump id a -k x", "'a': expected a number"),
        ("prog dump jited 1 -k x", "uxk bpf source"),
        ("prog show 1 2 -k x", "'2': expected nothing more"),
        ("prog show", "needs a running kernel"),
        ("prog run 1 repeat 0 -k x", "'0': expected repeat, a number from 1 to"),
        ("prog run 1 fields x -k x", "fields: 'x': expected a whole number"),
        ("prog run 1 fields 18446744073709551616 -k x", "expected a number of 64 bits"),
        ("prog run 1 00 data_in f -k x", "'data_in': expected nothing more"),
        ("prog verify f -k x", "expected POINT"),
        ("prog verify f site/x --section -k x", "--section: expected a name"),
        ("map pin 1 -k x", "expected NAME"),
        ("map lookup 1 1 0 0 0 -k x", "expected `key` and its bytes"),
        ("map lookup 1 key 256 -k x", "key: '256': expected a byte"),
        ("map lookup 1 key hex 0g -k x", "key: '0g': expected hexadecimal digits"),
        ("map lookup 1 key -k x", "expected its bytes"),
        ("map update 1 key 1 -k x", "expected `value` and its bytes"),
        ("map update 1 key 1 value 1 never -k x", "value: 'never': expected a byte"),
    ],
)
def test_mistakes(words: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UXK_SOCKET", raising=False)
    assert main(["bpf", *words.split()]) == 2
    assert why in capsys.readouterr().err


def test_help_behind_the_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bpf", "map", "update", "--help"]) == 0
    assert "update MAP key DATA value DATA" in capsys.readouterr().out
