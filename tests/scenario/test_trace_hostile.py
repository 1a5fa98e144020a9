"""Files that are damaged, mistaken or made to hurt."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uxk.errors import ConfigError
from uxk.scenario.trace import FORMATS, TraceOp, read_trace

GOOD = "".join(f"3,W,{i * 4096},4096,{i}\n" for i in range(1000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace"


BAD_LINES = {
    "3,W,0,-4096,5": "length '-4096': expected a whole number from 0",
    "3,W,-1,4096,5": "offset '-1': expected a whole number from 0",
    "3,W,0,nan,5": "length 'nan': expected a whole number from 0",
    "3,W,0,4096,1e9": "timestamp '1e9': expected a whole number from 0",
    "3,W,0,4096": "4 fields in '3,W,0,4096': expected 5: device_id,opcode,offset,length,timestamp",
    "3,X,0,4096,5": "opcode 'x': expected r, w",
    "x,W,0,4096,5": "device_id 'x': expected a whole number from 0",
    "3,W,99999999999999999999,4096,5": "offset '99999999999999999999': more than 2^63-1",
    "3,W,9223372036854775807,4096,5": "ends at byte 9223372036854779903: beyond 2^63-1",
    "3,W,0,2147483648,5": "size of 2147483648 bytes: more than 1073741824",
    "3,W,0,4096,9000000000000000000": "time 9000000000000000000: centuries from the first request's 0",
    "3,W,0,4096,\x00": "timestamp '\\x00': expected a whole number from 0",
    "3,W,0," + "9" * 5000 + ",5": "length '9999999999999999999999999999999999999999'...: more than 2^63-1",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_malformed_line_is_told_and_left_out(line: str, path: Path) -> None:
    path.write_text(GOOD + line + "\n\n" + GOOD)
    trace = read_trace(path, "alibaba")
    assert trace.malformed_lines == ((1001, BAD_LINES[line]),)
    assert (len(trace), trace.malformed, trace.skipped, trace.lines) == (2000, 1, 1, 2002)
    assert trace.offset_bytes.tolist() == [i * 4096 for i in range(1000)] * 2
    with pytest.raises(ConfigError) as caught:
        read_trace(path, "alibaba", tolerate=0)
    assert f"{path}: line 1001: {BAD_LINES[line]}" in str(caught.value)


def test_tolerance(path: Path) -> None:
    path.write_text(GOOD + "no\n" * 100)
    trace = read_trace(path, "alibaba")
    assert (trace.malformed, len(trace.malformed_lines)) == (100, 20)
    path.write_text(GOOD + "no\n" * 101)
    with pytest.raises(ConfigError, match=r"line 1001: .*\(101 of 1101 lines malformed, at most 100 tolerated\)"):
        read_trace(path, "alibaba")
    assert read_trace(path, "alibaba", tolerate=101).malformed == 101
    path.write_text(GOOD * 20 + "no\n" * 150)
    assert read_trace(path, "alibaba").malformed == 150  # less than one in a hundred
    path.write_text("no\n" * 6 + "3,W,0,4096,5\n" * 5)
    with pytest.raises(ConfigError, match="6 of 11 lines malformed, at most 5 tolerated"):
        read_trace(path, "alibaba")


@pytest.mark.parametrize("option", [{"tolerate": -1}, {"limit": 0}, {"page_bytes": 0}], ids=str)
def test_bad_option(option: dict[str, int], path: Path) -> None:
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=next(iter(option))):
        read_trace(path, "alibaba", **option)  # type: ignore[arg-type]


def test_unknown_format(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'alibabba' \(did you mean 'alibaba'\?\): expected msr, systor"):
        read_trace(path, "alibabba")


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_in_it(format: str, path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=str(path)):
        read_trace(path, format)
    path.write_bytes(b"\n\n")
    with pytest.raises(ConfigError, match=str(path)):
        read_trace(path, format)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(path, format)
    with pytest.raises(ConfigError, match="no regular file"):
        read_trace(path.parent, format)


def test_header_of_other_columns(path: Path) -> None:
    path.write_text("device_id,opcode,length,offset,timestamp\n" + GOOD)
    with pytest.raises(
        ConfigError, match="line 1: columns 'device_id,opcode,length,offset,timestamp': expected device_id,"
    ):
        read_trace(path, "alibaba")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_truncated_or_corrupt_packing(pack: Callable[[bytes], bytes], path: Path) -> None:
    packed = pack(GOOD.encode())
    for size in (len(packed) - 1, len(packed) // 2, 8):
        path.write_bytes(packed[:size])
        with pytest.raises(ConfigError, match="ends in the middle, after"):
            read_trace(path, "alibaba")
    path.write_bytes(packed[: len(packed) // 2] + b"\xff" * 50 + packed[len(packed) // 2 + 50 :])
    with pytest.raises(ConfigError, match=str(path)):
        read_trace(path, "alibaba")


def test_bombs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(ConfigError, match="a line of more than"):
        read_trace(path, "alibaba")
    monkeypatch.setattr("uxk.scenario.trace.files.RATIO_FREE_BYTES", 1 << 20)
    monkeypatch.setattr("uxk.scenario.trace.files.BLOCK_BYTES", 1 << 20)
    path.write_bytes(lzma.compress(b"\n" * (1 << 24)))
    with pytest.raises(ConfigError, match="at most 1000 times as many are believed"):
        read_trace(path, "alibaba")
    monkeypatch.setattr("uxk.scenario.trace.files.TEXT_MAX_BYTES", 1 << 12)
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="unpacks to more than 4096 bytes"):
        read_trace(path, "alibaba")


def test_too_many_requests_or_devices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("".join(f"{i},W,0,4096,{i}\n" for i in range(50)))
    monkeypatch.setattr("uxk.scenario.trace.collect.REQUESTS_MAX", 49)
    with pytest.raises(ConfigError, match="more than 49 requests: pass a limit"):
        read_trace(path, "alibaba")
    monkeypatch.setattr("uxk.scenario.trace.collect.DEVICES_MAX", 9)
    with pytest.raises(ConfigError, match="more than 9 devices"):
        read_trace(path, "alibaba")


def test_foreign_packing(path: Path) -> None:
    path.write_bytes(b"\x28\xb5\x2f\xfd....")
    with pytest.raises(ConfigError, match="packed with zstd: unpack it first"):
        read_trace(path, "msr")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("2018100100")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"1,2,3"))
    path.write_bytes(packed.getvalue())
    with pytest.raises(ConfigError, match="a tar archive"):
        read_trace(path, "tencent")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), format=st.sampled_from(FORMATS), packed=st.booleans())
def test_any_bytes_are_a_trace_or_a_config_error(data: bytes, format: str, packed: bool, path: Path) -> None:
    path.write_bytes(gzip.compress(data) if packed else data)
    complaint = ""
    try:
        trace = read_trace(path, format)
    except ConfigError as exc:
        complaint = str(exc)
    assert str(path) in complaint if complaint else len(trace)


# --- binary ---------------------------------------------------------------------------------------------


def srt_record(s: int, us: int, size: int, sector: int, flags: int, *, kind: int = 0x40001, length: int = 56) -> bytes:
    words = (length, kind, s, us, 1, 2, size, sector, 0x8000107, 4, 0, flags, 0, 1, 0)
    return struct.pack(f">{length // 4}i", *words[: length // 4])


SRT_HEADER = b"$$TR_IOREC-1.3 (made here)\nversion = 1.3;\n\x0c"


def test_srt(path: Path) -> None:
    records = [
        srt_record(0, 5, 4096, 16, 26), srt_record(1, 0, 1024, 2, 27),
        srt_record(1, 5, 512, 3, 0, kind=0x10001, length=52),
        srt_record(2, 0, 1024, 2, 0, kind=0x40002, length=60), srt_record(3, 0, -1, 2, 26),
        srt_record(4, 0, 1024, 8, 26),
    ]  # fmt: skip
    path.write_bytes(gzip.compress(SRT_HEADER + b"".join(records)))
    trace = read_trace(path, "disksim-hp")
    assert trace.op.tolist() == [TraceOp.WRITE, TraceOp.READ, TraceOp.WRITE, TraceOp.WRITE]
    assert trace.time_ns.tolist() == [0, 999_995_000, 1_000_000_000, 3_999_995_000]
    assert trace.offset_bytes.tolist() == [8192, 1024, 1536, 4096]
    assert (trace.devices, trace.skipped, trace.malformed) == (("1",), 1, 1)
    assert trace.malformed_lines[0].reason.startswith("sector 2, -1 bytes")
    path.write_bytes(SRT_HEADER + b"".join(records)[:-3])
    assert read_trace(path, "disksim-hp").malformed_lines[-1] == (6, "53 bytes at the end: no whole record")
    path.write_bytes(SRT_HEADER + records[0] + b"junkjunk")
    with pytest.raises(ConfigError, match=r"record 2 is 1786080875 bytes long: expected 52, 56, 60"):
        read_trace(path, "disksim-hp")


def npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)  # type: ignore[arg-type]
    return out.getvalue()


@given(
    pages=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50), kind=st.sampled_from(["u4", "i8", ">u8"])
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_round_trip(pages: list[int], kind: str, path: Path) -> None:
    path.write_bytes(lzma.compress(npy(np.array(pages, kind))))
    trace = read_trace(path, "pages", page_bytes=1024)
    assert trace.offset_bytes.tolist() == [page * 1024 for page in pages]
    assert set(trace.length_bytes.tolist()) == {1024}
    assert set(trace.op.tolist()) == {TraceOp.WRITE}
    assert read_trace(path, "pages", limit=1).offset_bytes.tolist() == [pages[0] * 4096]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([{}, 1], object)), "type object: expected whole numbers"),
        (npy(np.zeros(3)), "type float64: expected whole numbers"),
        (npy(np.zeros((3, 3), np.int64)), r"shape \(3, 3\): expected one dimension"),
        (npy(np.arange(3))[:-1], "ends 1 page numbers early"),
        (npy(np.arange(3)).replace(b"(3,)", b"(9999999999999,)"), "no .npy file|page numbers, more than"),
        (npy(np.arange(3)).replace(b"'descr'", b"__import"), "no .npy file"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "no .npy file"),
        (npy(np.array([-1, -5])), "page number -1: expected 0 to"),
        (npy(np.array([1 << 63], np.uint64)), "page number 9223372036854775808: expected 0 to 22517998136"),
    ],
)
def test_bad_npy(data: bytes, reason: str, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        read_trace(path, "pages")


def test_npy_that_claims_too_much(path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)})
    path.write_bytes(out.getvalue())
    with pytest.raises(ConfigError, match="1125899906842624 page numbers, more than"):
        read_trace(path, "pages")
