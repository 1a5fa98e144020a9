"""bpf(2) by hand: maps, programs and test runs, in as few lines as will do.  Needs Linux, and root or CAP_BPF.

``python linux.py FILE.o BYTES...`` loads what ``uxk export bpf`` wrote, for whatever hook, and prints its verdict on
bytes given as hexadecimal digits: packets (a socket's and a cgroup's programs see them without their first 14 bytes,
the Ethernet header), or the context of a program of type syscall.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from uxk.bpf import insn as i
from uxk.bpf.elf import Loaded, load
from uxk.bpf.errors import BpfError
from uxk.bpf.export import ARENA_ADDRESS, KINDS
from uxk.bpf.insn import decode, encode, signed
from uxk.bpf.maps import ArrayMap, Map

MAP_CREATE, MAP_UPDATE, PROG_LOAD, OBJ_GET, TEST_RUN = 0, 2, 5, 7, 10
TYPES = {
    "socket": (1, 0), "tc": (3, 0), "xdp": (6, 0), "cgroup_skb/ingress": (8, 0), "cgroup_skb/egress": (8, 1),
    "syscall": (31, 0),
}  # fmt: skip
"""enum bpf_prog_type and enum bpf_attach_type, by the section."""
SLEEPABLE, MMAPABLE = 1 << 4, 1 << 10
FRAME_BYTES = 14
"""Shortest packet of a test run."""
_NUMBER = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """The system call.  Raises OSError."""
    buffer = attributes
    if isinstance(buffer, bytes):
        buffer = ctypes.create_string_buffer(buffer, max(len(buffer), 128))
    result = _libc.syscall(_NUMBER, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def create_map(made: Map) -> int:
    """The descriptor of a map like this one; an array of one value gets its content, too."""
    sizes = KINDS[made.kind], made.key_bytes, made.value_bytes, made.max_entries
    flags, extra = (MMAPABLE, ARENA_ADDRESS) if made.kind == "arena" else (0, 0)
    descriptor = bpf(MAP_CREATE, struct.pack("<5I44xQ", *sizes, flags, extra))
    if made.kind == "array" and made.max_entries == 1:
        assert isinstance(made, ArrayMap)
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(made[0], made.value_bytes)
        bpf(MAP_UPDATE, struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    return descriptor


def load_program(code: bytes, kind: str, maps: dict[int, int]) -> int:
    """The descriptor of a program; ``maps``: descriptors by the number that the code has.  Raises OSError with why."""
    insns = list(decode(code))
    for pc, insn in enumerate(insns):
        if insn.opcode == i.LDDW and insn.src in (i.IMM64_MAP_FD, i.IMM64_MAP_VALUE):
            insns[pc] = insn._replace(imm=maps[insn.imm])
    text, licence = ctypes.create_string_buffer(encode(insns)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    flags = SLEEPABLE if kind == "syscall" else 0
    number, attached = TYPES[kind]
    places = ctypes.addressof(text), ctypes.addressof(licence)

    def attributes(level: int) -> bytes:
        where = (level, len(log), ctypes.addressof(log)) if level else (0, 0, 0)
        return struct.pack("<IIQQIIQII20xI", number, len(insns), *places, *where, 0, flags, attached)

    try:
        return bpf(PROG_LOAD, attributes(0))
    except OSError:
        pass
    try:
        return bpf(PROG_LOAD, attributes(1))  # once more, to be told why
    except OSError as exc:
        raise OSError(exc.errno, f"{exc.strerror}\n{log.value.decode(errors='replace')}") from None


def load_object(loaded: Loaded) -> int:
    """The descriptor of a program out of an object, with maps of its own."""
    return load_program(loaded.code, loaded.section, {n: create_map(made) for n, made in loaded.maps.items()})


def run(program: int, hook: str, data: bytes) -> int:
    """The verdict on some bytes: a packet, or a context."""
    return run_context(program, data)[0] if hook == "syscall" else run_packet(program, data)


def run_packet(program: int, packet: bytes) -> int:
    """The verdict on a packet, signed 32 bits."""
    if len(packet) < FRAME_BYTES:
        raise ValueError(f"a packet of {len(packet)} bytes; Linux runs tests on at least {FRAME_BYTES}")
    data = ctypes.create_string_buffer(packet, len(packet))
    attributes = struct.pack("<IIIIQQII", program, 0, len(packet), 0, ctypes.addressof(data), 0, 1, 0)
    buffer = ctypes.create_string_buffer(attributes, 128)
    bpf(TEST_RUN, buffer)
    return signed(int.from_bytes(buffer.raw[4:8], "little"), 32)


def run_context(program: int, context: bytes = b"") -> tuple[int, bytes]:
    """Runs a program of type syscall once: what it returns, and what it made of its context."""
    data = ctypes.create_string_buffer(context, len(context)) if context else None
    where = ctypes.addressof(data) if data else 0
    buffer = ctypes.create_string_buffer(struct.pack("<I36xIIQ", program, len(context), 0, where), 128)
    bpf(TEST_RUN, buffer)
    return signed(int.from_bytes(buffer.raw[4:8], "little"), 32), data.raw if data else b""


def pinned(path: str) -> int:
    """The descriptor of what bpftool pinned there."""
    name = ctypes.create_string_buffer(path.encode())
    return bpf(OBJ_GET, struct.pack("<QII", ctypes.addressof(name), 0, 0))


def main(words: Sequence[str]) -> str | None:
    """Loads, and decides; what went wrong, if anything."""
    if not words:
        return "usage: python linux.py FILE.o BYTES..."
    path, *given = words
    try:
        loaded = load(Path(path).read_bytes(), name=path)
        if loaded.section not in TYPES:
            raise BpfError(f"section {loaded.section!r}; expected one of: {', '.join(TYPES)}")
        program = load_object(loaded)
        for each in given:
            print(run(program, loaded.section, bytes.fromhex(each)))
    except (BpfError, OSError, ValueError) as exc:
        return f"linux.py: {exc}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
