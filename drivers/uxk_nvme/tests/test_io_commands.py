"""I/O commands: what they do, and what they are refused with."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from uxk_nvme.spec import BROADCAST, CRD_SHIFT, DNR, MORE, Io, Status

FUA = 1 << 30


def nlb(blocks: int, flags: int = 0) -> dict[int, int]:
    return {12: blocks - 1 | flags}


def write(rig: Any, slba: int, data: bytes, flags: int = 0) -> Any:
    return rig.do(Io.WRITE, 1, slba=slba, cdw=nlb(len(data) >> 9, flags), data=data)


def read(rig: Any, slba: int, blocks: int, flags: int = 0) -> Any:
    rig.memory[: blocks << 9] = b"\xee" * (blocks << 9)
    return rig.do(Io.READ, 1, slba=slba, cdw=nlb(blocks, flags), length=blocks << 9)


@pytest.mark.parametrize("flags", [0, FUA, 1 << 31, FUA | 1 << 31])
def test_what_is_written_is_read(rig: Any, flags: int) -> None:
    data = bytes(range(256)) * 8
    assert write(rig, 5, data, flags).status == 0
    assert read(rig, 5, 4, flags).data == data
    assert read(rig, 4, 2).data == bytes(512) + data[:512]


def test_access_hints_do_no_harm(rig: Any) -> None:
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0, 13: 7}, length=512).status == 0


@pytest.mark.parametrize(
    ("opcode", "words"),
    [(Io.READ, {}), (Io.WRITE, {}), (Io.COMPARE, {}), (Io.WRITE_ZEROES, {}), (Io.VERIFY, {}),
     (Io.WRITE_UNCORRECTABLE, {})],
)  # fmt: skip
def test_beyond_the_end(rig: Any, opcode: int, words: dict[int, int]) -> None:
    blocks = rig.namespace.blocks
    for slba, count in ((blocks, 1), (blocks - 1, 2), ((1 << 64) - 1, 1), ((1 << 64) - 1, 65536), (blocks - 7, 8)):
        length = min(count << 9, 4096)
        answer = rig.do(opcode, 1, slba=slba, cdw=nlb(count), length=length)
        assert answer.code == Status.LBA_OUT_OF_RANGE and answer.dnr
    assert rig.do(opcode, 1, slba=blocks - 1, cdw=nlb(1), length=512).code in (0, Status.COMPARE_FAILURE)


@pytest.mark.parametrize(
    ("nsid", "status"),
    [(0, Status.INVALID_NAMESPACE), (2, Status.INVALID_FIELD), (33, Status.INVALID_NAMESPACE),
     (BROADCAST, Status.INVALID_NAMESPACE)],
)  # fmt: skip
def test_namespaces_that_are_not_there(rig: Any, nsid: int, status: int) -> None:
    answer = rig.do(Io.READ, nsid, slba=0, cdw=nlb(1), length=512)
    assert answer.code == status and answer.dnr


@pytest.mark.parametrize("length", [0, 511, 512, 1536])
@pytest.mark.parametrize("opcode", [Io.READ, Io.WRITE, Io.COMPARE])
def test_the_data_pointer_must_fit(rig: Any, opcode: int, length: int) -> None:
    assert rig.do(opcode, 1, slba=0, cdw=nlb(2), length=length).code == Status.SGL_LENGTH_INVALID


def test_bad_data_pointers(rig: Any) -> None:
    def command(address: int, kind: int, psdt: int) -> int:
        raw = struct.pack(
            "<BBHI16xQIxxxBQI12x", Io.READ, psdt << 6, 9, 1, address, 512, kind, 0, 0
        )  # fmt: skip
        queue, tag = rig.send(raw, admin=False)
        return int(queue.posted.pop(tag).status & 0x7FF)

    assert command(rig.base, 0, 1) == 0
    assert command(rig.base, 0, 0) == Status.INVALID_FIELD  # a PRP
    assert command(rig.base, 0x5A, 1) == Status.SGL_TYPE_INVALID
    for address in (0, 1 << 40, rig.base + rig.MEMORY_BYTES - 511, (1 << 64) - 512):
        assert command(address if address != 1 << 40 else 99 << 40, 0, 1) == Status.DATA_TRANSFER_ERROR


def test_transfers_are_bounded(rig: Any) -> None:
    assert rig.do(Io.READ, 1, slba=0, cdw=nlb(256), length=128 << 10).status == 0
    assert rig.do(Io.READ, 1, slba=0, cdw=nlb(257), length=257 << 9).code == Status.INVALID_FIELD


def test_unknown_opcodes_and_fused_commands(rig: Any) -> None:
    for opcode in sorted({*range(256)} - {int(each) for each in Io}):
        answer = rig.do(opcode, 1)
        assert answer.code == Status.INVALID_OPCODE and answer.dnr
    assert rig.do(Io.COMPARE, 1, slba=0, cdw=nlb(1), length=512, flags=1).code == Status.INVALID_FIELD


def test_flush(rig: Any) -> None:
    assert rig.do(Io.FLUSH, 1).status == 0
    assert rig.do(Io.FLUSH, BROADCAST).status == 0
    assert rig.do(Io.FLUSH, 2).code == Status.INVALID_FIELD


def test_flush_makes_durable(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(write_cache=1 << 20)
    write(rig, 0, b"a" * 4096)
    rig.do(Io.FLUSH, 1)
    write(rig, 8, b"b" * 4096)
    write(rig, 16, b"c" * 4096, FUA)
    rig.subsystem.power_loss(rig.clock.now_ns)
    assert [read(rig, slba, 1).data[:1] for slba in (0, 8, 16)] == [b"a", b"\0", b"c"]
    assert rig.said


def test_compare(rig: Any) -> None:
    write(rig, 3, b"q" * 1024)
    assert rig.do(Io.COMPARE, 1, slba=3, cdw=nlb(2), data=b"q" * 1024).status == 0
    answer = rig.do(Io.COMPARE, 1, slba=3, cdw=nlb(2), data=b"q" * 1023 + b"r")
    assert answer.code == Status.COMPARE_FAILURE and answer.dnr


@pytest.mark.parametrize("deallocate", [False, True])
def test_write_zeroes(rig: Any, deallocate: bool) -> None:
    write(rig, 0, b"x" * 8192)
    answer = rig.do(Io.WRITE_ZEROES, 1, slba=0, cdw=nlb(8, deallocate << 25))
    assert answer.status == 0
    assert read(rig, 0, 16).data == bytes(4096) + b"x" * 4096
    used = rig.subsystem.used_blocks(rig.namespace)
    assert used == (8 if deallocate else 16)


def test_write_zeroes_takes_as_much_as_it_can_say(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(size=64 << 20)
    rig.namespace.size_bytes = 40 << 20
    rig.namespace.refresh()
    assert rig.do(Io.WRITE_ZEROES, 1, slba=0, cdw=nlb(65536)).status == 0


RANGE = struct.Struct("<IIQ")


def manage(rig: Any, *ranges: tuple[int, int], attribute: int = 4, padded: int = 0) -> Any:
    data = b"".join(RANGE.pack(0, blocks, slba) for slba, blocks in ranges)
    return rig.do(Io.DSM, 1, cdw={10: len(ranges) - 1, 11: attribute}, data=data.ljust(padded, b"\xff"))


def test_deallocate(rig: Any) -> None:
    write(rig, 0, b"x" * 16384)
    assert manage(rig, (0, 8), (16, 8), (0, 0)).status == 0
    assert read(rig, 0, 32).data == (bytes(4096) + b"x" * 4096) * 2
    assert manage(rig, (8, 8), attribute=3).status == 0, "hints"
    assert read(rig, 8, 8).data == b"x" * 4096
    assert manage(rig, (8, 8), padded=4096).status == 0, "Linux always sends 4096 bytes"
    assert read(rig, 8, 8).data == bytes(4096)


def test_deallocate_all_or_nothing(rig: Any) -> None:
    write(rig, 0, b"x" * 4096)
    answer = manage(rig, (0, 8), (rig.namespace.blocks - 1, 2))
    assert answer.code == Status.LBA_OUT_OF_RANGE
    assert read(rig, 0, 8).data == b"x" * 4096
    assert manage(rig, *[(0, 1)] * 256).status == 0
    answer = rig.do(Io.DSM, 1, cdw={10: 255, 11: 4}, data=bytes(255 * 16))
    assert answer.code == Status.SGL_LENGTH_INVALID


def test_uncorrectable_blocks(rig: Any) -> None:
    write(rig, 0, b"x" * 4096)
    assert rig.do(Io.WRITE_UNCORRECTABLE, 1, slba=2, cdw=nlb(2)).status == 0
    assert read(rig, 0, 2).status == 0
    answer = read(rig, 0, 3)
    assert answer.code == Status.READ_ERROR and answer.status & MORE
    assert rig.do(Io.VERIFY, 1, slba=3, cdw=nlb(1)).code == Status.READ_ERROR
    assert rig.do(Io.VERIFY, 1, slba=4, cdw=nlb(4)).status == 0
    write(rig, 2, b"y" * 1024)
    assert read(rig, 0, 8).data == b"x" * 1024 + b"y" * 1024 + b"x" * 2048
    assert rig.medium.smart(0).media_errors >= 2


def test_latency_of_the_medium(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(medium="simple", read_ns=80_000, bandwidth=0)
    queue, tag = rig.start(Io.READ, 1, slba=0, cdw=nlb(1), length=512)
    rig.clock.advance(79_999)
    assert tag not in queue.posted
    rig.clock.advance(1)
    assert queue.posted[tag].status == 0
    assert sum(rig.subsystem.counters.histogram().values()) == 1


def test_extra_latency_comes_on_top(rig: Any) -> None:
    rig.subsystem.set_latency(1000)
    queue, tag = rig.start(Io.READ, 1, slba=0, cdw=nlb(1), length=512)
    assert not queue.posted
    rig.clock.advance(1000)
    assert queue.posted[tag].status == 0


# --- faults --------------------------------------------------------------------------------------------


def test_a_fault_with_a_status(rig: Any) -> None:
    rig.faults.add("opcode=read lba=10-20 action=status status=0x281 dnr=1 count=1")
    assert read(rig, 0, 8).status == 0
    answer = read(rig, 16, 1)
    assert answer.code == 0x281 and answer.dnr and answer.status & MORE
    assert answer.status >> CRD_SHIFT & 3 == 0
    assert read(rig, 16, 1).status == 0, "once"


def test_a_fault_in_one_of_several_ranges(rig: Any) -> None:
    rig.faults.add("opcode=dsm lba=100-200 action=status status=media-error")
    assert manage(rig, (0, 100), (201, 8), (150, 0)).status == 0
    assert manage(rig, (0, 8), (40, 61)).code == Status.READ_ERROR
    assert manage(rig, (200, 1)).code == Status.READ_ERROR
    assert rig.do(Io.DSM, 1, cdw={10: 7, 11: 4}, data=bytes(16)).code == Status.SGL_LENGTH_INVALID
    assert rig.faults.counters() == {1: (2, 2)}


def test_a_fault_without_dnr(rig: Any) -> None:
    rig.faults.add("opcode=write action=status status=0x280 count=1")
    assert not write(rig, 0, bytes(512)).status & DNR


def test_a_delay_and_a_drop_that_is_aborted(rig: Any) -> None:
    rig.faults.add("opcode=read lba=0 action=delay delay_ns=5us")
    rig.faults.add("opcode=read lba=1 action=drop")
    queue, slow = rig.start(Io.READ, 1, slba=0, cdw=nlb(1), length=512)
    _, lost = rig.start(Io.READ, 1, slba=1, cdw=nlb(1), length=512)
    rig.clock.advance(5_000)
    assert queue.posted[slow].status == 0
    rig.clock.advance(10**12)
    assert lost not in queue.posted
    assert rig.admin(0x08, cdw={10: 1 | lost << 16}).dw0 == 0
    assert queue.posted[lost].status & 0x7FF == Status.ABORTED
    assert rig.admin(0x08, cdw={10: 1 | lost << 16}).dw0 == 1, "there is nothing to abort any more"


def test_corruption_and_truncation(rig: Any) -> None:
    write(rig, 0, b"x" * 1024)
    rig.faults.add("opcode=read action=corrupt count=1")
    wrong = read(rig, 0, 2).data
    assert wrong != b"x" * 1024 and read(rig, 0, 2).data == b"x" * 1024
    rig.faults.add("opcode=read action=truncate keep_bytes=512 count=1")
    assert read(rig, 0, 2).data == b"x" * 512 + b"\xee" * 512
    rig.faults.add("opcode=write action=truncate keep_bytes=700 count=1")
    assert write(rig, 0, b"z" * 1024).status == 0
    assert read(rig, 0, 2).data == b"z" * 512 + b"x" * 512
    rig.faults.add("opcode=write action=corrupt count=1")
    data = b"k" * 512
    write(rig, 8, data)
    assert bytes(rig.memory[:512]) == data, "the host's own memory stays as it is"
    assert read(rig, 8, 1).data != data


def test_power_loss_by_a_rule(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(medium="simple", write_cache=1 << 20)
    assert write(rig, 0, b"a" * 4096).status == 0
    queue, waiting = rig.start(Io.READ, 1, slba=0, cdw=nlb(1), length=512)
    rig.faults.add("opcode=write action=powerloss count=1")
    assert write(rig, 8, b"b" * 4096).code == Status.POWER_LOSS
    assert queue.posted[waiting].status & 0x7FF == Status.POWER_LOSS
    assert read(rig, 0, 8).data == bytes(4096)
