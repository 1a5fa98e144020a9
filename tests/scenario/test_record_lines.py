"""What the kernel prints about requests, good and bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.scenario.record.lines import Lost, Malformed, Request, lost_of_stats, operation, parse_line

LINE = "            sync-3841    [001] .....  5618.457675: block_rq_issue: 7,0 WM 2048 () 16 + 4 be,0,4 [sync]\n"


def test_an_event() -> None:
    assert parse_line(LINE) == Request(5_618_457_675, 1, 3841, "WM", 16, 4, "sync")


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        # A kernel thread's name holds a slash, a colon and hyphens; a flush neither place nor length.
        (
            " kworker/1:1H-58   [001] .....  5618.449357: block_rq_issue: 7,0 FF 0 () 0 + 0 none,0,0 [kworker/1:1H]",
            Request(5_618_449_357, 1, 58, "FF", 0, 0, "kworker/1:1H"),
        ),
        # Before Linux 6.6: no I/O priority.
        (
            " jbd2/loop0-8-3834 [012] d..1. 0.000001: block_rq_issue: 7,0 WSM 8192 () 32772 + 16 [jbd2/loop0-8]",
            Request(1, 12, 3834, "WSM", 32772, 16, "jbd2/loop0-8"),
        ),
        # With the option record-tgid.
        (
            " dd-7 (      7) [000] ..... 1.000000: block_rq_issue: 8,1 R 512 () 1 + 1 be,0,4 [dd]",
            Request(1_000_000, 0, 7, "R", 1, 1, "dd"),
        ),
        # Names that look like parts of the line.
        (
            "a [1] b-1: x-9 [000] ..... 2.000000: block_rq_issue: 8,0 W 512 () 3 + 1 be,0,4 [a [1] b + 2]",
            Request(2_000_000, 0, 9, "W", 3, 1, "a [1] b + 2"),
        ),
        # A passthrough command.
        (
            "smartd-9 [000] ..... 2.000000: block_rq_issue: 8,0 N 512 (85 08 0e 00) 0 + 0 none,0,0 [smartd]",
            Request(2_000_000, 0, 9, "N", 0, 0, "smartd"),
        ),
    ],
)
def test_events_of_many_kinds(line: str, request_: Request) -> None:
    assert parse_line(line) == request_


def test_lost_events_are_counted() -> None:
    assert parse_line("CPU:1 [LOST 50 EVENTS]\n") == Lost(1, 50)


@pytest.mark.parametrize("line", ["", "  \n", "# tracer: nop\n", "#              | |         |   |||||\n"])
def test_lines_without_an_event(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        LINE.replace("block_rq_issue", "block_rq_complete"),
        LINE.replace("16 + 4", "16 + x"),
        LINE.replace("16 + 4", "-16 + 4"),
        LINE[: len(LINE) // 2],
        "CPU:1 [LOST EVENTS]",
    ],
)
def test_malformed_lines_are_told_from_events(line: str) -> None:
    bad = parse_line(line)
    assert isinstance(bad, Malformed)
    assert "block_rq_issue event" in bad.reason


def test_a_sector_beyond_any_device() -> None:
    bad = parse_line(LINE.replace("16 + 4", f"{1 << 60} + 4"))
    assert isinstance(bad, Malformed)
    assert str(1 << 60) in bad.reason


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    parse_line(text)


@given(st.text(st.characters(codec="ascii", exclude_categories=("C",)), min_size=1, max_size=15))
def test_any_name_of_a_task(name: str) -> None:
    line = f"{name}-5 [000] ..... 1.000000: block_rq_issue: 8,0 W 512 () 3 + 1 be,0,4 [{name}]"
    if not name.lstrip().startswith("#"):
        assert parse_line(line) == Request(1_000_000, 0, 5, "W", 3, 1, name)


@pytest.mark.parametrize(
    ("rwbs", "kind"),
    [
        ("W", "write"), ("WS", "write"), ("FWFS", "write"), ("FWS", "write"), ("WFSM", "write"), ("R", "read"),
        ("RAM", "read"), ("FF", "flush"), ("F", "flush"), ("FN", "flush"), ("D", "discard"), ("DS", "discard"),
        ("DE", "discard"), ("WZ", "discard"), ("FD", "discard"), ("N", "other"), ("ZA", "other"),
    ],
)  # fmt: skip
def test_operations(rwbs: str, kind: str) -> None:
    assert operation(rwbs) == kind


def test_lost_events_of_a_cpu() -> None:
    stats = (
        "entries: 5\noverrun: 3\ncommit overrun: 2\nbytes: 99\nnow ts:  5619.46\ndropped events: 1\nread events: 6\n"
    )
    assert lost_of_stats(stats) == 6
    assert lost_of_stats("") == 0
