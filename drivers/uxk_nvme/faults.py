"""Faults of the device: rules that strike commands, switched while it runs (:mod:`uxk_nvme.faultrules`).

The driver publishes two attributes of its module: ``faults``, whose lines are the rules with what they did, and which
takes ``add RULE``, ``rm ID``, ``clear``, or what a reader has saved of it; and ``faults_status``, the number of writes
to it and what came of the last one, ``"3 ok"`` or ``"4 error: ..."``, since nobody answers a write.

In the spirit of SPDK's error bdev and error injection, nbdkit's error and delay filters, and OpenZFS's zinject.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from heapq import heapreplace
from random import Random
from typing import Final, Literal, NamedTuple, TypeAlias, cast

import numpy as np

import uxk
from uxk.core.suggest import did_you_mean
from uxk_nvme.faultrules import DELAY_MAX_NS, PERCENTILES, PPM, Delay, Ranges, Rule, rule_of, tokens_of

RULES_MAX: Final = 32
"""Every command is compared with all of them."""
TEXT_MAX_BYTES: Final = 4095
"""What an attribute shows at most (uxk.limits.SHOW_MAX_BYTES, with its newline)."""
ID_MAX: Final = 999_999
_COUNTERS_CHARS: Final = 48
"""Reserved for a rule's number and counters: ``id=... # matched=... fired=...``."""
ATTRIBUTE: Final = "faults"
STATUS_ATTRIBUTE: Final = "faults_status"
_WORDS: Final = ("add", "rm", "clear")

Kind: TypeAlias = Literal["status", "delay", "drop", "corrupt", "truncate", "powerloss", "edit"]


class Action(NamedTuple):
    """What happens to one command."""

    kind: Kind
    status: int = 0
    """``SCT << 8 | SC``, for ``status``."""
    dnr: bool = False
    more: bool = False
    delay_ns: int = 0
    """To be added to the completion's time, for any kind that answers."""
    seed: int = 0
    bits: int = 1
    keep_bytes: int = 0
    """For ``truncate``: so many bytes of the data are moved, and the command succeeds."""
    dw0: int = 0
    """For ``edit``: the completion's DW0."""
    rule: int = 0

    @property
    def status_field(self) -> int:
        """The 15 bits of the completion: code, type, More, DNR."""
        return self.status | self.more << 13 | self.dnr << 14

    def corrupt(self, data: memoryview | bytearray) -> None:
        """Flips ``bits`` bits of ``data``, chosen by ``seed``; nothing in empty data."""
        view = memoryview(data).cast("B")
        width = 8 * len(view)
        for bit in Random(self.seed).sample(range(width), min(self.bits, width)):
            view[bit >> 3] ^= 1 << (bit & 7)


class _Live:
    """A rule at work."""

    __slots__ = ("exhausted", "fired", "lanes", "matched", "rule", "text")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.text = str(rule)
        self.matched = self.fired = 0
        self.exhausted = False
        self.lanes = [0] * rule.lanes
        """When each is free again, as a heap."""

    def strikes(self, stream: np.random.Generator) -> bool:
        """Decides for one command that passes the filters."""
        rule, turn = self.rule, self.matched - self.rule.after
        self.matched += 1
        if turn < 0 or (turn + 1) % rule.every:
            return False
        if rule.probability_ppm < PPM and int(stream.integers(PPM)) >= rule.probability_ppm:
            return False
        self.fired += 1
        self.exhausted = self.fired == rule.limit
        return True

    def wait_ns(self, now_ns: int, stream: np.random.Generator) -> int:
        """How long the command that is struck now waits: for a lane, and for its own delay."""
        delay_ns = sample_ns(self.rule.delay, stream) if self.rule.delay.low_ns else 0
        if not self.lanes:
            return delay_ns
        due_ns = max(now_ns, self.lanes[0]) + delay_ns
        heapreplace(self.lanes, due_ns)
        return due_ns - now_ns


def sample_ns(delay: Delay, stream: np.random.Generator) -> int:
    """A time: the fixed one, or drawn from the lognormal distribution through the two percentiles."""
    if not delay.high:
        return delay.low_ns
    low, high = PERCENTILES[delay.low], PERCENTILES[delay.high]
    sigma = math.log(delay.high_ns / delay.low_ns) / (high - low)
    exponent = math.log(delay.low_ns) + sigma * (float(stream.standard_normal()) - low)
    return round(math.exp(exponent)) if exponent < math.log(DELAY_MAX_NS) else DELAY_MAX_NS


class FaultTable:
    """The rules of one controller.  ``stream`` is a random stream of its own, ``ctx.random("faults")``.

    The first rule that strikes a command decides; rules behind it do not see that command.
    """

    __slots__ = ("_error", "_last", "_rules", "_stream", "_writes", "active", "dirty")

    def __init__(self, stream: np.random.Generator) -> None:
        self._stream = stream
        self._rules: dict[int, _Live] = {}
        self._last = 0
        self._writes = 0
        self._error = ""
        self.active = False
        """Whether any rule can still strike: otherwise there is no need to call :meth:`match`."""
        self.dirty = True
        """Whether :meth:`render` differs from what was published."""

    def __len__(self) -> int:
        return len(self._rules)

    # --- rules ---

    def add(self, text: str) -> int:
        """Adds a rule and returns its number.  UsageError (EINVAL, ENOSPC, EEXIST) says what is wrong.

        ``id=N`` among the tokens asks for a number; a comment behind ``#`` and a leading ``add`` are skipped.
        """
        tokens = tokens_of(text.partition("#")[0].strip().removeprefix("add "))
        wanted = tokens.pop("id", "")
        number = self._given_id(wanted) if wanted else self._next_id()
        live = _Live(rule_of(tokens))
        if len(self._rules) >= RULES_MAX:
            raise uxk.UsageError(
                f"{len(self._rules)} rules are there, expected at most {RULES_MAX}", errno=errno.ENOSPC
            )
        room = TEXT_MAX_BYTES - sum(len(each.text) + _COUNTERS_CHARS for each in self._rules.values())
        if len(live.text) + _COUNTERS_CHARS > room:
            raise uxk.UsageError(
                f"the rules' texts would exceed {TEXT_MAX_BYTES} bytes: remove some", errno=errno.ENOSPC
            )
        self._rules[number] = live
        self._last = max(self._last, number)
        self._changed()
        return number

    def _next_id(self) -> int:
        if self._last < ID_MAX:
            return self._last + 1
        return next(number for number in range(1, ID_MAX) if number not in self._rules)

    def _given_id(self, text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= ID_MAX:
            raise uxk.UsageError(f"id={text}: expected a number, 1 to {ID_MAX}")
        if int(text) in self._rules:
            raise uxk.UsageError(f"id={text}: there is a rule of that number", errno=errno.EEXIST)
        return int(text)

    def remove(self, number: int) -> None:
        """Takes a rule away.  UsageError (ENOENT) if there is none of that number."""
        if number not in self._rules:
            known = ", ".join(map(str, self._rules)) or "none"
            raise uxk.UsageError(f"rm {number}: no such rule, there are: {known}", errno=errno.ENOENT)
        del self._rules[number]
        self._changed()

    def clear(self) -> None:
        """Takes all rules away."""
        self._rules.clear()
        self._changed()

    def apply(self, text: str) -> None:
        """Commands, one a line: ``add RULE``, ``rm ID``, ``clear``.  All of them, or UsageError and none."""
        saved = dict(self._rules), self._last
        try:
            for number, line in enumerate(text.splitlines(), 1):
                words = line.partition("#")[0].split(maxsplit=1)
                if words:
                    self._command(number, words[0], words[1] if len(words) > 1 else "")
        except uxk.UsageError:
            self._rules, self._last = saved
            self._changed()
            raise

    def _command(self, line: int, word: str, rest: str) -> None:
        try:
            match word:
                case "add":
                    self.add(rest)
                case "rm" if rest.isdecimal() and len(rest) <= 9:
                    self.remove(int(rest))
                case "rm":
                    raise uxk.UsageError(f"rm {rest!r}: expected the number of a rule")
                case "clear" if not rest:
                    self.clear()
                case _:
                    expected = "expected add RULE, rm ID or clear"
                    raise uxk.UsageError(f"{word!r}: {expected}{did_you_mean(word, _WORDS)}")
        except uxk.UsageError as exc:
            raise uxk.UsageError(f"{ATTRIBUTE}: line {line}: {exc.args[0]}", errno=exc.errno) from None

    def _changed(self) -> None:
        self.active = any(not live.exhausted for live in self._rules.values())
        self.dirty = True

    # --- commands ---

    def match(
        self, opcode: int, admin: bool, qid: int, nsid: int, slba: int, nlb: int, now_ns: int, ranges: Ranges = ()
    ) -> Action | None:
        """What happens to a command, or None.  The words are those of :meth:`Rule.covers`."""
        for number, live in self._rules.items():
            rule = live.rule
            if live.exhausted or not rule.covers(opcode, admin, qid, nsid, slba, nlb, now_ns, ranges):
                continue
            self.dirty = True
            if not live.strikes(self._stream):
                continue
            if live.exhausted:
                self._changed()
            seed = int(self._stream.integers(1 << 63)) if rule.action == "corrupt" else 0
            return Action(
                cast("Kind", rule.action), rule.status, rule.dnr, rule.more, live.wait_ns(now_ns, self._stream),
                seed, rule.bits, rule.keep_bytes, rule.dw0 or 0, number,
            )  # fmt: skip
        return None

    # --- what it shows ---

    def counters(self) -> dict[int, tuple[int, int]]:
        """By rule: how many commands passed its filters, and how many it struck."""
        return {number: (live.matched, live.fired) for number, live in self._rules.items()}

    def render(self) -> str:
        """One line a rule, as :meth:`apply` reads it, with the counters as a comment."""
        text = "\n".join(self._lines(counters=True))
        return text if len(text) <= TEXT_MAX_BYTES else "\n".join(self._lines(counters=False))

    def _lines(self, *, counters: bool) -> Iterator[str]:
        for number, live in self._rules.items():
            did = f" # matched={live.matched} fired={live.fired}" if counters else ""
            yield f"add id={number} {live.text}{did}"

    @property
    def status(self) -> str:
        """The number of writes so far, and what came of the last: ``"3 ok"``, ``"4 error: ..."``."""
        return f"{self._writes} error: {self._error}" if self._error else f"{self._writes} ok"

    # --- the driver's part ---

    def publish(self, ctx: uxk.Context) -> None:
        """Sets the attributes: at setup, after a :meth:`store`, and when a turn ends with ``dirty``."""
        ctx.set_attribute(ATTRIBUTE, self.render(), writable=True)
        ctx.set_attribute(STATUS_ATTRIBUTE, self.status)
        self.dirty = False

    def store(self, ctx: uxk.Context, value: bytes) -> None:
        """A write to the attribute, the value of event ``store``; a mistake is logged and shown, never raised."""
        self._writes += 1
        self._error = ""
        try:
            self.apply(value.decode(errors="replace"))
        except uxk.UsageError as exc:
            self._error = str(exc.args[0])[:1000]
            ctx.log(self._error, level=3)
        self.publish(ctx)
