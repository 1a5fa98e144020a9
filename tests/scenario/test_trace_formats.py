"""Requests written in every format and read back."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.errors import ConfigError
from uxk.scenario.trace import FORMATS, Trace, TraceOp, guess_format, read_trace
from uxk.scenario.trace.lines import SKIP
from uxk.scenario.trace.model import REQUEST_MAX_BYTES, Row
from uxk.scenario.trace.read import LINE_FORMATS

R, W, D, F = TraceOp
Request = tuple[int, TraceOp, int, int, int]
"""Microseconds, operation, sector, sectors, device."""


def write_msr(requests: Sequence[Request]) -> str:
    kind = {R: "Read", W: "Write"}
    return "".join(
        f"{128166372003061629 + t * 10},usr,{d},{kind[op]},{o * 512},{n * 512},77\n" for t, op, o, n, d in requests
    )


def write_systor(requests: Sequence[Request]) -> str:
    lines = (
        f"{1455592511 + t // 10**6}.{t % 10**6:06d},,{op.name[0]},{d},{o * 512},{n * 512}\n"
        for t, op, o, n, d in requests
    )
    return "Timestamp,Response,IOType,LUN,Offset,Size\n" + "".join(lines)


def write_alibaba(requests: Sequence[Request]) -> str:
    return "".join(f"{d},{op.name[0]},{o * 512},{n * 512},{1577808000000000 + t}\n" for t, op, o, n, d in requests)


def write_tencent(requests: Sequence[Request]) -> str:
    return "".join(f"{1538323200 + t},{o},{n},{int(op)},{d}\n" for t, op, o, n, d in requests)


def write_vscsi(requests: Sequence[Request]) -> str:
    code = {R: "28", W: "2A", D: "0x42", F: "35"}
    return "version,time,op,size,lbn\n" + "".join(f"2,{t},{code[op]},{n * 512},{o}\n" for t, op, o, n, _ in requests)


def write_mqsim(requests: Sequence[Request]) -> str:
    return "".join(f"{t * 1000} {d} {o} {n} {int(op is R)}\n" for t, op, o, n, d in requests)


def write_blkparse(requests: Sequence[Request]) -> str:
    rwbs = {R: "RA", W: "WSM", D: "DS", F: "FF"}
    text = ""
    for i, (t, op, o, n, d) in enumerate(requests):
        seconds = f"{t // 10**6}.{t % 10**6:06d}000"
        where = "" if op is F else f"{o} + {n} "
        text += f"  8,{d:<3d} 1 {i + 1:8d} {seconds:>14s}  697  D {rwbs[op]:>3s} {where}[a b]\n"
        text += f"  8,{d:<3d} 1 {i + 1:8d} {seconds:>14s}     0  C {rwbs[op]:>3s} {where}[0]\n"
    return text + "CPU0 (8,0):\n Reads Queued:     1,   4KiB\t Writes Queued:     2,   8KiB\nThroughput (R/W): 0KiB/s\n"


def write_fio3(requests: Sequence[Request]) -> str:
    act = {R: "read", W: "write", D: "trim", F: "datasync"}
    lines = (f"{t} /dev/x{d} {act[op]} {o * 512} {n * 512}\n" for t, op, o, n, d in requests)
    return "fio version 3 iolog\n0 /dev/x0 add\n0 /dev/x0 open\n" + "".join(lines) + "9 /dev/x0 close\n"


def write_fio2(requests: Sequence[Request]) -> str:
    act = {R: "read", W: "write", D: "trim", F: "sync"}
    text, now = "fio version 2 iolog\n/dev/x0 add\n/dev/x0 open\n", 0
    for t, op, o, n, d in requests:
        text += f"/dev/x0 wait {t - now} 0\n" * (t > now) + f"/dev/x{d} {act[op]} {o * 512} {n * 512}\n"
        now = t
    return text


WRITERS: dict[str, tuple[str, Callable[[Sequence[Request]], str], int, tuple[TraceOp, ...], bool]] = {
    "msr": ("msr", write_msr, 1000, (R, W), True),
    "systor": ("systor", write_systor, 1000, (R, W), True),
    "alibaba": ("alibaba", write_alibaba, 1000, (R, W), True),
    "tencent": ("tencent", write_tencent, 10**9, (R, W), True),
    "vscsi": ("vscsi", write_vscsi, 1000, (R, W, D, F), False),
    "mqsim": ("mqsim", write_mqsim, 1000, (R, W), True),
    "blkparse": ("blkparse", write_blkparse, 1000, (R, W, D, F), True),
    "fio2": ("fio", write_fio2, 1000, (R, W, D, F), True),
    "fio3": ("fio", write_fio3, 1000, (R, W, D, F), True),
}
"""Format, writer, nanoseconds of its unit of time, operations, whether it tells devices."""


@st.composite
def request_lists(draw: st.DrawFn, ops: tuple[TraceOp, ...], max_size: int = 40) -> list[Request]:
    gaps = st.integers(0, 10**6)
    sector = st.one_of(st.integers(0, 4096), st.integers(0, 1 << 44))
    one = st.tuples(gaps, st.sampled_from(ops), sector, st.integers(1, 2048), st.integers(0, 3))
    rows = draw(st.lists(one, min_size=1, max_size=max_size))
    times = np.cumsum([row[0] for row in rows]).tolist()
    return [(t, *row[1:]) for t, row in zip(times, rows, strict=True)]


def compare(trace: Trace, requests: Sequence[Request], unit_ns: int, devices: bool) -> None:
    assert trace.time_ns.tolist() == [(r[0] - requests[0][0]) * unit_ns for r in requests]
    assert trace.op.tolist() == [int(r[1]) for r in requests]
    moved = [r for r in requests if r[1] is not F]
    has = trace.op != F
    assert trace.offset_bytes[has].tolist() == [r[2] * 512 for r in moved]
    assert trace.length_bytes[has].tolist() == [r[3] * 512 for r in moved]
    if devices:
        assert [
            trace.devices[i].removeprefix("/dev/x").removeprefix("8,").removeprefix("usr_") for i in trace.device
        ] == [str(r[4]) for r in requests]
    assert trace.malformed == 0
    assert trace.lines == len(requests) + trace.skipped


@pytest.mark.parametrize("which", WRITERS)
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip(which: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    name, write, unit_ns, ops, devices = WRITERS[which]
    requests = data.draw(request_lists(ops))
    path = tmp_path_factory.getbasetemp() / f"{which}.trace"
    text = write(requests)
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    path.write_bytes(text.replace("\n", newline).encode())
    compare(read_trace(path, name), requests, unit_ns, devices)


@pytest.mark.parametrize("which", WRITERS)
@settings(max_examples=25)
@given(data=st.data())
def test_fast_and_slow_agree(which: str, data: st.DataObject) -> None:
    """A line that the fast way takes is one that the slow way takes alike, however the text was damaged."""
    name, write, _, ops, _ = WRITERS[which]
    text = bytearray(write(data.draw(request_lists(ops, max_size=6))).encode())
    marks = st.sampled_from(b"0129aAbrRwWdDqQ,. +-\t\r\nxz")
    for place, mark in data.draw(st.lists(st.tuples(st.integers(0, len(text) - 1), marks), max_size=8)):
        text[place] = mark
    block = bytes(text) + b"\n"
    fast, slow = LINE_FORMATS[name](), LINE_FORMATS[name]()
    first = block.lstrip().split(b"\n", 1)[0].strip()
    if fast.check_first(first) or slow.check_first(first):
        return
    batch = fast.fast(block)
    rows: dict[int, Row | None] = {}
    for i, (start, end) in enumerate(zip(batch.line_start.tolist(), batch.line_end.tolist(), strict=True)):
        try:
            rows[i] = slow.slow(block[start:end])
        except ValueError:
            continue
    for k in np.flatnonzero(batch.good).tolist():
        i = int(batch.rows[k])
        assert i in rows, block
        if batch.op[k] == SKIP:
            assert rows[i] is None
        else:
            told = (
                batch.time[k],
                batch.op[k],
                batch.offset_bytes[k],
                batch.length_bytes[k],
                batch.devices[batch.device[k]],
            )
            assert rows[i] == told


@pytest.mark.parametrize("which", WRITERS)
def test_is_recognised(which: str, tmp_path: Path) -> None:
    name, write, _, ops, _ = WRITERS[which]
    path = tmp_path / "t"
    path.write_text(write([(i * 10, ops[i % 2], 8 * i, 8, 0) for i in range(20)]))
    assert guess_format(path) == name
    for other in FORMATS:
        if other != name:
            with pytest.raises(ConfigError, match=f"looks like format {name}"):
                read_trace(path, other)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_packed_by_magic_not_by_name(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    text = write_alibaba([(i, W, i * 8, 8, 0) for i in range(1000)]).encode()
    path = tmp_path / "t.csv"
    half = text.index(b"\n", len(text) // 2) + 1
    path.write_bytes(pack(text[:half]) + pack(text[half:]))  # streams may follow one another
    assert len(read_trace(path, "alibaba")) == 1000
    assert guess_format(path) == "alibaba"


def test_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = [(i, W if i % 3 else R, i * 8, 8, i % 2) for i in range(500)]
    path = tmp_path / "t"
    path.write_text(write_msr(requests))
    monkeypatch.setattr("uxk.scenario.trace.files.BLOCK_BYTES", 101)
    monkeypatch.setattr("uxk.scenario.trace.read.LINE_MAX_BYTES", 50)
    compare(read_trace(path, "msr"), requests, 1000, True)


def test_device_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(write_alibaba([(i, W, i * 8, 8, i % 3) for i in range(30)]))
    trace = read_trace(path, "alibaba", device="1", limit=4)
    assert trace.devices == ("1",)
    assert trace.offset_bytes.tolist() == [(1 + 3 * i) * 4096 for i in range(4)]
    assert trace.time_ns.tolist() == [0, 3000, 6000, 9000]
    with pytest.raises(ConfigError, match=r"no request of device '11' \(did you mean '1'\?\): it has 0, 1, 2"):
        read_trace(path, "alibaba", device="11")


def test_blkparse_prefers_issue_events(tmp_path: Path) -> None:
    path = tmp_path / "t"
    queued = (
        "8,0 1 1 0.000000000 1 Q W 0 + 8 [a]\n8,0 1 2 0.000001000 1 Q FWS [a]\n8,0 1 3 0.000002000 1 Q W 8 + 8 [a]\n"
    )
    path.write_text(queued)
    trace = read_trace(path, "blkparse")
    assert trace.op.tolist() == [W, F, W]
    assert trace.time_ns.tolist() == [0, 1000, 2000]
    path.write_text(
        queued
        + "8,0 1 4 0.000003000 1 D W 0 + 16 [a]\n8,0 1 5 0.000004000 1 D D 64 + 4194304 [a]\n"
        + "8,0 1 6 0.000005000 1 D WZ 0 + 8 [a]\n8,0 1 7 0.000006000 1 M W 0 + 8 [a]\n8,0 1 8 0.1 1 P N [a]\n"
    )
    trace = read_trace(path, "blkparse")
    assert trace.op.tolist() == [W, D, D]
    assert trace.length_bytes[0] == 8192
    assert trace.time_ns.tolist() == [0, 1000, 2000]
    assert trace.counts()["skipped"] == 5
    assert len(read_trace(path, "blkparse", limit=1)) == 1


def test_vscsi_commands(tmp_path: Path) -> None:
    path = tmp_path / "t"
    codes = ["2a", "0a", "8A", "aa", "28", "8", "42", "35", "12", "a0"]
    path.write_text("".join(f"1,{i},{code},512,{i}\n" for i, code in enumerate(codes)))
    assert read_trace(path, "vscsi").op.tolist() == [W, W, W, W, R, R, D, F]
    path.write_text("".join(f"1,{i},{code},512,{i}\n" for i, code in enumerate(["42", "40", "42"])))
    with pytest.raises(ConfigError, match="commands in decimal"):
        read_trace(path, "vscsi")


def test_largest_values(tmp_path: Path) -> None:
    path = tmp_path / "t"
    last = (1 << 63) - 1
    path.write_text(
        f"0,W,{last - 4096},4096,5\n0,W,0,{REQUEST_MAX_BYTES},5\n0,W,{last - 4095},4096,5\n0,W,{last + 1},1,5\n"
    )
    trace = read_trace(path, "alibaba")
    assert trace.offset_bytes.tolist() == [last - 4096, 0]
    assert [line for line, _ in trace.malformed_lines] == [3, 4]
    assert "beyond 2^63-1" in trace.malformed_lines[0].reason
    assert "more than 2^63-1" in trace.malformed_lines[1].reason
