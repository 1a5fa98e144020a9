"""The event stream, read by Debian's blkparse and btt, and held against the disk's own counters."""

from __future__ import annotations

import errno
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from uxk.subsystems.blk import trace as t
from uxk.subsystems.blk.request import DISCARD, FLUSH, READ, WRITE
from uxk.uapi.blk import IoFlag
from uxk.uapi.entries import Op, Request

KB = 1 << 10
MS = 1_000_000
needs_blktrace = pytest.mark.skipif(
    not (shutil.which("blkparse") and shutil.which("btt")), reason="blkparse and btt (package blktrace) are not here"
)


def records(stream: bytes) -> list[tuple[Any, ...]]:
    """The events of one stream, without what follows them."""
    found, at = [], 0
    while at < len(stream):
        record = t.RECORD.unpack_from(stream, at)
        found.append(record)
        at += t.RECORD.size + record[-1]
    return found


def test_a_record_is_laid_out_as_the_header_says() -> None:
    assert t.RECORD.size == 48
    tracer = t.Tracer("d0", 3, 2)
    tracer.start(5_000_000_007)
    tracer.note(11, t.COMPLETE, WRITE, int(IoFlag.FUA | IoFlag.SYNC), 8192, 4096, 1, 9, "writer", errno.EIO)
    first, second = tracer.drain(0), tracer.drain(1)
    assert struct.unpack_from("<II", first, 48) == (5, 7)
    named, completed = records(second)
    assert second[48:64] == b"writer".ljust(16, b"\0")
    assert completed[:5] == (0x65617407, 2, 11, 16, 4096)
    assert completed[5] == 8 | (1 << 1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 15) << 16
    assert completed[6:] == (9, 259 << 20 | 3, 1, errno.EIO, 0)
    assert named[1] == 1


@pytest.mark.parametrize(
    ("op", "flags", "bits"),
    [(READ, 0, 1 << 0), (DISCARD, 0, 1 << 1 | 1 << 13), (FLUSH, 0, 1 << 1 | 1 << 2), (READ, 32, 1 | 1 << 11)],
)
def test_an_action_tells_the_sort_of_request(op: int, flags: int, bits: int) -> None:
    assert t.action_word(t.SPLIT, op, flags) == t.SPLIT | bits << 16


def test_what_nobody_fetches_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "BUFFER_BYTES", 48 * 10)
    tracer = t.Tracer("d0", 1, 1)
    tracer.start(0)
    for number in range(20):
        tracer.note(number, t.QUEUE, READ, 0, 0, 512, 0, 1)
    kept = records(tracer.drain(0, 1 << 20))
    assert tracer.dropped + len(kept) == 22  # the start, the client's name, and these
    assert [record[1] for record in kept] == list(range(1, len(kept) + 1)), "the numbers of one CPU have no gap"


def test_the_pipe_gives_the_same_until_it_is_told_to_go_on() -> None:
    tracer = t.Tracer("d0", 1, 3)
    tracer.start(0)
    for number in range(30):
        tracer.note(number, t.QUEUE, READ, 0, 0, 512, number % 3, 1)
    first = tracer.peek(200)
    assert tracer.peek(200) == first
    assert 0 < len(first[2]) <= 200
    tracer.taken(first[0] + 1)
    assert tracer.peek(200) == first
    parts = []
    while (chunk := tracer.peek(200))[2]:
        parts.append((chunk[1], chunk[2]))
        tracer.taken(chunk[0])
    assert sum(len(records(events)) for _, events in parts) == 32
    assert [cpu for cpu, _ in parts] == sorted(cpu for cpu, _ in parts)


async def traffic(it: Any) -> None:
    """Merges, splits, flushes, discards, an error, and two clients on two CPUs, in 30 ms."""
    first, second = it.client("first"), it.client("second")
    it.medium.latency_ns = 2 * MS
    for step in range(5):
        first.submit(*[Request(0, Op.WRITE, b"m" * 4096, (step * 8 + n) * 4096, 4096) for n in range(8)])
        second.submit(*[Request(0, Op.READ, b"", (40 + n * 3) * 4096, 4096) for n in range(3)])
        await it.run()
    first.submit(Request(0, Op.READ, b"", 0, 160 * KB))
    second.submit(Request(0, Op.WRITE, b"f" * 512, 512, 512, 0, 0, 0, 0, int(IoFlag.FUA)))
    second.submit(Request(0, Op.FLUSH))
    await it.run()
    it.medium.judge = lambda request: errno.EIO
    first.submit(Request(0, Op.DISCARD, b"", 0, 8192))
    await it.run()


async def recorded(lab: Any, folder: Path, scheduler: str) -> tuple[Path, list[int]]:
    """The files of a run, and the disk's counters after it."""
    async with lab(depth=4) as it:
        it.set("scheduler", scheduler)
        it.kernel.sysfs.write(f"{it.path}/trace/enable", "1")
        await traffic(it)
        it.kernel.sysfs.write(f"{it.path}/trace/enable", "0")
        for name, data in it.disk.trace.files().items():
            (folder / name).write_bytes(data)
        assert it.disk.trace.dropped == 0
        it.check_empty()
        return folder / "blkram0", it.stat()


def tool(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(text: str, name: str) -> list[int]:
    """Numbers of a line of blkparse's summary, ``Reads Queued: 20, 80KiB  Writes Queued: ...``."""
    return [int(number) for number in re.findall(rf"{name}:\s+(\d+)", text.partition("Total (")[2])]


@needs_blktrace
@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
async def test_blkparse_agrees_with_the_counters(lab: Any, tmp_path: Path, scheduler: str) -> None:
    base, stat = await recorded(lab, tmp_path, scheduler)
    text = tool("blkparse", "-i", base.name, cwd=tmp_path)
    reads, reads_merged, read_sectors = stat[0], stat[1], stat[2]
    writes, writes_merged = stat[4], stat[5]
    discards, flushes = stat[11], stat[15]
    split_reads = 3  # 160 KiB in pieces of 64
    assert figure(text, "Reads Queued") == [reads + reads_merged - (split_reads - 1)]
    assert figure(text, "Read Merges") == [reads_merged]
    assert figure(text, "Write Merges") == [writes_merged] == [35]
    assert figure(text, "Reads Completed") == [reads]
    issued = [line for line in text.splitlines() if re.search(r"\s+D\s+[RWFD]", line)]
    assert len(issued) == reads + writes + discards + flushes - 1  # an empty flush is a write that is never issued
    assert figure(text, "Read Dispatches") == [reads]
    done = sum(int(line.split(" + ")[1].split()[0]) for line in text.splitlines() if re.search(r"\s+C\s+R\s", line))
    assert done == read_sectors
    assert "first" in text and "second" in text
    assert re.search(r"\s+X\s+R 0 / 128", text), "the split is told with the sector where it goes on"
    assert re.search(r"\s+C\s+D\w? 0 \+ 16 \[5\]", text), "an error has its errno"
    assert "Skips: 0" in text or "Skips" not in text


@needs_blktrace
async def test_btt_finds_every_request(lab: Any, tmp_path: Path) -> None:
    base, stat = await recorded(lab, tmp_path, "mq-deadline")
    tool("blkparse", "-i", base.name, "-d", "all.bin", "-O", cwd=tmp_path)
    text = tool("btt", "-i", "all.bin", cwd=tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("D2C"))
    assert int(row.split()[-1]) >= stat[0] + stat[4] - 1
    assert "0.002" in row, "the driver takes two milliseconds"
    merged = next(line for line in text.splitlines() if re.match(r"\s*\(259,\s*1\)\s*\|", line))
    assert merged


@needs_blktrace
async def test_recording_changes_nothing_that_can_be_seen(lab: Any) -> None:
    seen = []
    for traced in (False, True):
        async with lab(depth=4) as it:
            if traced:
                it.kernel.sysfs.write(f"{it.path}/trace/enable", "1")
            await traffic(it)
            seen.append((it.medium.ops(), it.stat(), it.kernel.now_ns))
    assert seen[0] == seen[1]
