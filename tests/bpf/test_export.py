"""Objects for Linux: read back by uxk, loaded by bpftool and through bpf(2), and the same verdicts everywhere."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from linux_answers import lacks_acquire, lacks_arena
from linux_objects import EXAMPLES, by_bpftool, example

from uxk.bpf import elf
from uxk.bpf.asm import assemble
from uxk.bpf.errors import BpfError
from uxk.bpf.export import export
from uxk.bpf.helpers import HELPERS, Function
from uxk.bpf.hooks import COPIES, HOOKS, KEYS, before
from uxk.bpf.insn import M64, decode, encode, s32
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import Proto, body, features
from uxk.cli import main

INPUTS = 10_000
"""For XDP; for the other hooks, in the soak run."""
FEW = INPUTS if os.environ.get("UXK_SOAK") else 600

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
    "deep": "r2 = *(u64 *)(r1 + 0)\n*(u64 *)(r10 - 512) = r2\nr0 = *(u64 *)(r1 + 8)\n*(u64 *)(r1 + 8) = r2\nr3 = r10\n"
    "r0 ^= r2\nr4 = *(u64 *)(r3 - 512)\nr0 += r4\nexit",
    "claimed": "r6 = r1\nr3 = *(u64 *)(r1 + 8)\nr0 = 5\nr0 = cmpxchg_64(r1 + 8, r0, r3)\n"
    "r2 = *(s8 *)(r6 + 3)\nr0 += r2\nexit",
    "acquired": "r0 = load_acquire((u32 *)(r1 + 4))\nr2 = *(s8 *)(r1 + 3)\nr0 += r2\nexit",
    "unbounded": "r0 = 0\nr2 = *(u64 *)(r1 + 0)\nr2 &= 255\nr3 = 0\na: may_goto b\nif r3 == r2 goto b\nr0 += r3\n"
    "r3 += 1\ngoto a\nb: exit",
    "told": "r2 = r1\nr6 = *(u32 *)(r1 + 4)\nr1 = map[fd:4] ll\nr3 = 8\nr4 = 0\ncall 130\nr0 = r6\nexit",
    "remembered": "r6 = r1\nr2 = *(u8 *)(r1 + 0)\n*(u32 *)(r10 - 4) = r2\nr2 = *(u64 *)(r6 + 8)\n"
    "*(u64 *)(r10 - 16) = r2\nr1 = map[fd:3] ll\nr2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\nr4 = 0\ncall 2\nexit",
}  # fmt: skip
SIZE_BYTES = 28


def _program(name: str) -> Program:
    """A body with maps as it needs them; the same at each call."""
    weights = ArrayMap(16, 1, "weights")
    weights[0] = bytes(8) + (12345).to_bytes(8, "little")
    maps = {1: ArrayMap(8, 3, "counts"), 2: weights, 3: HashMap(4, 8, 20, "seen"), 4: RingBuffer(1 << 19, "ring")}
    text = BODIES[name]
    used = {number: each for number, each in maps.items() if f"fd:{number}]" in text}
    return Program(assemble(text), body(SIZE_BYTES), maps=used, name=name)


def _needs(name: str) -> None:
    """Skips what the running kernel is too old for; .ci/run cannot give it another."""
    if "load_acquire" in BODIES[name] and (why := lacks_acquire()):
        pytest.skip(why)


def _inputs(seed: str, number: int = INPUTS) -> list[bytes]:
    """Bytes at random, with small numbers among them."""
    rng = Random(seed)
    parts = (
        (rng.randrange(-20, 20) & M64).to_bytes(8, "little") if rng.random() < 0.5 else rng.randbytes(8)
        for _ in itertools.count()
    )
    return [b"".join(itertools.islice(parts, 4))[:SIZE_BYTES] for _ in range(number)]


def _same(linux: ModuleType, descriptor: int, program: Program, hook: str, number: int) -> None:
    """All verdicts of Linux and of uxk are equal."""
    prefix = bytes(14) if hook.startswith(("socket", "cgroup")) else b""
    expected, found = [], []
    try:
        for each in _inputs(program.name, number):
            memory = bytearray(each)
            verdict = s32(program.run(memory))
            expected.append((int(verdict != 0) if HOOKS[hook].binary else verdict, bytes(memory)))
            if hook == "syscall":
                found.append(linux.run_context(descriptor, each))
            else:
                found.append((linux.run_packet(descriptor, prefix + each + b"tail"), bytes(memory)))
    finally:
        os.close(descriptor)
    assert found == expected


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", BODIES)
def test_bpftool_loads_and_all_verdicts_are_equal(linux: ModuleType, folder: Path, name: str, hook: str) -> None:
    _needs(name)
    descriptor = by_bpftool(linux, folder, export(_program(name), hook))
    _same(linux, descriptor, _program(name), hook, INPUTS if hook == "xdp" else FEW)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", BODIES)
def test_the_loader_loads_and_all_verdicts_are_equal(linux: ModuleType, name: str, hook: str) -> None:
    _needs(name)
    loaded = elf.load(export(_program(name), hook), hook)
    _same(linux, linux.load_object(loaded), _program(name), hook, FEW)


def test_short_packets_are_passed_on(linux: ModuleType) -> None:
    cases = {"xdp": 2, "tc": 0, "socket": 0, "cgroup_skb/ingress": 1, "cgroup_skb/egress": 1}
    for name, (hook, expected) in itertools.product(("tree", "picked"), cases.items()):
        descriptor = linux.load_object(elf.load(export(_program(name), hook), hook))
        assert linux.run_packet(descriptor, b"\xff" * (SIZE_BYTES - 1)) == expected
        os.close(descriptor)


@pytest.mark.parametrize("name", BODIES)
def test_what_was_exported_can_be_read_back(name: str) -> None:
    program = _program(name)
    loaded = elf.load(export(_program(name)), "body_0")
    again = Program(loaded.code, body(SIZE_BYTES), maps=loaded.maps)
    assert len(again.code) == len(program.code)
    for each in _inputs(name, 200):
        assert again.run(bytearray(each)) == program.run(bytearray(each))
    assert elf.load(export(_program(name)), "xdp").license == "GPL"


def test_all_kinds_of_maps(linux: ModuleType, folder: Path) -> None:
    text = (
        "*(u32 *)(r10 - 4) = 0\nr1 = map[fd:1] ll\nr2 = r10\nr2 += -4\ncall 1\nr1 = map[fd:2] ll\nr2 = r10\nr2 += -4\n"
        "r3 = 4\nr4 = 0\ncall 130\nr0 = 0\nexit"
    )
    maps = {1: InstanceArrayMap(8, 2, "each-one"), 2: RingBuffer(4096, "9lives"), 3: HashMap(8, 8, 5, "uxk_memory")}
    program = Program(assemble(text), body(0), maps=maps)
    descriptor = by_bpftool(linux, folder, export(program, name="many"))
    assert linux.run_packet(descriptor, bytes(14)) == 0
    os.close(descriptor)


def test_what_a_hook_needs_not_is_not_fetched(linux: ModuleType, folder: Path) -> None:
    """A number that is always 0, as at the end of what models decide on, is 0 whatever the packet says."""
    program = Program(
        assemble("r0 = *(u64 *)(r1 + 8)\nr2 = *(u64 *)(r1 + 0)\nr0 += r2\nexit"), features(((0, 9), (0, 0)))
    )
    for hook in HOOKS:
        descriptor = by_bpftool(linux, folder, export(program, hook))
        prefix = bytes(14) if hook.startswith(("socket", "cgroup")) else b""
        for field in (0, 1, 7):
            data = field.to_bytes(8, "little") + b"\xff" * 16
            verdict = program.decide(field, 0)
            assert linux.run(descriptor, hook, prefix + data) == (int(verdict > 0) if HOOKS[hook].binary else verdict)
        os.close(descriptor)


def test_packets_stay_as_they_are(linux: ModuleType) -> None:
    """A body that writes gets a copy; one that only reads does not."""
    for name, copied in (("changed", True), ("atomic", True), ("told", True), ("tree", False), ("counted", False)):
        assert ("uxk_memory" in [m.name for m in elf.load(export(_program(name)), "xdp").maps.values()]) is copied


def test_interrupted_runs_do_not_share_a_copy() -> None:
    """What fetches the bytes, run here while others hold copies: it takes the next one, and none if all are taken."""
    made = before(HOOKS["syscall"], 8, copied=True)
    insns = list(made.insns)
    assert made.copies is not None
    assert made.keys is not None
    insns[made.copies] = insns[made.copies]._replace(src=1, imm=1)
    insns[made.keys] = insns[made.keys]._replace(src=2, imm=2)
    insns[made.call] = insns[made.call]._replace(imm=len(insns) - made.call - 1)
    code = encode([*insns, *decode(assemble("r0 = *(u64 *)(r1 + 0)\nr0 += 1\nexit"))])
    copies, keys = ArrayMap(16, COPIES, "uxk_memory"), ArrayMap(len(KEYS), 1)
    keys[0] = KEYS
    program = Program(code, body(8), maps={1: copies, 2: keys})
    for held in range(COPIES + 1):
        for index in range(COPIES):
            copies[index] = bytes([index < held]) + bytes(15)
        assert program.run(bytearray((41).to_bytes(8, "little"))) == (
            42 if held < COPIES else HOOKS["syscall"].otherwise
        )
        assert [copies[index][0] for index in range(COPIES)] == [index < held for index in range(COPIES)]
        assert [copies[index][8] for index in range(COPIES)] == [41 * (index == held) for index in range(COPIES)]


def test_models_with_bounds_need_no_copy(linux: ModuleType) -> None:
    """Numbers at fixed places are read in the packet: no map."""
    program = Program(assemble("r0 = *(u64 *)(r1 + 8)\nr0 += 3\nexit"), features(((0, 9), (0, 9))))
    loaded = elf.load(export(program), "xdp")
    assert not loaded.maps
    descriptor = linux.load_object(loaded)
    packet = (4).to_bytes(8, "little") + (5).to_bytes(8, "little")
    assert linux.run_packet(descriptor, packet) == program.decide(4, 5) == 8
    os.close(descriptor)


def _deep(functions: int) -> str:
    """Functions that call each other in a chain."""
    return "".join(f"f{n}: call f{n + 1}\nexit\n" for n in range(functions - 1)) + f"f{functions - 1}: r0 = 1\nexit"


LOOKUP = "*(u32 *)(r10 - 4) = 0\nr1 = map[fd:%d] ll\nr2 = r10\nr2 += -4\ncall 1\nr0 = 0\nexit"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "two uses": ("r1 = map[fd:1] ll\nr1 = map[fd:1][0]+0 ll\nr0 = 0\nexit", {}, "both by helpers and by address: a"),
    "a kfunc": ("kfunc\nr0 = 0\nexit", {}, "calls kfunc 7, which Linux does not have"),
    "a helper": ("call 999\nr0 = 0\nexit", {}, "insn 0: calls helper 999, own, which Linux does not have"),
    "another helper": ("call 6\nr0 = 0\nexit", {}, "calls helper 6, own, which Linux does not have"),
    "a hook": ("r0 = 0\nexit", {"hook": "sockets"}, "hook 'sockets' .did you mean 'socket'"),
    "a name": ("r0 = 0\nexit", {"name": "two words"}, "program name 'two words'; expected at most 15 letters"),
    "content": (LOOKUP % 3, {}, "map c: has content, which does not go along; fill it in Linux"),
    "pairs": (LOOKUP % 4, {}, "map d: has content"),
    "depth": (_deep(8), {}, "calls 8 deep; at most 7 below what fetches the memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_linux_has_not_is_refused(name: str) -> None:
    text, options, reason = REFUSED[name]
    code = bytes.fromhex("8520000007000000b7000000000000009500000000000000") if "kfunc" in text else assemble(text)
    own = Function(Proto("own"), lambda *_: 0)
    maps = {1: ArrayMap(8, 1, "a"), 2: ArrayMap(8, 2, "b"), 3: ArrayMap(4, 2, "c"), 4: HashMap(4, 4, 2, "d")}
    if name == "pairs":
        maps[4][b"four"] = b"five"
    else:
        maps[3][1] = b"five" if name == "content" else bytes(4)
    helpers = {**HELPERS, 6: own, 999: own}
    program = Program(code, body(8), maps=maps, helpers=helpers, kfuncs={7: own})
    with pytest.raises(BpfError, match=reason):
        export(program, **options)


def test_memories_have_bounds() -> None:
    """Linux's; those of copies are lower."""
    plain, moved = "r0 = *(u8 *)(r1 + 0)\nexit", "r2 = *(u8 *)(r1 + 0)\nr1 += r2\nr0 = *(u8 *)(r1 + 0)\nexit"
    for text, hook, most in ((plain, "xdp", 65535), (plain, "tc", 32760), (moved, "xdp", 32760)):
        export(Program(assemble(text), body(most)), hook)
        with pytest.raises(BpfError, match=f"{most + 1} bytes of memory; for {hook}, this program may have {most}"):
            export(Program(assemble(text), body(most + 1)), hook)


def test_bounds_that_linux_does_not_know() -> None:
    text = "r2 = *(u64 *)(r1 + 0)\nr3 = map[fd:1][0]+0 ll\nr3 += r2\nr0 = *(u8 *)(r3 + 0)\nexit"
    program = Program(assemble(text), features(((0, 7),)), maps={1: ArrayMap(8, 1, "table")})
    with pytest.raises(BpfError, match="safe only with the bounds of its fields, which Linux does not know: insn 3"):
        export(program)


def test_names_that_mean_something_else_already(linux: ModuleType, folder: Path) -> None:
    maps: dict[int, Any] = {
        1: ArrayMap(8, 2, "body_0"), 2: ArrayMap(8, 2, "decide"), 3: ArrayMap(8, 1, ".data"),
        4: ArrayMap(8, 1, ".data"), 5: ArrayMap(8, 1, ".database"), 6: ArrayMap(8, 1, ".bss"),
        7: ArrayMap(8, 1, ".rodata.cst4"),
    }  # fmt: skip
    for number in (3, 4, 5, 7):
        maps[number][0] = (1 << number).to_bytes(8, "little")
    maps[7].read_only = True
    looked = "".join(LOOKUP.removesuffix("r0 = 0\nexit") % number for number in (1, 2))
    added = "".join(f"r2 = map[fd:{n}][0]+0 ll\nr2 = *(u64 *)(r2 + 0)\nr0 += r2\n" for n in (3, 4, 5, 6, 7))
    program = Program(assemble(f"{looked}r0 = 0\n{added}exit"), body(0), maps=maps)
    descriptor = by_bpftool(linux, folder, export(program))
    assert linux.run_packet(descriptor, bytes(14)) == program.run() == 8 + 16 + 32 + 128
    os.close(descriptor)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.s").write_text(BODIES["tree"])
    out = tmp_path / "a.o"
    assert main(["export", "bpf", str(tmp_path / "a.s"), "-m", "16", "-o", str(out)]) == 0
    assert elf.load(out.read_bytes(), "xdp").function == "decide"
    assert main(["bpf", "run", str(out), "--section", "body_0", "-m", "16"]) == 0
    assert capsys.readouterr().out == "0\n"
    assert main(["export", "bpf", str(out), "--section", "body_0", "-m", "16", "--hook", "tv", "-o", str(out)]) == 1
    assert "expected one of: xdp, tc, socket" in capsys.readouterr().err
    assert main(["export"]) == 2


# --- the queue ---------------------------------------------------------------------------------------------


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return example("arena_queue")


def _three_rounds(queue: ModuleType, shared: Any, doorbell: Any) -> None:
    for seed, count in ((1, 1024), (2, 1), (3, 700)):
        records = queue.records_of(seed, count)
        assert queue.right_ones(records, queue.exchange(shared, doorbell, records)) == count


def test_one_doorbell_serves_many_entries_in_uxk(queue: ModuleType) -> None:
    _three_rounds(queue, *queue.in_uxk())


EXPORTED = """
import arena_queue as queue, linux, sys
from pathlib import Path
from uxk.bpf.elf import load
loaded = load(Path(sys.argv[1]).read_bytes())
maps = {number: linux.create_map(made) for number, made in loaded.maps.items()}
shared = queue.Mapped(next(maps[number] for number, made in loaded.maps.items() if made.kind == "arena"))
program = linux.load_program(loaded.code, loaded.section, maps)
for seed, count in ((1, 1024), (2, 1), (3, 700)):
    records = queue.records_of(seed, count)
    if loaded.section == "syscall":
        doorbell = lambda: linux.run_context(program)
    else:
        doorbell = lambda: linux.run_packet(program, bytes(14))
    print(queue.right_ones(records, queue.exchange(shared, doorbell, records)))
"""


@pytest.mark.parametrize("hook", ["syscall", "xdp"])
def test_an_arena_is_exported(linux: ModuleType, queue: ModuleType, tmp_path: Path, hook: str) -> None:
    if why := lacks_arena():
        pytest.skip(why)
    program = Program(assemble(queue.DRAIN + queue.BODY), body(0), maps={1: ArenaMap(queue.PAGES, "queues")})
    (tmp_path / "a.o").write_bytes(export(program, hook))
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED, tmp_path / "a.o"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
    )  # fmt: skip
    assert done.stdout.split() == ["1024", "1", "700"], done.stderr


def test_bpftool_takes_an_arena(linux: ModuleType, folder: Path) -> None:
    """One that only its own instructions know of: what stands before the body names it."""
    if why := lacks_arena():
        pytest.skip(why)
    text = "w2 = 8\nr2 = addr_space_cast(r2, 0, 1)\n*(u32 *)(r2 + 0) = 7\nr0 = *(u32 *)(r2 + 0)\nexit"
    program = Program(assemble(text), body(0), maps={1: ArenaMap(4, "a")})
    try:
        descriptor = by_bpftool(linux, folder, export(program))
    except AssertionError as exc:
        if "expected PTR, got enum64" in str(exc):
            pytest.skip("bpftool with libbpf before 1.4, as Debian 12 has it")
        raise
    assert linux.run_packet(descriptor, bytes(14)) == program.run() == 0, "what is stored on an absent page is lost"
    os.close(descriptor)
    program.maps[1].populate(0, 8)
    assert program.run() == 7
    program.maps[1].write(0, b"a")
    with pytest.raises(BpfError, match="map a: has content"):
        export(program)


def test_one_doorbell_serves_many_entries_in_linux(linux: ModuleType) -> None:
    """In a process of its own: the arena has a fixed address."""
    if why := lacks_arena():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "arena_queue.py"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "one doorbell, 1024 of 1024 right\n", done.stderr


def test_absent_pages_of_an_arena_lose_what_is_stored(queue: ModuleType) -> None:
    arena = ArenaMap(queue.PAGES)
    arena.populate(0, queue.CQ_AT)
    program = Program(assemble(queue.DRAIN + queue.BODY), body(0), maps={1: arena})
    records = queue.records_of(1, 8)
    assert queue.exchange(arena, program.run, records) == [(0, 0)] * 8
