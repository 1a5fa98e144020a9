"""Maps, ring buffers and arenas as programs see them; beside the running kernel's where bpf(2) answers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator
from random import Random
from types import ModuleType

import linux_judge
import pytest
from linux_answers import lacks_acquire

from uxk.bpf import insn as i
from uxk.bpf.asm import assemble
from uxk.bpf.disasm import disassemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.insn import M32, M64, Insn, decode, encode, lddw
from uxk.bpf.maps import ARENA_PAGE_BYTES, ArenaMap, ArrayMap, HashMap, RingBuffer
from uxk.bpf.program import Program
from uxk.bpf.proto import body

PAGE = ARENA_PAGE_BYTES
ADDRESS = 1 << 44
"""Where Linux's arena is mapped: its lower half is 0."""


def both(program: Program, size_bytes: int) -> Iterator[tuple[int, bytearray]]:
    """r0 and memory of both ways to run."""
    for run in (program.interpret, program.run):
        memory = bytearray(size_bytes)
        yield run(memory), memory


@pytest.mark.parametrize(
    ("index", "flags", "why"),
    [
        (1, 0, 0), (1, 2, 0), (1, 1, errno.EEXIST), (2, 0, errno.E2BIG), (2, 1, errno.E2BIG), (2, 4, errno.E2BIG),
        (1, 3, errno.EINVAL), (2, 3, errno.EINVAL), (1, 4, errno.EINVAL), (1, 5, errno.EEXIST), (1, M64, errno.EINVAL),
    ],
)  # fmt: skip
def test_updates_of_an_array_fail_in_the_order_of_linux(index: int, flags: int, why: int) -> None:
    assert ArrayMap(8, 2).update(index.to_bytes(4, "little"), bytes(8), flags) == -why


def test_a_full_hash_takes_known_keys_only() -> None:
    made = HashMap(4, 8, 2)
    for key in (b"aaaa", b"bbbb", b"aaaa"):
        assert made.update(key, bytes(8)) == 0
    assert made.update(b"cccc", bytes(8)) == -errno.E2BIG
    assert made.update(b"aaaa", bytes(8), 1) == -errno.EEXIST
    assert made.update(b"cccc", bytes(8), 2) == -errno.ENOENT
    assert made.update(b"aaaa", bytes(8), 4) == -errno.EINVAL
    assert made.delete(b"aaaa") == 0
    assert made.delete(b"aaaa") == -errno.ENOENT
    assert made.update(b"cccc", b"12345678") == 0
    assert dict(made.items()) == {b"bbbb": bytes(8), b"cccc": b"12345678"}


STALE = """
    r6 = r1
    *(u32 *)(r10 - 4) = 0
    r1 = map[fd:1] ll
    r2 = r10
    r2 += -4
    call 1
    if r0 == 0 goto none
    r7 = r0
    r1 = map[fd:1] ll
    r2 = r10
    r2 += -4
    r3 = r6
    r4 = 0
    call 2
    r0 = *(u64 *)(r7 + 0)
    exit
none:
    r0 = -1
    exit
"""


def test_the_address_of_a_replaced_value_keeps_the_old_one_as_in_linux() -> None:
    made = HashMap(4, 8, 1)
    program = Program(assemble(STALE), body(8), maps={1: made})
    for run in (program.run, program.interpret):
        made[bytes(4)] = (7).to_bytes(8, "little")
        assert run(bytearray((9).to_bytes(8, "little"))) == 7
        assert made[bytes(4)] == (9).to_bytes(8, "little")


# --- ring buffer ---


def test_a_ring_is_never_full_to_the_last_byte_and_counts_what_it_drops() -> None:
    ring = RingBuffer(PAGE)
    for _ in range(2):  # and once more from where it was drained
        taken = [ring.output(bytes(8)) for _ in range(300)]
        assert taken == [0] * 255 + [-errno.EAGAIN] * 45
        assert len(ring.drain()) == 255
    assert ring.dropped == 90
    assert ring.output(bytes(PAGE)) == -errno.EAGAIN
    assert [ring.output(b"x", flags) for flags in (0, 1, 2, 3, 4, M64)] == [0, 0, 0, 0, -errno.EINVAL, -errno.EINVAL]
    assert ring.dropped == 91


class Ring:
    """A ring buffer of Linux, drained by its reader."""

    def __init__(self) -> None:
        self.fd = linux_judge.bpf(linux_judge.MAP_CREATE, struct.pack("<IIIII", 27, 0, 0, PAGE, 0))
        self._reader = mmap.mmap(self.fd, PAGE)
        self._writer = mmap.mmap(self.fd, 3 * PAGE, prot=mmap.PROT_READ, offset=PAGE)

    def drain(self) -> list[bytes]:
        """All records."""
        records, (at,), (end,) = [], struct.unpack_from("<Q", self._reader), struct.unpack_from("<Q", self._writer)
        while at < end:
            start = PAGE + at % PAGE
            size_bytes = struct.unpack_from("<I", self._writer, start)[0] & (1 << 30) - 1
            records.append(bytes(self._writer[start + 8 : start + 8 + size_bytes]))
            at += -(-(size_bytes + 8) // 8) * 8
        struct.pack_into("<Q", self._reader, 0, at)
        return records


def test_a_ring_beside_that_of_linux(linux: ModuleType) -> None:
    rng, ours, theirs = Random(4), RingBuffer(PAGE), Ring()
    memory_fd, result_fd = linux_judge.array_map(1024), linux_judge.array_map(8)
    pairs: dict[tuple[int, int], tuple[int, Program]] = {}
    for _ in range(1500):
        size_bytes, flags = rng.choice((1, 7, 8, 9, 56, 1000, 1024, 8)), rng.choice((0, 0, 0, 0, 1, 2, 3, 4, -1))
        if (size_bytes, flags) not in pairs:
            text = f"r2 = r1\nr1 = map[fd:1] ll\nr3 = {size_bytes}\nr4 = {flags}\ncall 130\nexit\n"
            code = assemble(text)
            there = linux_judge.wrapped(encode(_with_map(decode(code), theirs.fd)), memory_fd, 1024, result_fd)
            pairs[size_bytes, flags] = linux_judge.load(there), Program(code, body(1024), maps={1: ours})
        number, program = pairs[size_bytes, flags]
        content = rng.randbytes(1024)
        linux_judge.put(memory_fd, content)
        linux_judge.test_run(number)
        result = int.from_bytes(linux_judge.take(result_fd, 8), "little")
        assert program.run(bytearray(content)) & M64 == result
        if rng.random() < 0.04:
            assert ours.drain() == theirs.drain()
    assert ours.dropped > 100
    for number, _ in pairs.values():
        os.close(number)


def _with_map(insns: tuple[Insn, ...], fd: int) -> list[Insn]:
    return [insn._replace(imm=fd) if insn.opcode == i.LDDW and insn.src else insn for insn in insns]


# --- arena ---


def arena_program(base: int, op: Insn, *, before: tuple[int, int, int] = (1, 2, 3), moved: int = 0) -> bytes:
    """One instruction on r3, an address in an arena; r0, r4, r5, which are ``before`` at first, go to memory."""
    first, second, third = before
    insns = [
        Insn(i.ALU64 | i.MOV | i.X, 6, 1), *lddw(1, 1, i.IMM64_MAP_FD), *lddw(0, first), *lddw(4, second),
        *lddw(5, third), *lddw(3, (base - moved) & M64), Insn(i.ALU64 | i.MOV | i.X, 3, 3, 1, 1),
        Insn(i.ALU64 | i.ADD, 3, imm=moved), op, Insn(i.ALU64 | i.MOV | i.X, 7, 3, 1, 1 << 16),
        Insn(i.ALU | i.MOV | i.X, 7, 7),
    ]  # fmt: skip
    insns += [Insn(i.STX | i.DW | i.MEM, 6, register, 8 * place) for place, register in enumerate((0, 4, 5, 7))]
    return encode([*insns, Insn(i.ALU64 | i.MOV), Insn(i.EXIT_INSN)])


def arena_with(pages: int, present: tuple[int, ...]) -> ArenaMap:
    """Its present pages are full of 0x11."""
    made = ArenaMap(pages)
    for page in present:
        made.populate(page * PAGE, PAGE)
        made.write(page * PAGE, b"\x11" * PAGE)
    return made


@pytest.mark.parametrize(
    ("base", "off", "expected"),
    [
        (0, 0, 0x1111_1111), (7 << 32, 0, 0x1111_1111), (PAGE - 4, 0, 0x1111_1111), (PAGE - 2, 0, 0),
        (PAGE, 0, 0), (2 * PAGE - 1, 0, 0), (2 * PAGE, 0, 0x1111_1111), (3 * PAGE, -4, 0x1111_1111), (4, -8, 0),
        (M32 - 3, 0, 0x1111_1111), (M32 - 1, 0, 0), (M32 - 3, 4, 0), (M32, 1, 0), (M64, 1, 0),
    ],
)  # fmt: skip
def test_a_load_from_an_arena_is_whole_or_0_and_distances_do_not_wrap(base: int, off: int, expected: int) -> None:
    made = arena_with(1 << 20, (0, 2, (1 << 20) - 1))
    program = Program(arena_program(base, Insn(i.LDX | i.W | i.MEM, 4, 3, off)), body(32), maps={1: made})
    for _, memory in both(program, 32):
        assert struct.unpack("<4Q", memory)[1] == expected


def test_a_store_across_the_end_of_a_page_is_lost_as_a_whole() -> None:
    made = arena_with(4, (0, 2))
    for at in (PAGE - 3, 2 * PAGE - 3):
        program = Program(arena_program(at, Insn(i.STX | i.DW | i.MEM, 3, 5)), body(32), maps={1: made})
        for _ in both(program, 32):
            assert made.read(0, 4 * PAGE) == arena_with(4, (0, 2)).read(0, 4 * PAGE)


def test_addresses_that_leave_the_arena_are_cut_to_32_bits() -> None:
    code = arena_program(0, Insn(i.ALU64 | i.ADD, 3, imm=-1), moved=5)
    for _, memory in both(Program(code, body(32), maps={1: arena_with(4, ())}), 32):
        assert struct.unpack("<4Q", memory)[3] == M32
    code = encode([
        *lddw(1, 1, i.IMM64_MAP_FD), *lddw(2, 5 << 32 | 8), Insn(i.ALU64 | i.MOV | i.X, 0, 2, 1, 1 << 16),
        Insn(i.EXIT_INSN),
    ])  # fmt: skip
    assert [r0 for r0, _ in both(Program(code, body(0), maps={1: arena_with(4, ())}), 0)] == [8, 8]


ATOMICS = (*(op | fetch for op in (i.ADD, i.OR, i.AND, i.XOR) for fetch in (0, i.FETCH)), i.XCHG, i.CMPXCHG)


def test_an_arena_beside_that_of_linux(linux: ModuleType) -> None:
    """Where a page is absent, Linux leaves the register of what an atomic operation fetches alone; here it is 0."""
    if why := lacks_acquire():
        pytest.skip(why)
    rng, verdicts, present = Random(5), Counter[str](), (0, 2)
    ours = arena_with(4, present)
    mapped = Window(linux.create_map(ArenaMap(4)))
    for _ in range(200):
        base, off, op, before = drawn(rng)
        code = arena_program(base, op, before=before, moved=rng.choice((0, 0, 16, -16, PAGE)))
        refused = op.mode == i.ATOMIC and op.imm in (i.OR | 1, i.AND | 1, i.XOR | 1)
        try:
            program = Program(code, body(32), maps={1: ours})
        except VerifierError:
            assert refused
            verdicts["refused"] += 1
            continue
        number = linux.load_program(code, "syscall", {1: mapped.fd})
        mapped.fill(present)
        _, context = linux.run_context(number, bytes(32))
        os.close(number)
        registers, pages = struct.unpack("<4Q", context), mapped.pages(present)
        fetches = op.mode == i.ATOMIC and (op.imm == i.LOAD_ACQ or (op.imm != i.STORE_REL and op.imm & i.FETCH))
        quirk = fetches and not ours.holds((base & M32) + off, op.width_bytes)
        for run in (program.interpret, program.run):
            for page in present:
                ours.write(page * PAGE, b"\x11" * PAGE)
            memory = bytearray(32)
            run(memory)
            assert [ours.read(page * PAGE, PAGE) for page in present] == pages, disassemble([op])
            if not quirk:
                assert struct.unpack("<4Q", memory) == registers, disassemble([op])
        verdicts["quirk" if quirk else "same"] += 1
    assert verdicts["same"] > 80
    mapped.close()


def drawn(rng: Random) -> tuple[int, int, Insn, tuple[int, int, int]]:
    """A base, an offset, an instruction with it, and the registers before."""
    kind, size = (
        rng.choice(("load", "signed", "store", "number", "atomic", "ordered")),
        rng.choice((i.B, i.H, i.W, i.DW)),
    )
    edges = (0, 8, PAGE - 8, PAGE - 3, PAGE - 1, PAGE, 2 * PAGE - 4, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE - 4, 4 * PAGE, -8)
    off = (
        rng.choice((0, 0, 8, -8, 1, -1, 32767, -32768))
        if kind not in ("atomic", "ordered")
        else 8 * rng.randrange(-1, 2)
    )
    place = rng.choice(edges)
    before = rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(64)
    if kind in ("atomic", "ordered"):
        place &= -8
    if rng.random() < 0.5:
        before = 0x1111_1111_1111_1111, *before[1:]
    base = (place - off) & M64
    if kind == "load":
        op = Insn(i.LDX | size | i.MEM, 4, 3, off)
    elif kind == "signed":
        op = Insn(i.LDX | rng.choice((i.B, i.H, i.W)) | i.MEMSX, 4, 3, off)
    elif kind == "store":
        op = Insn(i.STX | size | i.MEM, 3, 5, off)
    elif kind == "number":
        op = Insn(i.ST | size | i.MEM, 3, 0, off, -77_777)
    elif kind == "atomic":
        op = Insn(i.STX | rng.choice((i.W, i.DW)) | i.ATOMIC, 3, 5, off, rng.choice(ATOMICS))
    else:
        acquires = rng.random() < 0.5
        operation = i.LOAD_ACQ if acquires else i.STORE_REL
        op = Insn(i.STX | size | i.ATOMIC, 4 if acquires else 3, 3 if acquires else 5, off, operation)
    return base, off, op, before


class Window:
    """The four pages of an arena of Linux, mapped here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._munmap = library.munmap
        shared, at_address = 1, 0x100000
        found = library.mmap(ADDRESS, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, shared | at_address, fd, 0)
        assert found == ADDRESS

    def fill(self, present: tuple[int, ...]) -> None:
        """Makes pages present, and full of 0x11."""
        for page in present:
            ctypes.memset(ADDRESS + page * PAGE, 0x11, PAGE)

    def pages(self, present: tuple[int, ...]) -> list[bytes]:
        """What is in them."""
        return [ctypes.string_at(ADDRESS + page * PAGE, PAGE) for page in present]

    def close(self) -> None:
        """Unmaps them."""
        self._munmap(ADDRESS, 4 * PAGE)
