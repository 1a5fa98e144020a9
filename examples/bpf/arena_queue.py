"""A queue between a process and a program in the kernel: an arena that both see, and one doorbell for many entries.

The process puts records of 64 bytes on a submission queue; the program, run once, takes them all, decides on each with
a body, and puts completions of 16 bytes on a completion queue.  The same bytes run in uxk (``--uxk``) and in Linux
(6.9 and later, as root): ``python arena_queue.py [--uxk] [ENTRIES]``.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Protocol

from uxk.bpf.asm import assemble
from uxk.bpf.export import ARENA_ADDRESS
from uxk.bpf.maps import ARENA_PAGE_BYTES, ArenaMap
from uxk.bpf.program import Program
from uxk.bpf.proto import body, features

sys.path.insert(0, str(Path(__file__).parent))

ENTRIES = 1024
SQE_BYTES, CQE_BYTES = 64, 16
SQ_TAIL, SQ_HEAD, CQ_TAIL, TAKEN = 0, 64, 128, 192
"""Places of the indices, each in a cache line of its own; they only grow, and wrap at 32 bits.  ``TAKEN``: 1 while a
program takes entries, on whatever CPU."""
SQ_AT = ARENA_PAGE_BYTES
CQ_AT = SQ_AT + ENTRIES * SQE_BYTES
PAGES = -(-(CQ_AT + ENTRIES * CQE_BYTES) // ARENA_PAGE_BYTES)
ADDRESS = ARENA_ADDRESS
"""Where the arena is mapped: its lower 32 bits are 0, so that offsets are addresses for the program."""

DRAIN = f"""
    r1 = map[fd:1] ll
    w6 = 0
    r6 = addr_space_cast(r6, 0, 1)
again:
    may_goto out
    w1 = 1
    w1 = xchg32_32(r6 + {TAKEN}, w1)
    w0 = 1
    if w1 != 0 goto busy
    w7 = 0
    w7 = atomic_fetch_add((u32 *)(r6 + {SQ_TAIL}), w7)
    w8 = *(u32 *)(r6 + {SQ_HEAD})
next:
    may_goto done
    if w8 == w7 goto done
    w9 = w8
    w9 &= {ENTRIES - 1}
    w1 = w9
    w1 <<= 6
    w1 += {SQ_AT}
    r1 = addr_space_cast(r1, 0, 1)
    r2 = {SQE_BYTES}
    call body
    w1 = w9
    w1 <<= 6
    w1 += {SQ_AT}
    r1 = addr_space_cast(r1, 0, 1)
    r2 = *(u64 *)(r1 + 56)
    w1 = w9
    w1 <<= 4
    w1 += {CQ_AT}
    r1 = addr_space_cast(r1, 0, 1)
    *(u64 *)(r1 + 0) = r2
    *(u64 *)(r1 + 8) = r0
    w8 += 1
    goto next
done:
    *(u32 *)(r6 + {SQ_HEAD}) = w8
    w8 = xchg32_32(r6 + {CQ_TAIL}, w8)
    w1 = 0
    w1 = xchg32_32(r6 + {TAKEN}, w1)
    w1 = 0
    w1 = atomic_fetch_add((u32 *)(r6 + {SQ_TAIL}), w1)
    if w1 != w7 goto again
out:
    w0 = 0
busy:
    exit
body:
"""
"""Takes what lies on the submission queue; seven numbers and the submitter's own number are a record.

1 if another CPU is at it: that one takes what came meanwhile, too, since it looks once more after it has let go.
"""
BODY = """
    r2 = *(u64 *)(r1 + 0)
    r3 = *(u64 *)(r1 + 16)
    r0 = *(u64 *)(r1 + 8)
    if r2 s> 40 goto heavy
    if r3 s<= -5 goto light
    r0 += r3
    exit
heavy:
    r0 *= 3
    exit
light:
    r0 = 0
    exit
"""
BOUNDS = ((-1000, 1000),) * 7 + ((0, ENTRIES),)


class Shared(Protocol):
    """Memory that both sides see."""

    def read(self, offset: int, size_bytes: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...


class Mapped:
    """The pages of an arena, mapped into this process."""

    def __init__(self, descriptor: int) -> None:
        mmap = ctypes.CDLL(None, use_errno=True).mmap
        mmap.restype = ctypes.c_void_p
        mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        shared, fixed, read_write = 1, 0x100000, 3
        found = mmap(ADDRESS, PAGES * ARENA_PAGE_BYTES, read_write, shared | fixed, descriptor, 0)
        if found != ADDRESS:
            raise OSError(ctypes.get_errno(), "mmap of the arena")
        ctypes.memset(ADDRESS, 0, PAGES * ARENA_PAGE_BYTES)  # what a program stores on absent pages is lost

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes of the arena."""
        return ctypes.string_at(ADDRESS + offset, size_bytes)

    def write(self, offset: int, data: bytes) -> None:
        """Puts bytes there; a page that was absent is present from then on."""
        ctypes.memmove(ADDRESS + offset, data, len(data))


def in_uxk() -> tuple[Shared, Callable[[], int]]:
    """The arena and the doorbell of a program that uxk runs."""
    arena = ArenaMap(PAGES, "queues")
    arena.populate(0, PAGES * ARENA_PAGE_BYTES)
    program = Program(assemble(DRAIN + BODY), body(0), maps={1: arena})
    return arena, program.run


def in_linux() -> tuple[Shared, Callable[[], int]]:
    """The same of one that the kernel runs.  Raises OSError."""
    from linux import create_map, load_program, run_context

    descriptor = create_map(ArenaMap(PAGES, "queues"))
    shared = Mapped(descriptor)  # before the program: it is built for the address
    program = load_program(assemble(DRAIN + BODY), "syscall", {1: descriptor})
    return shared, lambda: run_context(program)[0]


def exchange(shared: Shared, doorbell: Callable[[], int], records: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Submits all records, rings once, and returns the completions: (number, verdict)."""
    (tail,) = struct.unpack("<I", shared.read(SQ_TAIL, 4))
    for index, record in enumerate(records, tail):
        shared.write(SQ_AT + index % ENTRIES * SQE_BYTES, struct.pack("<8q", *record))
    shared.write(SQ_TAIL, struct.pack("<I", (tail + len(records)) & 0xFFFFFFFF))
    doorbell()
    (done,) = struct.unpack("<I", shared.read(CQ_TAIL, 4))
    places = (CQ_AT + index % ENTRIES * CQE_BYTES for index in range(tail, done))
    return [struct.unpack("<2q", shared.read(place, CQE_BYTES)) for place in places]


def records_of(seed: int, count: int) -> list[tuple[int, ...]]:
    """Random features, and numbers in order."""
    rng = Random(seed)
    return [(*(rng.randint(-1000, 1000) for _ in range(7)), number) for number in range(count)]


def right_ones(records: list[tuple[int, ...]], completions: list[tuple[int, int]]) -> int:
    """How many completions are what the body, alone in uxk, decides."""
    alone = Program(assemble(BODY), features(BOUNDS))
    expected = [(record[7], alone.decide(*record)) for record in records]
    return sum(a == b for a, b in zip(expected, completions, strict=False))


def main(words: list[str]) -> None:
    """One doorbell."""
    try:
        shared, doorbell = in_uxk() if "--uxk" in words else in_linux()
    except OSError as exc:
        sys.exit(f"arena_queue: {exc}; it needs Linux 6.10, and root; --uxk does without")
    numbers = [int(word) for word in words if word.isdigit()]
    records = records_of(1, min(numbers[0] if numbers else ENTRIES, ENTRIES))
    right = right_ones(records, exchange(shared, doorbell, records))
    print(f"one doorbell, {right} of {len(records)} right")


if __name__ == "__main__":
    main(sys.argv[1:])
