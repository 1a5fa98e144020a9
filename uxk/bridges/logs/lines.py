"""One kmsg record as one line of a file: syslog (RFC 5424), or JSON.

Virtual time is no wall time.  On the real clock a line has both; else a syslog line has the NILVALUE for its time
(RFC 5424, 6.2.3) and for its host, and kernel time stands in the structured data, so that equal seeds give equal bytes.

In syslog, text that would act on a terminal or break the line is ``\\xHH`` for each byte, as is the backslash; the
escapes of structured data (6.3.3) come on top.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from uxk.bridges.logs.settings import LogFormat
from uxk.core.kmsg import FACILITY_USER, FIELD_NAME_MAX_BYTES, FIELD_VALUE_MAX_BYTES, LEVELS, to_json
from uxk.errors import UsageError
from uxk.limits import KMSG_FIELDS_MAX, KMSG_TEXT_MAX_BYTES, NAME_MAX_BYTES, U64_MAX
from uxk.uapi.entries import U63
from uxk.uapi.info import Record

ENTERPRISE: Final = 32473
"""uxk has no private enterprise number; this one is for examples (RFC 5612)."""
FACILITY_MAX: Final = 23
"""The largest that a PRI can hold (6.2.1)."""
_TIME_MAX_NS: Final = 1 << 62
"""Two thirds of the range: sums of a few times stay within it."""
_SEQUENCE_MAX: Final = (1 << 31) - 1
_BOM: Final = "\ufeff"
_APP_NAME_MAX: Final = 48
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Origin(NamedTuple):
    """Where a log comes from: wall time at boot and the host's name; without a time, time is the run's own."""

    boot_wall_ns: int | None = None
    host: str = "-"


HERE: Final = Origin()
"""A run whose time is its own."""


def wall_time(origin: Origin, time_ns: int) -> str:
    """RFC 3339 in UTC, to the microsecond; empty if the run's time is no wall time."""
    if origin.boot_wall_ns is None:
        return ""
    moment = _EPOCH + timedelta(microseconds=(origin.boot_wall_ns + time_ns) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def format_line(record: Record, form: LogFormat, origin: Origin) -> str:
    """The line, without its end."""
    return to_syslog(record, origin) if form == "syslog" else to_json_line(record, origin)


# --- JSON lines ---------------------------------------------------------------------------------------------


def to_json_line(record: Record, origin: Origin = HERE) -> str:
    """As ``uxk dmesg --json``, on the real clock with ``wall``.  Nothing in it acts on a terminal."""
    found = to_json(record)
    if wall := wall_time(origin, record.time_ns):
        found["wall"] = wall
    line = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    if line.isprintable():
        return line
    return json.dumps(found, separators=(",", ":")).replace("\x7f", "\\u007f")


# --- RFC 5424 -----------------------------------------------------------------------------------------------


def to_syslog(record: Record, origin: Origin = HERE) -> str:
    """``<PRI>1 TIMESTAMP HOST SOURCE - - [meta ...][kmsg@32473 ...][int@32473 ...][str@32473 ...] TEXT``.

    Fields keep their type: integers and texts are in elements of their own.
    """
    facility = record.facility if record.facility <= FACILITY_MAX else FACILITY_USER
    app = "".join(c if "!" <= c <= "~" else "_" for c in record.source)[:_APP_NAME_MAX] or "-"
    ours: dict[str, object] = {"seq": record.seq, "ns": record.time_ns}
    if app != (record.source or "-"):
        ours["source"] = record.source
    if facility != record.facility:
        ours["facility"] = record.facility
    # 7.3: a number from 1 that begins again at 1, and hundredths of a second modulo 2**32.
    meta = {"sequenceId": record.seq % _SEQUENCE_MAX + 1, "sysUpTime": record.time_ns // 10_000_000 % (1 << 32)}
    data = _element("meta", meta) + _element(f"kmsg@{ENTERPRISE}", ours)
    for name, kind in (("int", int), ("str", str)):
        if fields := {key: value for key, value in record.fields.items() if isinstance(value, kind)}:
            data += _element(f"{name}@{ENTERPRISE}", fields)
    text = _escape(record.text)
    message = f" {text if text.isascii() else _BOM + text}" if text else ""
    head = f"<{facility << 3 | record.level}>1 {wall_time(origin, record.time_ns) or '-'} {origin.host} {app} - -"
    return f"{head} {data}{message}"


def _element(name: str, params: dict[str, Any]) -> str:
    pairs = "".join(f' {key}="{_quote(_escape(str(value)))}"' for key, value in params.items())
    return f"[{name}{pairs}]"


def _escape(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c if c.isprintable() and c != "\\" else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text
    )


def _quote(text: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", text)


# --- reading ------------------------------------------------------------------------------------------------


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line may say; everything bounded as the kernel bounds it."""

    seq: U63
    time_ns: Annotated[int, Meta(ge=0, le=_TIME_MAX_NS)]
    level: Literal[LEVELS]  # type: ignore[valid-type]
    source: Annotated[str, Meta(max_length=NAME_MAX_BYTES)]
    text: Annotated[str, Meta(max_length=KMSG_TEXT_MAX_BYTES)]
    facility: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    fields: Annotated[
        dict[
            Annotated[str, Meta(max_length=FIELD_NAME_MAX_BYTES)],
            int | Annotated[str, Meta(max_length=FIELD_VALUE_MAX_BYTES)],
        ],
        Meta(max_length=KMSG_FIELDS_MAX),
    ] = {}
    wall: Annotated[str, Meta(max_length=40)] = ""


_HOSTILE: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
_json: Final = msgspec.json.Decoder(_Line)
_NAME: Final = r'[^\s=\]"]{1,32}'
_HEAD: Final = re.compile(r"<(\d{1,3})>1 (\S{1,40}) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) ", re.ASCII)
_ELEMENT: Final = re.compile(rf"\[({_NAME})((?: {_NAME}=\"(?:[^\"\\\]]|\\.)*\")*)\]")
_PARAM: Final = re.compile(rf" ({_NAME})=\"((?:[^\"\\\]]|\\.)*)\"")
_HEX: Final = re.compile(r"(?:\\x[0-9a-f]{2})+")


def parse_line(line: bytes) -> Record:
    """The record of a line in either form, without its end.  Raises :class:`UsageError` that says what is wrong."""
    try:
        text = line.decode()
        found = _syslog(text) if text.startswith("<") else _json.decode(line)
    except UnicodeDecodeError as exc:
        raise UsageError(f"byte {exc.start} is no UTF-8") from None
    except _HOSTILE as exc:
        raise UsageError(str(exc)[:200]) from None
    for name, value in found.fields.items():
        if isinstance(value, int) and abs(value) > U64_MAX:
            raise UsageError(f"field {name[:FIELD_NAME_MAX_BYTES]!r}: expected at most {U64_MAX}")
    return Record(
        found.seq, found.time_ns, LEVELS.index(found.level), found.facility, found.source, found.text, found.fields
    )  # fmt: skip


def _syslog(text: str) -> _Line:
    head = _HEAD.match(text)
    if head is None:
        raise ValueError("expected '<PRI>1 TIMESTAMP HOST APP PROCID MSGID ' of RFC 5424")
    elements, end = _elements(text, head.end())
    ours = elements.get(f"kmsg@{ENTERPRISE}")
    if ours is None:
        raise ValueError(f"no element kmsg@{ENTERPRISE}: not a log of uxk's")
    if text[end : end + 1] not in ("", " "):
        raise ValueError(f"{text[end : end + 20]!r} behind the structured data, expected a space")
    prefix, app = int(head[1]), head[4]
    fields: dict[str, int | str] = {k: _integer(v) for k, v in elements.get(f"int@{ENTERPRISE}", {}).items()}
    fields.update(elements.get(f"str@{ENTERPRISE}", {}))
    return msgspec.convert({
        "seq": _integer(ours.get("seq", "")), "time_ns": _integer(ours.get("ns", "")), "level": LEVELS[prefix & 7],
        "facility": _integer(ours.get("facility", str(prefix >> 3))),
        "source": ours.get("source", "" if app == "-" else app),
        "text": _unescape(text[end + 1 :].removeprefix(_BOM)), "fields": fields,
        "wall": "" if head[2] == "-" else head[2],
    }, _Line)  # fmt: skip


def _elements(text: str, at: int) -> tuple[dict[str, dict[str, str]], int]:
    """Structured data by element, and where it ends."""
    if text[at : at + 1] == "-":
        return {}, at + 1
    found: dict[str, dict[str, str]] = {}
    while (element := _ELEMENT.match(text, at)) is not None:
        found[element[1]] = {
            param[1]: _unescape(re.sub(r'\\(["\\\]])', r"\1", param[2])) for param in _PARAM.finditer(element[2])
        }
        at = element.end()
    return found, at


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _HEX.sub(lambda run: bytes.fromhex(run[0].replace("\\x", "")).decode(errors="backslashreplace"), text)


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
        raise ValueError(f"{text[:30]!r}: expected an integer")
    return int(text)
