"""Log files: they follow a kernel, rotate, tell their losses, and are read back whole."""

from __future__ import annotations

import json
import logging
import os
import queue
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.bridges.logs import writer
from uxk.bridges.logs.lines import Origin, format_line, to_json_line, to_syslog
from uxk.bridges.logs.reader import LineError, log_files, read_log, read_logs
from uxk.bridges.logs.settings import MAX_BYTES_MIN, LogFormat
from uxk.bridges.logs.writer import LogFile
from uxk.errors import UsageError
from uxk.scenario import Load, Scenario
from uxk.uapi.info import Record

FORMS: tuple[LogFormat, ...] = ("json", "syslog")


def record_of(seq: int, text: str = "line") -> Record:
    return Record(seq, seq * 1000, 6, 0, "test", text, {})


async def logged(path: Path, form: LogFormat = "json", seed: int = 7) -> list[Record]:
    with LogFile(path, form, fresh=True) as log:
        async with uxk.Kernel(seed=seed) as kernel:
            log.follow(kernel)
            await kernel.modprobe("null")
            await kernel.run_until_ns(1_000_000)
        records = kernel.kmsg.records()
    assert log.statistics() == (len(records), len(records), 0, 0, "")
    return records


@pytest.mark.parametrize("form", FORMS)
async def test_the_file_has_every_record(tmp_path: Path, form: LogFormat) -> None:
    records = await logged(tmp_path / "kernel.log", form)
    assert list(read_log(tmp_path / "kernel.log")) == records
    assert len(records) > 4


@pytest.mark.parametrize("form", FORMS)
async def test_same_seed_same_bytes(tmp_path: Path, form: LogFormat) -> None:
    await logged(tmp_path / "a", form)
    await logged(tmp_path / "b", form)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


async def test_following_changes_nothing_of_the_run(tmp_path: Path) -> None:
    hashes = []
    for follow in (False, True):
        with LogFile(tmp_path / "log") as log:
            async with uxk.Kernel(seed=7) as kernel:
                if follow:
                    log.follow(kernel)
                await kernel.modprobe("null")
                hashes.append(kernel.event_hash())
    assert hashes[0] == hashes[1]


async def test_on_the_real_clock_there_is_wall_time(tmp_path: Path) -> None:
    with LogFile(tmp_path / "log") as log:
        async with uxk.Kernel(clock="real") as kernel:
            log.follow(kernel)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines and all(line["wall"].endswith("Z") for line in lines)
    assert len(list(read_log(tmp_path / "log"))) == len(lines)


def test_it_rotates_and_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogFile(path, max_bytes=64 << 10, backups=3, wait=True) as log:
        log._waits = True
        for seq in range(3000):
            log.put(record_of(seq, "x" * 40))
    assert [each.name for each in log_files(path)] == ["log.3", "log.2", "log.1", "log"]
    assert all(each.stat().st_size <= 64 << 10 for each in log_files(path))
    seqs = [record.seq for record in read_logs(path)]
    assert seqs == list(range(seqs[0], 3000)) and len(seqs) > 1000


async def test_a_run_begins_its_log_anew(tmp_path: Path) -> None:
    (tmp_path / "log.1").write_text("old\n")
    (tmp_path / "log").write_text("old\n")
    records = await logged(tmp_path / "log")
    assert list(read_logs(tmp_path / "log")) == records


def test_what_finds_no_room_is_told_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not take anything until the queue has been full."""
    held: list[writer._Listener] = []
    monkeypatch.setattr(writer._Listener, "start", lambda self: held.append(self))
    log = LogFile(tmp_path / "log", depth=4, wait=False)
    for seq in range(10):
        log.put(record_of(seq))
    assert log.statistics().dropped == 6
    monkeypatch.undo()
    held[0].start()
    log.close()
    found = list(read_log(tmp_path / "log"))
    assert [record.seq for record in found] == [0, 1, 2, 3, 4]
    assert (found[4].source, found[4].text, found[4].fields) == (
        "log", "6 records lost: the file could not keep up", {"lost": 6},
    )  # fmt: skip
    assert "6 records are lost" in log.complaint


def test_it_goes_on_after_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[writer._Listener] = []
    monkeypatch.setattr(writer._Listener, "start", lambda self: held.append(self))
    log = LogFile(tmp_path / "log", depth=4, wait=False)
    for seq in range(6):
        log.put(record_of(seq))
    for _ in range(3):  # as the thread does
        held[0].handle(held[0].queue.get_nowait())
    log.put(record_of(6))
    assert held[0].queue.qsize() == 3  # one that was there, the line on the loss, and the new one
    monkeypatch.undo()
    held[0].start()
    log.close()
    assert [(r.seq, r.fields.get("lost")) for r in read_log(tmp_path / "log")] == [
        (0, None), (1, None), (2, None), (3, None), (4, 2), (6, None),
    ]  # fmt: skip


def test_a_disk_that_is_full_is_told_when_it_is_not_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = LogFile(path)
    full = [False]

    def emit(self: logging.Handler, record: logging.LogRecord) -> None:
        if full[0]:
            try:
                raise OSError(28, "No space left on device")
            except OSError:
                self.handleError(record)
        else:
            real(self, record)

    real = logging.handlers.RotatingFileHandler.emit
    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "emit", emit)
    handler = log._handler
    handler.take(record_of(0))
    full[0] = True
    handler.take(record_of(1))
    handler.take(record_of(2))
    full[0] = False
    handler.take(record_of(3))
    log.close()
    found = [(record.seq, record.text) for record in read_log(path)]
    assert found == [(0, "line"), (1, "2 records lost: No space left on device"), (3, "line")]
    assert log.statistics()[1:4] == (2, 0, 2)


def test_it_waits_where_time_is_virtual_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def put(self: queue.Queue[Record], item: Record, block: bool = True, timeout: float | None = None) -> None:
        waited.append(timeout or 0)
        raise queue.Full

    held: list[writer._Listener] = []
    monkeypatch.setattr(writer._Listener, "start", lambda self: held.append(self))
    log = LogFile(tmp_path / "log", depth=2)
    log._waits = True
    monkeypatch.setattr(queue.Queue, "put_nowait", put)
    monkeypatch.setattr(queue.Queue, "put", put)
    log.put(record_of(0))
    assert waited == [0, pytest.approx(10, abs=1)]
    log._patience_s = 0
    log.put(record_of(1))
    assert len(waited) == 3  # tried, and did not wait again
    monkeypatch.undo()
    held[0].start()
    log.close()
    assert log.statistics().dropped == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "xml"}, "expected one of json, syslog"),
        ({"max_bytes": 5}, "max_bytes=5, expected at least 65536"),
        ({"backups": 0}, "backups=0, expected 1 to 999"),
        ({"depth": 1}, "depth=1, expected at least 2"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LogFile(tmp_path / "log", **settings)  # type: ignore[arg-type]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "Is a directory"), (tmp_path / "none" / "log", "No such file"),
        (Path("/dev/null"), "no regular file"), (tmp_path / "pipe", "No such device"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            LogFile(path)
    for path, words in (
        (tmp_path, "no regular file"), (tmp_path / "pipe", "no regular file"), (tmp_path / "x", "No such"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            list(read_log(path))
        with pytest.raises(UsageError, match=words):
            list(read_logs(path))


def test_others_may_not_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LogFile(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


async def test_nor_what_begins_after_a_rotation(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with LogFile(tmp_path / "log", max_bytes=MAX_BYTES_MIN, backups=1) as log:
            for number in range(1000):
                log.put(record_of(number, "x" * 100))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in log_files(tmp_path / "log")} == {0o640}
    assert len(log_files(tmp_path / "log")) == 2


async def test_one_file_follows_one_kernel(tmp_path: Path) -> None:
    with LogFile(tmp_path / "log") as log:
        async with uxk.Kernel() as kernel:
            log.follow(kernel)
            with pytest.raises(UsageError, match="follows a kernel already"):
                log.follow(kernel)


def test_bad_lines_cost_themselves_and_have_numbers(tmp_path: Path) -> None:
    good = [to_json_line(record_of(seq)).encode() for seq in range(3)]
    path = tmp_path / "log"
    path.write_bytes(b"\n".join([
        good[0], b"", b"garbage", b"\x00\xff", b"x" * 200_000, good[1], b'{"seq":', good[2][:-5],
    ]))  # fmt: skip
    errors: list[LineError] = []
    assert [record.seq for record in read_log(path, errors.append)] == [0, 1]
    assert [error.number for error in errors] == [3, 4, 5, 7, 8]
    assert str(errors[2]) == f"{path}:5: longer than 65536 bytes"


GOOD = (to_json_line(record_of(1)).encode(), to_syslog(record_of(2)).encode())
PARTS = st.sampled_from((*GOOD, b"\n", b"\r\n", b"<", b"{", b"\x00", b"x" * 70_000))


@given(st.lists(st.binary(max_size=80) | PARTS, max_size=12), st.integers(0, 200))
def test_files_of_any_bytes_are_read_to_their_end(parts: list[bytes], cut: int) -> None:
    data = b"".join(parts)
    with tempfile.NamedTemporaryFile(prefix="uxk-log-") as file:
        file.write(data[: max(0, len(data) - cut)])
        file.flush()
        errors: list[LineError] = []
        for record in read_log(file.name, errors.append):
            assert format_line(record, "json", Origin()) and format_line(record, "syslog", Origin())
        numbers = [error.number for error in errors]
        assert numbers == sorted(set(numbers)) and len(numbers) <= data.count(b"\n") + 1


def test_a_scenario_has_its_log(tmp_path: Path) -> None:
    scenario = Scenario(name="s", modules=(Load(name="null"),), until=1_000_000)
    to = uxk_log(tmp_path / "s{seed}.log")
    result = uxk.run(scenario, seed=5, log=to)
    assert result.ok and not result.notes
    records = list(read_log(tmp_path / "s5.log"))
    assert records[0].text == "booted, seed 5, virtual clock" and records[-1].text == "shut down"


def uxk_log(path: Path) -> object:
    from uxk.bridges.logs.settings import LogTo

    return LogTo(file=str(path))


def test_toml_names_a_log(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        f'until = "1ms"\n[log]\nfile = "{tmp_path}/out.log"\nformat = "syslog"\nmax_bytes = "1MiB"\n', "utf-8"
    )
    assert uxk.run(file).ok
    assert (tmp_path / "out.log").read_text().startswith("<6>1 - - kernel - - [meta ")
    with pytest.raises(UsageError, match=r"log\.format"):
        uxk.run(file, options={"log.format": "xml"})
