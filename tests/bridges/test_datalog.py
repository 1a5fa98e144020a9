"""The dataset log's files: what is written is read, and what is damaged is told, never guessed at."""

from __future__ import annotations

import errno
import importlib.util
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uxk.bridges.datalog import files, writer
from uxk.bridges.datalog import format as f
from uxk.bridges.datalog.pump import Pump
from uxk.bridges.datalog.reader import DataLog, with_extra
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.datalog.writer import LogWriter, Origin, Publication
from uxk.errors import ConfigError, InUse, UsageError

PROGRAM = Path(__file__).with_name("datalog_writer.py")
_spec = importlib.util.spec_from_file_location("datalog_writer", PROGRAM)
assert _spec is not None and _spec.loader is not None
_helper = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_helper)
DTYPE, SCHEMA, publication, rows_of = _helper.DTYPE, _helper.SCHEMA, _helper.publication, _helper.rows_of

ORIGIN = Origin(7, "virtual", "test", {"uxk": "1"})
SMALL = DataLogSettings(segment_bytes=1 << 16, max_bytes=1 << 20, sync="none")


def write(folder: Path, generations: range, setting: DataLogSettings = SMALL) -> LogWriter:
    with LogWriter(folder, ORIGIN, setting) as log:
        log.write([publication(each) for each in generations])
    return log


def generations(folder: Path, **how: Any) -> list[int]:
    """Which there are; each is checked row by row."""
    found = []
    for each in DataLog(folder).generations(**how):
        assert np.array_equal(each.rows, rows_of(each.generation))
        assert each.time_ns == each.generation * 10
        found.append(each.generation)
    return found


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.uxkd"))


# --- good days ---


def test_what_is_written_is_read_in_order_with_its_origin(tmp_path: Path) -> None:
    first = write(tmp_path, range(300))
    second = write(tmp_path, range(50))
    assert generations(tmp_path) == [*range(300), *range(50)]
    assert generations(tmp_path, run=2) == [*range(50)]
    scan = DataLog(tmp_path).scan()
    assert sum(len(batch.rows) for batch in scan) == first.counters.rows + second.counters.rows
    assert [run.head.run for run in scan.runs.values()] == [first.run, second.run]
    head = next(iter(scan.runs.values())).head
    assert (head.seed, head.clock, head.scenario, head.versions) == (7, "virtual", "test", {"uxk": "1"})
    assert not scan.problems
    data = segment_files(tmp_path)[-1].read_bytes()
    *_, end = f.frames(data, f.head_of(data, scan.segments).nonce)  # type: ignore[union-attr]
    assert isinstance(end, f.Frame)
    assert f.read_words(end.payload, f.End) == f.End("closed", end.sequence + 1, 0, 490)
    assert scan.segments == first.counters.segments + second.counters.segments > 2


def test_datasets_are_told_apart_and_rows_get_their_origin_as_columns(tmp_path: Path) -> None:
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([publication(each, name) for each in range(1, 20) for name in ("a", "b")])
    data = DataLog(tmp_path)["m0/b"]
    rows = data.rows()
    assert rows.dtype.names == ("uxk_run", "uxk_time_ns", "uxk_generation", "generation", "value")
    assert len(rows) == sum(len(rows_of(each)) for each in range(1, 20))
    assert np.array_equal(rows["uxk_generation"], rows["generation"])
    assert set(rows["uxk_run"]) == {1}
    with pytest.raises(UsageError, match=r"no dataset 'm0/c'.*m0/a, m0/b") as caught:
        DataLog(tmp_path)["m0/c"]
    assert caught.value.errno == errno.ENOENT


def test_a_column_of_the_datasets_own_is_kept_though_it_is_called_like_ours(tmp_path: Path) -> None:
    dtype = np.dtype([("uxk_run", "S2")])
    description = f.Description("s", "m", "d", (("uxk_run", "|S2"),), 4)
    with LogWriter(tmp_path, ORIGIN) as log:
        log.write([Publication(description, 2, 1, 1, 0, np.array([(b"x",)], dtype).tobytes())])
    assert DataLog(tmp_path)["m/d"].rows().tolist() == [(1, 1, b"x")]


def test_a_generation_larger_than_a_segment_is_put_together_again(tmp_path: Path) -> None:
    rows = np.zeros(40_000, DTYPE)
    rows["value"] = np.arange(40_000)
    big = publication(1)._replace(rows=rows.tobytes())
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([publication(0), big, publication(2)])
    found = list(DataLog(tmp_path).generations())
    assert [each.generation for each in found] == [0, 1, 2]
    assert np.array_equal(found[1].rows, rows)
    assert all(path.stat().st_size <= SMALL.segment_bytes for path in segment_files(tmp_path))
    segment_files(tmp_path)[2].unlink()  # one of its parts is gone: the others are no generation
    assert [each.generation for each in DataLog(tmp_path).generations(damaged=True)] == [0, 2]


def test_a_generation_in_many_parts_is_put_together_again(tmp_path: Path) -> None:
    head = f.Head(f.FORMAT, 1, 5, "00", 0, 0, "virtual", "", {})
    description, count = f.Description("s", "m", "d", (("x", "<u4"),), 1), 3000
    parts = f.frame(f.Kind.HEAD, 0, 0, [f.words(head)], 0)
    parts += f.frame(f.Kind.SCHEMA, 1, 1, [f.words(description)], 5)
    for index, first in enumerate((*range(count), 1), 2):  # the last is a part of nothing
        payload = f.META.pack(7, 1, 0, first, count, 1) + first.to_bytes(4, "little")
        parts += f.frame(f.Kind.BATCH, 1, index, [payload], 5)
    (tmp_path / f.file_name(1)).write_bytes(b"".join(parts))
    (found,) = DataLog(tmp_path).generations()
    assert found.rows["x"].tolist() == list(range(count))


def test_columns_that_change_need_a_run(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    other = f.Description("test", "m0", "d0", (("x", "<u2"),), 9)
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([Publication(other, 2, 0, 1, 0, b"\1\0")])
    with pytest.raises(UsageError, match="its columns change in run 2"):
        DataLog(tmp_path)["m0/d0"]
    assert DataLog(tmp_path).dataset("m0/d0", run=2).rows().tolist() == [(2, 0, 1, 1)]


def test_there_is_one_writer_and_readers_do_not_mind(tmp_path: Path) -> None:
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([publication(1)])
        with pytest.raises(InUse, match=f"process {os.getpid()} writes this log"):
            LogWriter(tmp_path, ORIGIN, SMALL)
        assert files.is_written(tmp_path)
        assert generations(tmp_path) == [1]
    assert not files.is_written(tmp_path)
    log.close()


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dataset log"):
        DataLog(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        DataLog(tmp_path / "x")
    with pytest.raises(ConfigError, match="at least two segments"):
        LogWriter(tmp_path, ORIGIN, DataLogSettings(max_bytes=1 << 20))
    (tmp_path / f.file_name(1)).symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="no dataset log"):
        DataLog(tmp_path)


# --- bounds ---


def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    setting = DataLogSettings(segment_bytes=1 << 16, max_bytes=4 << 16, sync="none")
    with LogWriter(tmp_path, ORIGIN, setting) as log:
        for each in range(800):
            log.write([publication(each)])
            assert sum(path.stat().st_size for path in segment_files(tmp_path)) <= setting.max_bytes
    have = generations(tmp_path)
    assert have == [*range(have[0], 800)]
    assert 0 < have[0] < 800
    assert log.counters.retired_segments > 0
    assert not DataLog(tmp_path).scan().problems


def test_the_old_go_when_their_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = DataLogSettings(segment_bytes=1 << 16, max_bytes=1 << 20, max_age_ns=3600 * 10**9, sync="none")
    write(tmp_path, range(3), setting)
    now_ns = time.time_ns()
    with LogWriter(tmp_path, ORIGIN, setting) as log:
        log.write([publication(3)])
        monkeypatch.setattr(writer.time, "time_ns", lambda: now_ns + 1000 * 10**9)
        log.tick()  # the segment is older than a quarter of the time
        log.write([publication(4)])
        assert len(segment_files(tmp_path)) == 3
        monkeypatch.setattr(writer.time, "time_ns", lambda: now_ns + 4000 * 10**9)
        log.tick()
        assert log.counters.retired_segments >= 2
    assert not set(generations(tmp_path)) & {0, 1, 2, 3}


def test_a_row_that_fits_into_no_segment_is_counted(tmp_path: Path) -> None:
    wide = f.Description("s", "m", "wide", (("x", "|S20000"),), 1)
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([Publication(wide, 20_000, 5, 1, 0, bytes(20_000)), publication(1)])
    scan = DataLog(tmp_path).scan()
    assert [batch.name for batch in scan] == ["m0/d0"]
    assert [loss for _, loss in scan.losses] == [f.Loss(5, "m/wide", 1, 1, "too_large")]


class Stuck(LogWriter):
    """A disk that takes its time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.began, self.go_on = os.pipe(), os.pipe()

    def write(self, publications: Any) -> None:
        """Waits to be told."""
        if publications and self.counters.batches == 0:
            os.write(self.began[1], b"x")
            os.read(self.go_on[0], 1)
        super().write(publications)


def test_a_queue_that_is_full_drops_and_says_so_in_the_log(tmp_path: Path) -> None:
    log = Stuck(tmp_path, ORIGIN, DataLogSettings(queue_bytes=4096, sync="none"))
    with Pump(log) as pump:
        assert pump.offer(publication(1))
        os.read(log.began[0], 1)
        taken = [pump.offer(publication(each)) for each in range(2, 12)]
        dropped = [each for each, took in zip(range(2, 12), taken, strict=True) if not took]
        assert dropped
        assert pump.queued_bytes <= 4096
        os.write(log.go_on[1], b"x")
    assert pump.dropped_batches == len(dropped)
    assert not pump.offer(publication(99))
    scan = DataLog(tmp_path).scan()
    assert sum(1 for _ in scan) == 11 - len(dropped)
    rows = sum(len(rows_of(each)) for each in dropped)
    assert [(loss.batches, loss.rows, loss.why) for _, loss in scan.losses] == [(len(dropped), rows, "queue")]
    for each in (*log.began, *log.go_on):
        os.close(each)


# --- a full disk ---

_FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from datalog_writer import publication
from uxk.bridges.datalog import writer
writer.RETRY_NS = -1 << 60
log = writer.LogWriter(sys.argv[1], writer.Origin(0, "virtual"), writer.DataLogSettings(sync="none"))
log.write([publication(each) for each in range(10)])
(good,) = [path.stat().st_size for path in Path(sys.argv[1]).glob('*.uxkd')]
resource.setrlimit(resource.RLIMIT_FSIZE, (good + 700, resource.RLIM_INFINITY))
log.write([publication(each) for each in range(10, 30)])
assert log.counters.error == "EFBIG", log.counters.error
lost = log.counters.lost_batches
assert 0 < lost < 20, lost
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.write([publication(each) for each in range(30, 40)])
assert log.counters.lost_batches == lost and not log.counters.error
log.close()
print(lost)
"""


def test_a_full_disk_costs_what_finds_no_room_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path), str(PROGRAM.parent)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    have = generations(tmp_path)
    assert len(have) == 40 - int(done.stdout)
    assert have[:10] == [*range(10)]
    assert have[-10:] == [*range(30, 40)]
    scan = DataLog(tmp_path).scan()
    assert sum(1 for _ in scan) == len(have)
    assert not scan.problems
    assert sum(loss.batches for _, loss in scan.losses) == int(done.stdout)
    assert {loss.why for _, loss in scan.losses} == {"EFBIG"}


def test_a_disk_without_room_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_NS", -1 << 60)
    real = os.writev

    def full(handle: int, parts: Any) -> int:
        real(handle, [b"".join(map(bytes, parts))[:9]])
        raise OSError(errno.ENOSPC, "full")

    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        monkeypatch.setattr(writer.os, "writev", full)
        log.write([publication(1), publication(2)])
        assert (log.counters.error, log.counters.lost_batches) == ("ENOSPC", 2)
        assert not segment_files(tmp_path)
        monkeypatch.setattr(writer.os, "writev", real)
        log.write([publication(3)])
    assert generations(tmp_path) == [3]
    assert [path.name for path in segment_files(tmp_path)] == [f.file_name(1)]


# --- crashes ---


@pytest.mark.parametrize("seed", [1])
def test_kill_9_at_any_point_costs_the_unflushed_tail_at_most(tmp_path: Path, seed: int) -> None:
    """Killed again and again, at random bytes of its output; the log goes on after each."""
    rng, promised = random.Random(seed), []
    program = [sys.executable, str(PROGRAM), str(tmp_path)]
    for number in range(int(os.environ.get("UXK_SOAK_KILLS", "6"))):
        with subprocess.Popen([*program, str(number)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = b""
            for _ in range(rng.randrange(1, 60)):
                told = process.stdout.readline() or told
            process.kill()
            rest = process.stdout.read().split(b"\n")[:-1]
            assert process.wait() == -signal.SIGKILL
        promised.append(int(([told, *rest])[-1]))
    found: list[list[int]] = [[] for _ in promised]
    write(tmp_path, range(1), DataLogSettings(sync="none"))  # recovers
    scan = DataLog(tmp_path).scan()
    for batch in scan:
        assert np.array_equal(batch.rows, rows_of(batch.meta.generation))
        if batch.run.number <= len(found):
            found[batch.run.number - 1].append(batch.meta.generation)
    assert not scan.damage
    for have, count in zip(found, promised, strict=True):
        assert have == [*range(len(have))]
        assert len(have) >= count


def test_recovery_cuts_the_torn_tail_and_says_where(tmp_path: Path) -> None:
    write(tmp_path, range(10))
    (path,) = segment_files(tmp_path)
    whole = path.read_bytes()
    head = f.head_of(whole, 1)
    assert head is not None
    ends = [each.offset for each in f.frames(whole, head.nonce) if isinstance(each, f.Frame)]
    cut = ends[-3] + 30
    path.write_bytes(whole[:cut])
    torn = DataLog(tmp_path).scan()
    have = sum(1 for _ in torn)
    assert [(each.offset, each.bytes, each.torn) for each in torn.problems] == [(ends[-3], 30, True)]
    log = write(tmp_path, range(10, 12))
    assert log.recovery is not None
    assert log.recovery[:4] == (path.name, ends[-3], 30, 1)
    assert "cut off at offset" in str(log.recovery)
    assert generations(tmp_path) == [*range(have), 10, 11]
    assert not DataLog(tmp_path).scan().problems
    assert write(tmp_path, range(12, 13)).recovery is None


def test_a_segment_that_was_only_begun_is_none(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    path = tmp_path / f.file_name(2)
    for begun in (b"", _log_bytes()[:70]):
        path.write_bytes(begun)
        assert generations(tmp_path) == [0, 1, 2]
        with LogWriter(tmp_path, ORIGIN, SMALL) as log:
            assert not path.exists()
        assert (log.recovery is None) == (not begun)
    assert write(tmp_path, range(3, 5)).recovery is None
    assert generations(tmp_path) == [*range(5)]


def test_a_small_segment_whose_head_is_damaged_is_damage_and_stays(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="no head"):
        generations(tmp_path)
    assert write(tmp_path, range(3, 4)).recovery is None
    assert path.read_bytes() == data
    assert generations(tmp_path, damaged=True) == [3]


def test_an_end_that_is_damaged_later_is_damage(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    write(tmp_path, range(3, 5))
    first, second = segment_files(tmp_path)
    first.write_bytes(first.read_bytes()[:-30])
    with pytest.raises(UsageError, match="damaged at offset"):
        generations(tmp_path)
    second.write_bytes(second.read_bytes()[:-30])
    assert 4 in generations(tmp_path, damaged=True)


def test_recovery_leaves_damage_with_records_behind_it_alone(tmp_path: Path) -> None:
    write(tmp_path, range(10))
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert write(tmp_path, range(10, 12)).recovery is None
    assert path.read_bytes() == data
    with pytest.raises(UsageError, match=f"{path.name}: damaged at offset") as caught:
        generations(tmp_path)
    assert caught.value.errno == errno.EIO
    have = generations(tmp_path, damaged=True)
    assert len(have) == 11
    assert set(have) < set(range(12))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000))
def test_a_segment_cut_anywhere_gives_its_whole_records(cut: int) -> None:
    data = _log_bytes()[: min(cut, len(_log_bytes()))]
    found = check_readable(data)
    assert len(found) >= data.count(f.MAGIC + bytes([f.Kind.BATCH])) - 1


# --- hostile bytes ---

_BYTES: list[bytes] = []


def _log_bytes() -> bytes:
    """A segment of a few generations, the same for all examples."""
    if not _BYTES:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), range(5))
            _BYTES.append(segment_files(Path(folder))[0].read_bytes())
    return _BYTES[0]


def check_readable(data: bytes, *, exact: bool = False) -> list[int]:
    """Reads a segment that may be anything: records are those that were written, in their order; nothing is raised."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f.file_name(1)).write_bytes(data)
        (Path(folder) / files.LOCK).touch()  # it is a log, whatever is left of it
        scan = DataLog(folder).scan()
        found = []
        for batch in scan:
            assert with_extra(batch).dtype.names
            assert np.array_equal(batch.rows, rows_of(batch.meta.generation))
            assert (batch.name, batch.meta.time_ns) == ("m0/d0", batch.meta.generation * 10)
            found.append(batch.meta.generation)
        assert found == sorted(set(found))
        assert not exact or (found == [*range(5)] and not scan.problems)
        assert exact or scan.problems or found == [*range(len(found))]
        if scan.damage:
            with pytest.raises(UsageError):
                list(DataLog(folder).batches())
        files.recover(files.segments(Path(folder))[0], sync=False)
        again = DataLog(folder).scan()
        assert [batch.meta.generation for batch in again] == found
        return found


def test_any_flipped_byte_at_every_offset_is_noticed() -> None:
    whole = _log_bytes()
    check_readable(whole, exact=True)
    head = f.head_of(whole, 1)
    assert head is not None
    good = [bytes(each.payload) for each in f.frames(whole, head.nonce) if isinstance(each, f.Frame)]
    for offset in range(len(whole)):
        data = bytearray(whole)
        data[offset] ^= 1 + offset % 255
        damaged = f.head_of(data, 1)
        if damaged is None:
            assert offset < f.HEADER.size + len(whole) - len(b"".join(good))
            continue
        assert damaged == head
        found = list(f.frames(bytes(data), head.nonce))
        assert any(isinstance(each, f.Hole) for each in found), offset
        left = [bytes(each.payload) for each in found if isinstance(each, f.Frame)]
        assert len(left) == len(good) - 1, offset
        assert all(each in good for each in left)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_of_any_kind_gives_no_wrong_record(data: st.DataObject) -> None:
    text = bytearray(_log_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"])):
            case "flip" if at < len(text):
                text[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del text[at : at + data.draw(st.integers(1, 300))]
            case "insert":
                text[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case "zero":
                length = len(text[at : at + 512])
                text[at : at + 512] = bytes(length)
            case "repeat":
                text[at:at] = text[at // 2 : at]
            case _:
                pass
    check_readable(bytes(text))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(f.Kind)),
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=80),
                st.builds(
                    lambda names, kind: f.words(("s", "m", "d", tuple((name, kind) for name in names), 1)),
                    st.lists(st.text(max_size=3), max_size=3),
                    st.sampled_from(["<u4", "<f8", "O", "(9999,9999)<u8", "|V9", "x", "|S0", "(2,)<i2"]),
                ),
                st.builds(lambda *numbers: f.META.pack(*numbers), *[st.integers(0, 2**32 - 1)] * 6),
            ),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_frames_that_somebody_forged_with_good_checksums_raise_nothing_raw(frames: list[Any]) -> None:
    import tempfile

    nonce = 5
    head = f.Head(f.FORMAT, 1, nonce, "00", 0, 0, "virtual", "", {})
    parts = f.frame(f.Kind.HEAD, 0, 0, [f.words(head)], nonce)
    for index, (kind, number, payload) in enumerate(frames, 1):
        parts += f.frame(kind, number, index, [payload], nonce)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f.file_name(1)).write_bytes(b"".join(parts))
        log = DataLog(folder)
        scan = log.scan()
        for batch in scan:
            assert batch.rows.dtype.itemsize * len(batch.rows) <= f.ROWS_MAX_BYTES
        for name in {batch.name for batch in log.scan()}:
            with suppress(UsageError):
                log.dataset(name, damaged=True).rows()


@pytest.mark.parametrize("kind", ["(0,)<i4", "(2,0)|u1", "|S0"])
def test_columns_without_a_size_are_none(kind: str) -> None:
    with pytest.raises(UsageError, match=r"column 'x' .* expected a size"):
        f.dtype_of((("x", kind), ("y", "|u1")))


def test_forged_frames_that_overlap_cost_no_more_than_some_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each header is good, and claims nearly all that follows."""
    nonce, count, room = 5, 500, 1 << 16
    head = f.Head(f.FORMAT, 1, nonce, "00", 0, 0, "virtual", "", {})
    text = bytearray(b"".join(f.frame(f.Kind.HEAD, 0, 0, [f.words(head)], nonce)) + b"damage")
    for index in range(count):
        header = f.HEADER.pack(f.MAGIC, f.Kind.BATCH, 0, 1, index + 1, room, 1, 0)[:-4]
        text += header + zlib.crc32(header, nonce).to_bytes(4, "little")
    text += bytes(room)
    seen, crc32 = [0], zlib.crc32

    def counted(data: Any, value: int = 0) -> int:
        seen[0] += len(data)
        return crc32(data, value)

    monkeypatch.setattr(f.zlib, "crc32", counted)
    assert [type(each) for each in f.frames(text, nonce)] == [f.Hole]
    assert seen[0] < (f.SEARCH_MAX + 2) * len(text)


def test_rows_that_look_like_frames_are_rows(tmp_path: Path) -> None:
    """An extension that publishes a whole log in its rows gets none of its records in after damage."""
    inner = _log_bytes()
    description = f.Description("s", "m0", "evil", (("x", f"|S{len(inner)}"),), 1)
    with LogWriter(tmp_path, ORIGIN, SMALL) as log:
        log.write([publication(0), Publication(description, len(inner), 1, 1, 0, inner), publication(2)])
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(inner) - 40] ^= 1
    path.write_bytes(data)
    assert generations(tmp_path, damaged=True) == [0, 2]


def test_a_file_that_no_writer_wrote(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    with (tmp_path / f.file_name(2)).open("wb") as file:
        file.truncate(f.SEGMENT_MAX_BYTES + 1)
    with pytest.raises(UsageError, match="a segment has") as caught:
        generations(tmp_path)
    assert caught.value.errno == errno.EFBIG


def test_a_segment_that_is_gone_or_another_is_damage(tmp_path: Path) -> None:
    write(tmp_path, range(200))
    paths = segment_files(tmp_path)
    paths[1].unlink()
    with pytest.raises(UsageError, match="1 segments before it are missing"):
        generations(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(UsageError, match="no head"):
        generations(tmp_path)


def test_limits_of_this_test_file_are_its_own() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, 2**63 - 1)
    assert SCHEMA == (("generation", "<u4"), ("value", "<u8"))
