"""The running kernel as a judge: loads programs through bpf(2), strict or as root, and runs them.

``python linux_judge.py [--root]``: a line ``PROGRAM[:VALUE] MEMORY...`` of hexadecimal digits in (all memories of one
length, ``-`` for none; VALUE is what map 0 holds); out comes ``accept R0...`` (64 bits) or ``refuse WHY``.  A program
may use the maps of ``richer``, which are as they were before each run.  Without ``--root`` it gives up all capabilities
but CAP_BPF and CAP_NET_ADMIN: the strict mode, in which unwritten stack may not be read.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from subprocess import PIPE, Popen

import linux_answers
import richer

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn, decode, encode, lddw

_NUMBER = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD, TEST_RUN = 0, 1, 2, 5, 10
_HASH, _ARRAY, _XDP = 1, 2, 6
_LOG_BYTES = 1 << 16
_REMARKS = ("processed ", "old state:", "cur state:")
"""Lines that may follow the reason."""
_CAP_NET_ADMIN, _CAP_BPF = 12, 39
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """The system call; raises OSError."""
    return _call(command, attributes)[1]


def _call(command: int, attributes: bytes) -> tuple[bytes, int]:
    """The attributes as the kernel left them, and the result."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(_NUMBER, command, buffer, len(buffer))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw, int(result)


def array_map(value_bytes: int) -> int:
    """The descriptor of an array of one value."""
    return bpf(MAP_CREATE, struct.pack("<IIIII", _ARRAY, 4, value_bytes, 1, 0))


class Refused(Exception):
    """The verifier's last line."""


def load(code: bytes) -> int:
    """The descriptor of an XDP program.  Raises ``Refused``."""
    insns, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def attributes(level: int) -> bytes:
        where, size = (ctypes.addressof(log), _LOG_BYTES) if level else (0, 0)
        code_at, licence_at = ctypes.addressof(insns), ctypes.addressof(licence)
        return struct.pack("<IIQQIIQ", _XDP, len(code) // 8, code_at, licence_at, level, size, where)

    try:
        return bpf(PROG_LOAD, attributes(0))
    except OSError:
        pass
    try:
        return bpf(PROG_LOAD, attributes(1))
    except OSError as exc:
        lines = [line for line in log.value.decode(errors="replace").splitlines() if not line.startswith(_REMARKS)]
        raise Refused(lines[-1] if lines else str(exc)) from None


def wrapped(code: bytes, memory_fd: int, length: int, result_fd: int) -> bytes:
    """The body as a function of a program: r1 = the memory map's value, r2 = its length; r0 goes to the result map."""
    body = decode(code)
    before = [*lddw(1, memory_fd, i.IMM64_MAP_VALUE), Insn(i.ALU64 | i.MOV, 2, imm=length)] if length else [
        Insn(i.ALU64 | i.MOV, 1), Insn(i.ALU64 | i.MOV, 2),
    ]  # fmt: skip
    after = [
        *lddw(6, result_fd, i.IMM64_MAP_VALUE), Insn(i.STX | i.DW | i.MEM, 6, 0), Insn(i.ALU64 | i.MOV, 0),
        Insn(i.EXIT_INSN),
    ]  # fmt: skip
    return encode([*before, Insn(i.CALL_INSN, src=i.CALL_LOCAL, imm=len(after)), *after, *body])


def test_run(program_fd: int) -> None:
    """Runs an XDP program once, on a packet of zeros."""
    timed_run(program_fd, 1)


def timed_run(program_fd: int, repeat: int) -> int:
    """Runs an XDP program so often; nanoseconds of one run, by the kernel's own clock.

    Repeating has a cost of its own, of some 30 ms, which is left out: the kernel changes its text for it.
    """
    packet = ctypes.create_string_buffer(64)
    given = struct.pack("<IIIIQQII", program_fd, 0, 64, 0, ctypes.addressof(packet), 0, repeat, 0)
    return int(struct.unpack_from("<I", _call(TEST_RUN, given)[0], 36)[0])


def put(map_fd: int, value: bytes, index: int = 0) -> None:
    """Writes a value."""
    key, data = (
        ctypes.create_string_buffer(index.to_bytes(4, "little"), 4),
        ctypes.create_string_buffer(value, len(value)),
    )
    bpf(MAP_UPDATE, struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(data), 0))


def take(map_fd: int, value_bytes: int) -> bytes:
    """Reads the value of a map of one."""
    key, data = ctypes.create_string_buffer(4), ctypes.create_string_buffer(value_bytes)
    bpf(MAP_LOOKUP, struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(data), 0))
    return data.raw


class Kernel:
    """Loads and runs bodies; keeps one map for each length of memory."""

    def __init__(self) -> None:
        self._result = array_map(8)
        self._memories: dict[int, int] = {}
        self._maps: dict[int, int] = {}

    def judge(self, code: bytes, memories: Sequence[bytes], value: bytes = b"") -> list[int]:
        """r0 for each memory; ``value`` is what map 0 holds, if it is given.  Raises ``Refused``."""
        length = len(memories[0]) if memories else 0
        if length and length not in self._memories:
            self._memories[length] = array_map(length)
        memory = self._memories.get(length, -1)
        own = _map_with(value) if value else -1
        try:
            code, used = (_with_map(code, own), set[int]()) if value else self._with_maps(code)
            program = load(wrapped(code, memory, length, self._result))
        finally:
            if value:
                os.close(own)
        try:
            return [self._run(program, memory, each, used) for each in memories]
        finally:
            os.close(program)

    def _with_maps(self, code: bytes) -> tuple[bytes, set[int]]:
        """The code with descriptors in place of the numbers of maps, and those numbers."""
        insns, used = list(decode(code)), set[int]()
        for pc, insn in enumerate(insns):
            if insn.opcode != i.LDDW or insn.src not in (i.IMM64_MAP_FD, i.IMM64_MAP_VALUE):
                continue
            if not self._maps:
                room = 2 * richer.ENTRIES
                hashed = struct.pack("<IIIII", _HASH, 4, richer.HASH_VALUE_BYTES, room, 0)
                array = struct.pack("<IIIII", _ARRAY, 4, richer.ARRAY_VALUE_BYTES, richer.ENTRIES, 0)
                self._maps = {
                    richer.ARRAY: bpf(MAP_CREATE, array), richer.HASHED: bpf(MAP_CREATE, hashed),
                    richer.SINGLE: array_map(richer.ARRAY_VALUE_BYTES),
                }  # fmt: skip
            if insn.imm in self._maps:
                used.add(insn.imm)
                insns[pc] = insn._replace(imm=self._maps[insn.imm])
        return encode(insns), used

    def _run(self, program: int, memory: int, content: bytes, used: set[int]) -> int:
        for number in used:
            for key in richer.keys(number):
                put(self._maps[number], richer.content(number, key), key)
        if content:
            put(memory, content)
        test_run(program)
        return int.from_bytes(take(self._result, 8), "little")


def _map_with(value: bytes) -> int:
    """The descriptor of a map that holds it."""
    made = array_map(len(value))
    put(made, value)
    return made


def _with_map(code: bytes, made: int) -> bytes:
    """The code with that map in place of map 0."""
    insns = decode(code)
    return encode([
        insn._replace(imm=made) if insn.opcode == i.LDDW and insn.src == i.IMM64_MAP_VALUE else insn for insn in insns
    ])  # fmt: skip


def be_strict() -> None:
    """Gives up all capabilities but two, for good."""
    kept = 1 << _CAP_NET_ADMIN | 1 << _CAP_BPF
    header = struct.pack("<Ii", 0x20080522, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


class Judge:
    """A judge in a process of its own; ``strict`` as in the module's text.  ``OSError`` if bpf(2) does not answer."""

    def __init__(self, *, strict: bool = True) -> None:
        if why := linux_answers.why_not():
            raise OSError(why)
        command = [sys.executable, __file__, *([] if strict else ["--root"])]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        greeting = self._read()
        if greeting != "ready":
            self.close()
            raise OSError(greeting)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def ask(self, code: bytes, memories: Sequence[bytes], value: bytes = b"") -> list[int] | str:
        """r0 for each memory, or why the program is refused; ``value``: what map 0 holds."""
        assert self._process.stdin
        self._process.stdin.write(
            f"{code.hex()}{':' * bool(value)}{value.hex()} {' '.join(memory.hex() or '-' for memory in memories)}\n"
        )
        self._process.stdin.flush()
        verdict, _, rest = self._read().partition(" ")
        return [int(word, 16) for word in rest.split()] if verdict == "accept" else rest


def main() -> None:
    """Serves standard input."""
    try:
        if "--root" not in sys.argv:
            be_strict()
        kernel = Kernel()
    except OSError as exc:
        print(f"no bpf(2) here: {exc}", flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        program, *memories = line.split()
        code, _, value = program.partition(":")
        inputs = [b"" if m == "-" else bytes.fromhex(m) for m in memories]
        try:
            with linux_answers.turn():
                results = kernel.judge(bytes.fromhex(code), inputs, bytes.fromhex(value))
            print("accept", *(f"{r0:x}" for r0 in results), flush=True)
        except Refused as exc:
            print("refuse", exc, flush=True)


if __name__ == "__main__":
    main()
