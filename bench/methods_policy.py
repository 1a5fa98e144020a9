"""The one decision that all methods share, and the forms in which its state and its answer travel.

The decision: which sealed segment of a log-structured volume to clean next.  The policy is cost-benefit
(:class:`uxk.subsystems.lfs.policies.CbAge`), written once more over rows, because user space has rows and no volume;
`tests/test_bench_methods.py` holds it against the volume's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from heapq import nlargest
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.subsystems.lfs.reference import Volume

ROWS: Final = np.dtype([("segment", "<u4"), ("live", "<u4"), ("age", "<u4")])
"""The state: every sealed segment, its valid blocks, and user writes since its last append."""
DEPTH: Final = 8
"""Victims in one answer: who asks seldom has something to go on with."""
THINK_NS: Final = 10_000
"""What one run of the policy is charged, wherever it runs; a setting, as the costs of crossings are."""
_EMPTY: Final = 1 << 62
"""Score of a segment without valid blocks: it costs nothing."""
_STAMP: Final = struct.Struct("<q")


class Shape(NamedTuple):
    """What does not change: blocks in a segment, and the most valid ones that a victim may have."""

    size: int
    most: int


class State(NamedTuple):
    """What somebody knew of the volume at a time."""

    at_ns: int
    rows: list[tuple[int, int, int]]
    """Segment, valid blocks, age."""


class Answer(NamedTuple):
    """Victims, the best first, and the time of the state that they were chosen from."""

    at_ns: int
    victims: tuple[int, ...]


def rank(rows: Iterable[tuple[int, int, int]], shape: Shape) -> tuple[int, ...]:
    """The policy: up to ``DEPTH`` victims by g * age / v with 16 fraction bits, ties to the lowest number."""
    size, most = shape
    scored = [
        (((size - live) * age << 16) // live if live else _EMPTY, -segment)
        for segment, live, age in rows
        if live <= most
    ]
    return tuple(-segment for _, segment in nlargest(DEPTH, scored))


def rows_of(volume: Volume) -> NDArray[Any]:
    """The present state as the volume exports it."""
    sealed, live, now = volume.sealed_at, volume.live, volume.now
    return np.array(
        [(segment, live[segment], now - at) for segment, at in enumerate(sealed) if at >= 0], dtype=ROWS
    )  # fmt: skip


# --- as bytes ------------------------------------------------------------------------------------


def pack_state(at_ns: int, rows: NDArray[Any]) -> bytes:
    """Time and rows."""
    return _STAMP.pack(at_ns) + rows.tobytes()


def unpack_state(data: bytes) -> State:
    """The inverse."""
    return State(_STAMP.unpack_from(data)[0], np.frombuffer(data, ROWS, offset=_STAMP.size).tolist())


def pack_answer(answer: Answer) -> bytes:
    """Time and victims, four bytes each."""
    return _STAMP.pack(answer.at_ns) + np.array(answer.victims, "<u4").tobytes()


def unpack_answer(data: bytes) -> Answer | None:
    """The inverse; None for bytes that are none: they come from user space."""
    if len(data) < _STAMP.size or (len(data) - _STAMP.size) % 4 or len(data) > _STAMP.size + 4 * DEPTH:
        return None
    return Answer(_STAMP.unpack_from(data)[0], tuple(np.frombuffer(data, "<u4", offset=_STAMP.size).tolist()))


# --- as text, as sysfs wants it -------------------------------------------------------------------


def state_text(at_ns: int, rows: NDArray[Any]) -> str:
    """The time, then a line for each row."""
    return "\n".join([str(at_ns), *(f"{segment} {live} {age}" for segment, live, age in rows.tolist())])


def parse_state(text: str) -> State:
    """The inverse."""
    head, *lines = text.split("\n")
    rows = []
    for line in lines:
        segment, live, age = line.split()
        rows.append((int(segment), int(live), int(age)))
    return State(int(head), rows)


def answer_text(answer: Answer) -> str:
    """Time and victims on one line."""
    return " ".join(map(str, (answer.at_ns, *answer.victims)))


def parse_answer(text: str) -> Answer | None:
    """The inverse; None for text that is none."""
    words = text.split()
    if not 1 <= len(words) <= 1 + DEPTH or not all(word.isascii() and word.isdigit() for word in words):
        return None
    at_ns, *victims = map(int, words)
    return Answer(at_ns, tuple(victims))
