"""Commands that no sane host sends: never a crash, always an answer, and the device works on afterwards."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uxk_nvme.spec import SQE_FAST, Admin, Io

ADMIN_OPCODES = [int(each) for each in Admin]
IO_OPCODES = [int(each) for each in Io]
EDGES = [0, 1, 2, 7, 8, 255, 256, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
words = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**32 - 1))
nsids = st.one_of(st.sampled_from([0, 1, 2, 32, 33, 0xFFFFFFFE, 0xFFFFFFFF]), words)


@st.composite
def commands(draw: Any, opcodes: list[int]) -> bytes:
    """64 bytes that look like a command, more or less."""
    opcode = draw(st.one_of(st.sampled_from(opcodes), st.integers(0, 255)))
    dwords = [draw(words) for _ in range(16)]
    flags = draw(st.sampled_from([0x40, 0x40, 0x40, 0x00, 0x41, 0x80, 0xFF]))
    dwords[0] = opcode | flags << 8 | dwords[0] & 0xFFFF0000
    dwords[1] = draw(nsids)
    if draw(st.booleans()):  # data that may well be there
        dwords[6], dwords[7] = draw(st.integers(0, 1 << 20)), 1 << 8
        dwords[8], dwords[9] = draw(st.sampled_from([0, 512, 4096, 8192, 131072, 1 << 20])), 0
    if draw(st.booleans()):
        dwords[10], dwords[11], dwords[12] = draw(st.integers(0, 8200)), 0, draw(st.integers(0, 255))
    return struct.pack("<16I", *dwords)


batches = st.lists(
    st.one_of(st.tuples(st.just(True), commands(ADMIN_OPCODES)), st.tuples(st.just(False), commands(IO_OPCODES))),
    min_size=1, max_size=12,
)  # fmt: skip


def answered(rig: Any, sent: list[tuple[bool, bytes]]) -> None:
    held = 0
    for admin, raw in sent:
        queue, tag = rig.send(raw, admin=admin)
        rig.clock.advance(10**12)
        if tag in queue.posted:
            assert 0 <= queue.posted.pop(tag).status < 1 << 15
        else:
            assert admin and raw[0] == Admin.ASYNC_EVENT
            held += 1
    assert held == rig.controller.events.waiting or rig.controller.events.waiting <= 4
    assert rig.identify(1).status == 0
    rig.faults.clear()
    assert rig.do(Io.FLUSH, 0xFFFFFFFF).status == 0


@given(sent=batches, filler=st.binary(min_size=64, max_size=64))
def test_every_command_is_answered(sent: list[tuple[bool, bytes]], filler: bytes, make_rig: Callable[..., Any]) -> None:
    rig = make_rig(write_cache=64 << 10)
    rig.host()
    rig.memory[:] = filler * (rig.MEMORY_BYTES // 64)
    answered(rig, sent)


@given(sent=st.lists(st.tuples(st.booleans(), st.binary(min_size=64, max_size=64)), min_size=1, max_size=12))
def test_garbage(sent: list[tuple[bool, bytes]], make_rig: Callable[..., Any]) -> None:
    answered(make_rig(medium="simple"), sent)


@given(data=st.binary(min_size=32, max_size=64), opcode=st.sampled_from(ADMIN_OPCODES), select=st.integers(0, 15))
def test_data_of_admin_commands(data: bytes, opcode: int, select: int, make_rig: Callable[..., Any]) -> None:
    rig = make_rig()
    raw = struct.pack("<16I", opcode | 0x4000, 1, 0, 0, 0, 0, 0, 1 << 8, 4096, 0, select, 0, 0, 0, 0, 0)
    rig.memory[:4096] = data.ljust(4096, b"\0")
    answered(rig, [(True, raw)])


def test_a_command_reads_as_it_lies(make_rig: Callable[..., Any]) -> None:
    raw = struct.pack("<16I", *range(16))
    head, address, sgl, slba, control = SQE_FAST.unpack(raw)
    assert (head, address, sgl) == (1 << 32, 7 << 32 | 6, 9 << 32 | 8)
    assert (slba, control) == (11 << 32 | 10, 13 << 32 | 12)
