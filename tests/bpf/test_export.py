"""Objects for Linux: read back by uxk, loaded by bpftool and through bpf(2), and the same verdicts everywhere."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from uxk.bpf import elf
from uxk.bpf.asm import assemble
from uxk.bpf.errors import BpfError
from uxk.bpf.export import export
from uxk.bpf.helpers import Function
from uxk.bpf.insn import M64, s32
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Proto, body, features
from uxk.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "bpf"
BPFTOOL = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
INPUTS = 10_000

BODIES = {
    "tree": "r2 = *(u64 *)(r1 + 0)\nr0 = 2\nif r2 s> 9 goto a\nr3 = *(u64 *)(r1 + 8)\nr0 = 1\n"
    "if r3 s< -4 goto a\nr0 = 0\na: exit",
    "sum": "r0 = 0\nr6 = 0\nr7 = r1\na: r2 = *(u32 *)(r7 + 4)\nr0 += r2\nw0 ^= w6\nr7 += 4\nr6 += 1\n"
    "if r6 < 6 goto a\nexit",
    "picked": "r2 = *(u8 *)(r1 + 0)\nr2 &= 15\nr1 += r2\nr0 = *(u64 *)(r1 + 5)\nexit",
    "called": "r6 = r1\nr1 = *(u64 *)(r6 + 0)\ncall f\nr7 = r0\nr1 = *(u64 *)(r6 + 8)\ncall f\nr0 += r7\nexit\n"
    "f: r0 = r1\nr0 s%= 77\nif r0 s> 30 goto a\ncall g\na: exit\ng: r0 = r1\nr0 = -r0\nexit",
    "changed": "r2 = *(u32 *)(r1 + 16)\n*(u32 *)(r1 + 8) = r2\n*(u8 *)(r1 + 9) = 7\nr0 = *(u64 *)(r1 + 8)\nexit",
    "atomic": "r2 = 5\nr2 = atomic_fetch_add((u64 *)(r1 + 8), r2)\nr0 = *(u64 *)(r1 + 8)\nr0 ^= r2\nexit",
    "counted": "r6 = r1\nr2 = *(u8 *)(r6 + 0)\nr2 &= 3\n*(u32 *)(r10 - 4) = r2\nr1 = map[fd:1] ll\nr2 = r10\nr2 += -4\n"
    "call 1\nif r0 == 0 goto a\nr1 = *(u64 *)(r0 + 0)\nr1 += 1\n*(u64 *)(r0 + 0) = r1\nr0 = r1\nexit\na: r0 = -1\nexit",
    "weighed": "r3 = map[fd:2][0]+0 ll\nr2 = *(u64 *)(r1 + 0)\nr4 = *(u64 *)(r3 + 8)\nr2 *= r4\nr0 = r2\n"
    "r5 = *(u64 *)(r3 + 0)\nr5 += 1\n*(u64 *)(r3 + 0) = r5\nr0 += r5\nexit",
    "remembered": "r6 = r1\nr2 = *(u8 *)(r1 + 0)\n*(u32 *)(r10 - 4) = r2\nr2 = *(u64 *)(r6 + 8)\n"
    "*(u64 *)(r10 - 16) = r2\nr1 = map[fd:3] ll\nr2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\nr4 = 0\ncall 2\nexit",
}  # fmt: skip
SIZE_BYTES = 28


def _program(name: str) -> Program:
    """A body with maps as it needs them; the same at each call."""
    weights = ArrayMap(16, 1, "weights")
    weights[0] = bytes(8) + (12345).to_bytes(8, "little")
    maps = {1: ArrayMap(8, 3, "counts"), 2: weights, 3: HashMap(4, 8, 20, "seen")}
    text = BODIES[name]
    used = {number: each for number, each in maps.items() if f"fd:{number}]" in text}
    return Program(assemble(text), body(SIZE_BYTES), maps=used, name=name)


@pytest.fixture(scope="module")
def linux() -> ModuleType:
    """The example that speaks bpf(2), where it answers."""
    found = _example("linux")
    try:
        os.close(found.create_map(ArrayMap(8, 1)))
    except OSError as exc:
        pytest.skip(f"bpf(2) does not answer here: {exc}")
    return found


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bpf_example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inputs(seed: str, number: int = INPUTS) -> list[bytes]:
    """Bytes at random, with small numbers among them."""
    rng = Random(seed)
    parts = (
        (rng.randrange(-20, 20) & M64).to_bytes(8, "little") if rng.random() < 0.5 else rng.randbytes(8)
        for _ in itertools.count()
    )
    return [b"".join(itertools.islice(parts, 4))[:SIZE_BYTES] for _ in range(number)]


@pytest.fixture
def folder(linux: ModuleType) -> Iterator[Path]:
    """A folder where bpftool may pin."""
    home = Path("/sys/fs/bpf") / f"uxk-test-{os.getpid()}"
    try:
        home.mkdir()
    except OSError:
        mounted = subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("there is no bpf file system")
        home.mkdir()
    yield home
    for path in home.iterdir():
        path.unlink()
    home.rmdir()


def _same(linux: ModuleType, descriptor: int, program: Program, prefix: bytes = b"") -> None:
    """All verdicts of Linux and of uxk are equal."""
    inputs = _inputs(program.name)
    try:
        verdicts = [linux.run_packet(descriptor, prefix + each + b"tail") for each in inputs]
    finally:
        os.close(descriptor)
    assert verdicts == [s32(program.run(bytearray(each))) for each in inputs]


@pytest.mark.parametrize("name", BODIES)
def test_bpftool_loads_and_all_verdicts_are_equal(linux: ModuleType, folder: Path, tmp_path: Path, name: str) -> None:
    if BPFTOOL is None:
        pytest.skip("there is no bpftool")
    program = _program(name)
    path = tmp_path / "a.o"
    path.write_bytes(export(program))
    subprocess.run([BPFTOOL, "prog", "load", path, folder / "p"], check=True, timeout=60, capture_output=True)
    _same(linux, linux.pinned(str(folder / "p")), program)


@pytest.mark.parametrize("hook", ["xdp", "socket"])
@pytest.mark.parametrize("name", BODIES)
def test_the_loader_loads_and_all_verdicts_are_equal(linux: ModuleType, name: str, hook: str) -> None:
    loaded = elf.load(export(_program(name), hook), hook)
    _same(linux, linux.load_object(loaded), _program(name), bytes(14) if hook == "socket" else b"")


def test_short_packets_are_passed_on(linux: ModuleType) -> None:
    for name, hook, expected in (("tree", "xdp", 2), ("picked", "xdp", 2), ("tree", "socket", 0)):
        descriptor = linux.load_object(elf.load(export(_program(name), hook), hook))
        assert linux.run_packet(descriptor, b"\xff" * (SIZE_BYTES - 1)) == expected
        os.close(descriptor)


@pytest.mark.parametrize("name", BODIES)
def test_what_was_exported_can_be_read_back(name: str) -> None:
    program = _program(name)
    loaded = elf.load(export(program), "body_0")
    again = Program(loaded.code, body(SIZE_BYTES), maps=loaded.maps)
    assert len(again.code) == len(program.code)
    for each in _inputs(name, 200):
        assert again.run(bytearray(each)) == program.run(bytearray(each))
    assert elf.load(export(program), "xdp").license == "GPL"


def test_all_kinds_of_maps(linux: ModuleType, folder: Path, tmp_path: Path) -> None:
    if BPFTOOL is None:
        pytest.skip("there is no bpftool")
    text = (
        "*(u32 *)(r10 - 4) = 0\nr1 = map[fd:1] ll\nr2 = r10\nr2 += -4\ncall 1\nr1 = map[fd:2] ll\nr2 = r10\nr2 += -4\n"
        "r3 = 4\nr4 = 0\ncall 130\nr0 = 0\nexit"
    )
    maps = {1: InstanceArrayMap(8, 2, "each-one"), 2: RingBuffer(4096, "9lives"), 3: HashMap(8, 8, 5, "uxk_memory")}
    program = Program(assemble(text), body(0), maps=maps)
    (tmp_path / "a.o").write_bytes(export(program, name="many"))
    subprocess.run(
        [BPFTOOL, "prog", "load", tmp_path / "a.o", folder / "p"], check=True, timeout=60, capture_output=True
    )
    shown = subprocess.run(
        [BPFTOOL, "prog", "show", "pinned", folder / "p"], check=True, capture_output=True, text=True
    )
    assert "name many" in shown.stdout


def test_models_with_bounds_need_no_copy(linux: ModuleType) -> None:
    """Numbers at fixed places are read in the packet: no map."""
    program = Program(assemble("r0 = *(u64 *)(r1 + 8)\nr0 += 3\nexit"), features(((0, 9), (0, 9))))
    loaded = elf.load(export(program), "xdp")
    assert not loaded.maps
    descriptor = linux.load_object(loaded)
    packet = (4).to_bytes(8, "little") + (5).to_bytes(8, "little")
    assert linux.run_packet(descriptor, packet) == program.decide(4, 5) == 8
    os.close(descriptor)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "two uses": ("r1 = map[fd:1] ll\nr1 = map[fd:1][0]+0 ll\nr0 = 0\nexit", {}, "both by helpers and by address: a"),
    "a kfunc": ("kfunc\nr0 = 0\nexit", {}, "calls kfunc 7, which Linux does not have"),
    "a hook": ("r0 = 0\nexit", {"hook": "sockets"}, "hook 'sockets' .did you mean 'socket'"),
    "a name": ("r0 = 0\nexit", {"name": "two words"}, "program name 'two words'; expected at most 15 letters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_linux_has_not_is_refused(name: str) -> None:
    text, options, reason = REFUSED[name]
    code = bytes.fromhex("8520000007000000b7000000000000009500000000000000") if "kfunc" in text else assemble(text)
    kfuncs = {7: Function(Proto("ask"), lambda *_: 0)}
    program = Program(code, body(8), maps={1: ArrayMap(8, 1, "a"), 2: ArrayMap(8, 2, "b")}, kfuncs=kfuncs)
    with pytest.raises(BpfError, match=reason):
        export(program, **options)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.s").write_text(BODIES["tree"])
    out = tmp_path / "a.o"
    assert main(["export", "bpf", str(tmp_path / "a.s"), "-m", "16", "-o", str(out)]) == 0
    assert elf.load(out.read_bytes(), "xdp").function == "decide"
    assert main(["bpf", "run", str(out), "--section", "body_0", "-m", "16"]) == 0
    assert capsys.readouterr().out == "0\n"
    assert main(["export", "bpf", str(out), "--section", "body_0", "-m", "16", "--hook", "tc", "-o", str(out)]) == 1
    assert "expected one of: xdp, socket" in capsys.readouterr().err
    assert main(["export"]) == 2


# --- the queue ---------------------------------------------------------------------------------------------


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return _example("arena_queue")


def _three_rounds(queue: ModuleType, shared: Any, doorbell: Any) -> None:
    for seed, count in ((1, 1024), (2, 1), (3, 700)):
        records = queue.records_of(seed, count)
        assert queue.right_ones(records, queue.exchange(shared, doorbell, records)) == count


def test_one_doorbell_serves_many_entries_in_uxk(queue: ModuleType) -> None:
    _three_rounds(queue, *queue.in_uxk())


def test_one_doorbell_serves_many_entries_in_linux(linux: ModuleType) -> None:
    """In a process of its own: the arena has a fixed address."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "arena_queue.py"], capture_output=True, text=True, check=False, timeout=120
    )
    if "arena" in done.stderr or "Invalid argument" in done.stderr:
        pytest.skip("this kernel has no arena")
    assert done.stdout == "one doorbell, 1024 of 1024 right\n", done.stderr


def test_absent_pages_of_an_arena_lose_what_is_stored(queue: ModuleType) -> None:
    arena = ArenaMap(queue.PAGES)
    arena.populate(0, queue.CQ_AT)
    program = Program(assemble(queue.DRAIN + queue.BODY), body(0), maps={1: arena})
    records = queue.records_of(1, 8)
    assert queue.exchange(arena, program.run, records) == [(0, 0)] * 8
