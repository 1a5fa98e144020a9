"""The language of device faults: which commands are struck, how often, and what happens to them.

A rule is a line of ``key=value`` tokens, in any order::

    opcode=read lba=100-200 probability_ppm=1000 after=10 count=5 window=1ms-2s action=status status=media-error dnr=1

Filters, all of which must hold: ``opcode`` (names, numbers), ``queue`` (``io``, the default; ``admin``, ``any``, or
numbers), ``nsid``, ``lba`` (blocks or ranges, both ends included; a command that touches one of them, ``dsm`` with any
of its ranges), ``window`` (times since boot, the end excluded).  Of the commands that pass them, ``after`` spares the
first, ``every`` takes each n-th, ``probability_ppm`` draws; ``count`` ends the rule.  ``action``: ``status``,
``delay``, ``drop`` (never answered), ``corrupt`` (``bits`` of the data are flipped), ``truncate`` (only ``keep_bytes``
of the data are moved), ``powerloss``, ``edit`` (``dw0`` replaces the completion's).  ``delay_ns`` is a time, or two
percentiles of a lognormal distribution, ``p50:100us,p99:5ms``; it may join any action that answers.  With ``lanes=n``,
n commands at a time serve their delay, and others queue behind them (ZFS: ``zinject -D latency:lanes``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import uxk
from uxk.core.params import parse_integer
from uxk.core.suggest import did_you_mean
from uxk_nvme.faultnames import ADMIN_OPCODES, IO_OPCODES, STATUS, Scope, opcode_name, status_name

Ranges: TypeAlias = Sequence[tuple[int, int]]

PPM: Final = 1_000_000
RULE_MAX_CHARS: Final = 512
"""Longest text of one rule."""
ITEMS_MAX: Final = 16
"""Opcodes, queues, namespaces or ranges that one rule names: each command is compared with all of them."""
LANES_MAX: Final = 1024
DELAY_MAX_NS: Final = 3_600_000_000_000
"""An hour: no host waits longer (Linux: nvme_core.io_timeout is 30 s)."""
I63_MAX: Final = (1 << 63) - 1
BITS_MAX: Final = 1 << 16

PERCENTILES: Final[Mapping[str, float]] = {
    "p50": 0.0, "p90": 1.2815515655446004, "p95": 1.6448536269514722, "p99": 2.3263478740408408,
    "p99.9": 3.090232306167813, "p99.99": 3.719016485455709,
}  # fmt: skip
"""Quantiles of the standard normal distribution."""

_ANSWERS: Final = ("status", "delay", "corrupt", "truncate", "edit")
ACTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "status": ("status",), "delay": ("delay_ns",), "drop": (), "corrupt": (), "truncate": (), "powerloss": (),
    "edit": ("dw0",),
}  # fmt: skip
"""What each action cannot do without."""
_MEANT_FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "status": ("status",), "dnr": ("status",), "more": ("status",), "bits": ("corrupt",), "keep_bytes": ("truncate",),
    "dw0": ("edit",), "delay_ns": _ANSWERS, "lanes": _ANSWERS,
}  # fmt: skip


class Delay(NamedTuple):
    """``low_ns`` always, or a lognormal distribution through two percentiles."""

    low_ns: int = 0
    low: str = ""
    high_ns: int = 0
    high: str = ""

    def __str__(self) -> str:
        return f"{self.low}:{self.low_ns},{self.high}:{self.high_ns}" if self.high else str(self.low_ns)


class Rule(NamedTuple):
    """One rule; an empty tuple means any."""

    action: str
    opcodes: tuple[int, ...] = ()
    scope: Scope = "io"
    queues: tuple[int, ...] = ()
    nsids: tuple[int, ...] = ()
    lbas: tuple[tuple[int, int], ...] = ()
    """First and last block of each range."""
    from_ns: int = 0
    until_ns: int = 0
    """0: without end."""
    after: int = 0
    every: int = 1
    probability_ppm: int = PPM
    limit: int = 0
    """0: without limit."""
    status: int = 0
    dnr: bool = False
    more: bool = False
    delay: Delay = Delay()
    lanes: int = 0
    bits: int = 1
    keep_bytes: int = 0
    dw0: int | None = None

    def covers(
        self, opcode: int, admin: bool, qid: int, nsid: int, slba: int, nlb: int, now_ns: int, ranges: Ranges = ()
    ) -> bool:
        """Whether a command passes all filters.

        It addresses ``nlb`` blocks from ``slba`` on, perhaps 0; and ``ranges``, each a first block and a number.
        """
        if self.opcodes and opcode not in self.opcodes:
            return False
        if self.scope != "any" and admin != (self.scope == "admin"):
            return False
        if (self.queues and qid not in self.queues) or (self.nsids and nsid not in self.nsids):
            return False
        if now_ns < self.from_ns or (self.until_ns and now_ns >= self.until_ns):
            return False
        if not self.lbas:
            return True
        end = slba + nlb
        for first, last in self.lbas:  # in a loop: every command comes by here
            if nlb > 0 and slba <= last and first < end:
                return True
        return any(
            begin <= last and first < begin + count for begin, count in ranges if count for first, last in self.lbas
        )

    def __str__(self) -> str:
        """The rule as :func:`parse_rule` reads it."""
        return " ".join(f"{key}={value}" for key, value in _texts(self) if value)


# --- from text ----------------------------------------------------------------------------------------


def parse_rule(text: str) -> Rule:
    """A rule from its text.  UsageError names token, value and what was expected."""
    return rule_of(tokens_of(text))


def tokens_of(text: str) -> dict[str, str]:
    """``key=value`` tokens in order.  UsageError if one is none, or is there twice."""
    if len(text) > RULE_MAX_CHARS:
        raise uxk.UsageError(f"a rule of {len(text)} characters, expected at most {RULE_MAX_CHARS}")
    tokens: dict[str, str] = {}
    for number, word in enumerate(text.split(), 1):
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise uxk.UsageError(f"token {number}, {word!r}: expected KEY=VALUE")
        if key in tokens:
            raise uxk.UsageError(f"token {number}, {word!r}: {key} is given twice")
        tokens[key] = value
    return tokens


def rule_of(tokens: Mapping[str, str]) -> Rule:
    """A rule from its tokens."""
    fields: dict[str, Any] = {}
    for number, (key, value) in enumerate(tokens.items(), 1):
        read = _READERS.get(key)
        try:
            if read is None:
                raise ValueError(f"no such key{did_you_mean(key, _READERS)}; known: {', '.join(_READERS)}")
            fields.update(read(value))
        except ValueError as exc:
            raise uxk.UsageError(f"token {number}, {key}={value}: {exc}") from None
    if "action" not in fields:
        raise uxk.UsageError(f"no action: expected action= and one of {', '.join(ACTIONS)}")
    _check_action(str(fields["action"]), tokens)
    opcode_scope, scope = fields.pop("opcode_scope", ""), fields.get("scope", "")
    if opcode_scope and scope and opcode_scope != scope:
        raise uxk.UsageError(
            f"opcode={tokens['opcode']} queue={tokens['queue']}: these are names of {opcode_scope} commands, "
            f"expected queue={opcode_scope}, or numbers"
        )
    return Rule(**{**fields, "scope": opcode_scope or scope or "io"})


def _check_action(action: str, tokens: Mapping[str, str]) -> None:
    for key in tokens:
        meant = _MEANT_FOR.get(key, (action,))
        if action not in meant:
            what = f"{key} has no meaning for action={action}, it is for: {', '.join(meant)}"
            raise uxk.UsageError(f"{key}={tokens[key]}: {what}")
    missing = [key for key in ACTIONS[action] if key not in tokens]
    if missing:
        raise uxk.UsageError(f"action={action}: needs {' and '.join(missing)}")
    if "lanes" in tokens and "delay_ns" not in tokens:
        raise uxk.UsageError(f"lanes={tokens['lanes']}: needs delay_ns")


def _number(text: str, least: int, most: int, unit: str = "") -> int:
    try:
        number = parse_integer(text, unit)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}, expected a number{f' of {unit}' if unit else ''}") from None
    if not least <= number <= most:
        raise ValueError(f"{number}: expected {least} to {most}{f' {unit}' if unit else ''}")
    return number


def _items(text: str) -> list[str]:
    items = text.split(",")
    if len(items) > ITEMS_MAX:
        raise ValueError(f"{len(items)} items, expected at most {ITEMS_MAX}")
    return items


def _numbers(text: str, least: int, most: int) -> tuple[int, ...]:
    return tuple(sorted({_number(item, least, most) for item in _items(text)}))


def _word(text: str, words: Iterable[str], otherwise: str = "") -> str:
    known = list(words)
    if text not in known:
        expected = f"expected one of {', '.join(known)}{otherwise}"
        raise ValueError(f"{text!r}: {expected}{did_you_mean(text, known)}")
    return text


def _is_number(text: str) -> bool:
    return text[:1].isdecimal()


def _opcode(text: str) -> dict[str, Any]:
    numbers, scopes = set[int](), set[str]()
    for item in _items(text):
        if _is_number(item):
            numbers.add(_number(item, 0, 0xFF))
        elif item in IO_OPCODES:
            numbers.add(IO_OPCODES[item])
            scopes.add("io")
        else:
            name = _word(item, [*IO_OPCODES, *ADMIN_OPCODES], " or a number")
            numbers.add(ADMIN_OPCODES[name])
            scopes.add("admin")
    if len(scopes) > 1:
        raise ValueError("names I/O and admin commands, expected one kind: write two rules")
    return {"opcodes": tuple(sorted(numbers)), "opcode_scope": next(iter(scopes), "")}


def _queue(text: str) -> dict[str, Any]:
    if not _is_number(text):
        return {"scope": _word(text, ("io", "admin", "any"), " or numbers of I/O queues")}
    return {"scope": "io", "queues": _numbers(text, 1, 0xFFFF)}


def _lba(text: str) -> dict[str, Any]:
    ranges = set[tuple[int, int]]()
    for item in _items(text):
        first_text, dash, last_text = item.partition("-")
        first = _number(first_text, 0, I63_MAX)
        last = _number(last_text, 0, I63_MAX) if dash else first
        if last < first:
            raise ValueError(f"{item!r}: expected FIRST-LAST with FIRST <= LAST")
        ranges.add((first, last))
    return {"lbas": tuple(sorted(ranges))}


def _window(text: str) -> dict[str, Any]:
    begin, dash, end = text.partition("-")
    if not dash or not (begin or end):
        raise ValueError(f"{text!r}: expected FROM-TO, FROM- or -TO, for example 1ms-2s")
    from_ns = _number(begin, 0, I63_MAX, "ns") if begin else 0
    until_ns = _number(end, 1, I63_MAX, "ns") if end else 0
    if until_ns and until_ns <= from_ns:
        raise ValueError(f"{text!r}: expected a TO later than FROM")
    return {"from_ns": from_ns, "until_ns": until_ns}


def _status(text: str) -> dict[str, Any]:
    if not _is_number(text):
        return {"status": STATUS[_word(text, STATUS, ", a number SCT << 8 | SC, or SCT/SC")]}
    kind, slash, code = text.partition("/")
    if slash:
        return {"status": _nonzero(_number(kind, 0, 7) << 8 | _number(code, 0, 0xFF))}
    return {"status": _nonzero(_number(text, 0, 0x7FF))}


def _nonzero(status: int) -> int:
    if not status:
        raise ValueError("0 is success, expected an error")
    return status


def _delay(text: str) -> dict[str, Any]:
    if not text.startswith("p"):
        return {"delay": Delay(_number(text, 1, DELAY_MAX_NS, "ns"))}
    pairs = [re.split("[:=]", item, maxsplit=1) for item in _items(text)]
    if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{text!r}: expected a time, or two percentiles such as p50:100us,p99:5ms")
    names = [_word(name, PERCENTILES) for name, _ in pairs]
    times = [_number(value, 1, DELAY_MAX_NS, "ns") for _, value in pairs]
    if PERCENTILES[names[0]] >= PERCENTILES[names[1]] or times[0] > times[1]:
        raise ValueError(f"{text!r}: expected the lower percentile first, with the shorter time")
    return {"delay": Delay(times[0], names[0], times[1], names[1])}


def _flag(field: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {field: bool(_number(text, 0, 1))}


def _count(field: str, least: int, most: int) -> Callable[[str], dict[str, Any]]:
    return lambda text: {field: _number(text, least, most)}


_READERS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "opcode": _opcode,
    "queue": _queue,
    "nsid": lambda text: {"nsids": _numbers(text, 1, 0xFFFFFFFF)},
    "lba": _lba,
    "window": _window,
    "after": _count("after", 0, I63_MAX),
    "every": _count("every", 1, I63_MAX),
    "probability_ppm": _count("probability_ppm", 1, PPM),
    "count": _count("limit", 1, I63_MAX),
    "action": lambda text: {"action": _word(text, ACTIONS)},
    "status": _status,
    "dnr": _flag("dnr"),
    "more": _flag("more"),
    "delay_ns": _delay,
    "lanes": _count("lanes", 1, LANES_MAX),
    "bits": _count("bits", 1, BITS_MAX),
    "keep_bytes": _count("keep_bytes", 0, I63_MAX),
    "dw0": _count("dw0", 0, 0xFFFFFFFF),
}


# --- to text ------------------------------------------------------------------------------------------


def _texts(rule: Rule) -> Iterable[tuple[str, str]]:
    """Every token's key and text; an empty text where the default holds."""
    yield "opcode", ",".join(opcode_name(code, rule.scope) for code in rule.opcodes)
    yield "queue", ",".join(map(str, rule.queues)) or ("" if rule.scope == "io" else rule.scope)
    yield "nsid", ",".join(map(str, rule.nsids))
    yield "lba", ",".join(f"{first}-{last}" if last > first else str(first) for first, last in rule.lbas)
    window = f"{rule.from_ns}-{rule.until_ns or ''}" if rule.from_ns or rule.until_ns else ""
    yield "window", window
    yield "after", str(rule.after or "")
    yield "every", str(rule.every) if rule.every > 1 else ""
    yield "probability_ppm", str(rule.probability_ppm) if rule.probability_ppm < PPM else ""
    yield "count", str(rule.limit or "")
    yield "action", rule.action
    yield "status", status_name(rule.status) if rule.status else ""
    yield "dnr", "1" if rule.dnr else ""
    yield "more", "1" if rule.more else ""
    yield "delay_ns", str(rule.delay) if rule.delay.low_ns else ""
    yield "lanes", str(rule.lanes or "")
    yield "bits", str(rule.bits) if rule.bits > 1 else ""
    yield "keep_bytes", str(rule.keep_bytes or "")
    yield "dw0", "" if rule.dw0 is None else f"0x{rule.dw0:x}"
