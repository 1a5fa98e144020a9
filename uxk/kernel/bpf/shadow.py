"""A program beside its model: what both say of the same decisions, and the agreement as a number.

The kernel sends the features of decisions that the program has made; the model answers with its own verdicts when it
gets to it, and nobody waits for that.  What the program said stays here, so the comparison is the kernel's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from struct import iter_unpack, pack
from typing import Final

from msgspec import Struct

from uxk.errors import UsageError
from uxk.limits import I64_MAX, NS_PER_S, PPM
from uxk.uapi.ml import ShadowRows

BATCH_MAX_BYTES: Final = 64 << 10
"""Of rows in one event."""
PENDING_MAX: Final = 4096
"""Decisions that the model has not judged yet; more are not asked about."""


class InjectionConfig(Struct, frozen=True, kw_only=True):
    """What an injected policy has to stand up to at a site."""

    decisions_min: int = 256
    """Decisions that the model must have judged before the swap, and that a later judgement rests on."""
    agreement_ppm: int = 995_000
    """Share of them in which program and model must agree."""
    audit_every: int = 64
    """Once in force, every so many decisions the model is asked again; 0: never."""
    batch: int = 64
    """Decisions in one event to the agent."""
    flush_ns: int = 1_000_000
    """A batch that is not full is sent after this long."""
    lifetime_ns: int = 10 * NS_PER_S
    """Longest shadow period."""
    audit_ns: int = 10 * NS_PER_S
    """Once in force, how long the model may take to judge what it is asked: a policy that is not audited goes."""
    interval_ns: int = 1_000_000
    """Between the beginnings of two injections at one site."""

    def __post_init__(self) -> None:
        ranges = {
            "decisions_min": (1, PENDING_MAX), "agreement_ppm": (0, PPM), "audit_every": (0, I64_MAX),
            "batch": (1, PENDING_MAX), "flush_ns": (1, I64_MAX), "lifetime_ns": (1, I64_MAX),
            "audit_ns": (1, I64_MAX), "interval_ns": (0, I64_MAX),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"injection: {name}={value!r}, expected {least} to {most}")


class Comparison:
    """``send`` gives a batch to the agent and says whether it was taken; ``ranked``: decisions are of several rows."""

    def __init__(
        self, injection: int, width: int, config: InjectionConfig, send: Callable[[ShadowRows], bool], *, ranked: bool
    ) -> None:
        self._injection, self._width, self._config, self._send, self._ranked = injection, width, config, send, ranked
        self._next = self._first = 0
        self._rows = bytearray()
        self._counts: list[int] = []
        self._said: dict[int, int] = {}
        self.judged = self.agreed = self.skipped = 0
        self._latest: deque[bool] = deque(maxlen=config.decisions_min)

    @property
    def waiting(self) -> bool:
        """Whether a batch has begun and was not sent."""
        return bool(self._counts)

    @property
    def agreement_ppm(self) -> int:
        """Of all that was judged; a million before anything was."""
        return self.agreed * PPM // self.judged if self.judged else PPM

    @property
    def latest_ppm(self) -> int | None:
        """Of the latest ``decisions_min``; None while there were fewer."""
        full = len(self._latest) == self._config.decisions_min
        return sum(self._latest) * PPM // len(self._latest) if full else None

    @property
    def asked(self) -> int:
        """The number after the last decision that the model was asked about."""
        return self._first

    @property
    def oldest(self) -> int | None:
        """The first decision that the model has been asked about and not judged."""
        first = next(iter(self._said), None)
        return None if first is None or first >= self._first else first

    def forget(self) -> None:
        """Another model judges from now on: what the one before was asked about is nobody's."""
        self.skipped += len(self._said)
        self._said.clear()
        self._rows.clear()
        self._counts.clear()
        self._first = self._next

    def note(self, rows: Sequence[Sequence[int]], verdict: int) -> None:
        """One decision of the program; ``rows`` may have the spare slot at their end."""
        width = self._width
        if len(self._said) >= PENDING_MAX or 8 * width * len(rows) > BATCH_MAX_BYTES:
            self.skipped += 1
            return
        if len(self._rows) + 8 * width * len(rows) > BATCH_MAX_BYTES:
            self.flush()
        for row in rows:
            self._rows += pack(f"<{width}q", *row[:width])
        self._counts.append(len(rows))
        self._said[self._next] = verdict
        self._next += 1
        if len(self._counts) >= self._config.batch:
            self.flush()

    def flush(self) -> None:
        """Sends what has come together; an agent whose queue is full is asked about other decisions later."""
        if not self._counts:
            return
        counts = tuple(self._counts) if self._ranked else ()
        if not self._send(ShadowRows(self._injection, self._first, self._width, bytes(self._rows), counts)):
            for number in range(self._first, self._next):
                self._said.pop(number, None)
            self.skipped += self._next - self._first
        self._first = self._next
        self._rows.clear()
        self._counts.clear()

    def judge(self, first: int, verdicts: bytes) -> None:
        """The model's verdicts.  EINVAL for decisions that it was not asked about, or has judged already."""
        if len(verdicts) % 8:
            raise UsageError(f"injection {self._injection}: {len(verdicts)} bytes of verdicts, expected 8 for each")
        given = [each for (each,) in iter_unpack("<q", verdicts)]
        for number in range(first, first + len(given)):
            if number not in self._said or number >= self._first:
                raise UsageError(
                    f"injection {self._injection}: decision {number} is none that the model was asked about"
                )
        for number, verdict in enumerate(given, first):
            agrees = self._said.pop(number) == verdict
            self.judged += 1
            self.agreed += agrees
            self._latest.append(agrees)
