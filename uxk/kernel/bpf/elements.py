"""Elements of maps below ``/sys/fs/bpf/map/ID``: walked through, looked up and changed, as ``bpftool map`` does it.

An attribute is a page, so elements come in parts.  What is read from ``page``, ``lookup`` and ``next`` begins with the
question that was written there last: who reads another has been overtaken by somebody else, and asks again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

from uxk.bpf.maps import ANY, EXIST, NOEXIST, ArrayMap, HashMap, InstanceArrayMap
from uxk.core.tree import Attribute
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.kernel.bpf.loaded import LoadedMap
    from uxk.kernel.bpf.views import Shown

FLAGS: Final[Mapping[str, int]] = {"any": ANY, "noexist": NOEXIST, "exist": EXIST}
ROOM_CHARS: Final = 3_800
"""Of elements in one part."""
LOGGED_CHARS: Final = 64
"""Of a key in the log."""

Row = tuple[str, bytes]
"""A key's digits, of per-instance arrays with the instance behind them, and a value."""


def _rows(each: LoadedMap) -> Iterator[Row]:
    made = each.map
    if isinstance(made, InstanceArrayMap):
        for index in range(made.max_entries):
            yield from _of_instances(made, index)
    elif isinstance(made, (ArrayMap, HashMap)):
        for key, value in made.items():
            yield key.hex(), value
    else:
        raise _nothing_there(each)


def _of_instances(made: InstanceArrayMap, index: int) -> Iterator[Row]:
    for instance, value in sorted(made.of(index).items()):
        yield f"{index.to_bytes(4, 'little').hex()}/{instance}", value


def _nothing_there(each: LoadedMap) -> UsageError:
    return UsageError(f"map {each.id} is of kind {each.map.kind}, and has no elements", errno=errno.EOPNOTSUPP)


def _part(question: str, rows: Iterator[Row], row: int, byte: int) -> str:
    """Lines ``KEY BYTE DIGITS`` from a byte of a row on; the last line is where to go on, or ``end``."""
    lines, room = [question], ROOM_CHARS
    for key, value in rows:
        digits = value[byte : byte + max(0, room - len(key) - 12) // 2].hex()
        if not digits:
            return "\n".join([*lines, f"{row} {byte}"])
        lines.append(f"{key} {byte} {digits}")
        room -= len(lines[-1]) + 1
        byte += len(digits) // 2
        if byte < len(value):
            return "\n".join([*lines, f"{row} {byte}"])
        row, byte = row + 1, 0
    return "\n".join([*lines, "end"])


def _from(each: LoadedMap, text: str) -> tuple[Iterator[Row], int, int]:
    words = text.split()
    if len(words) != 2 or not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise UsageError(f"{text[:40]!r}: expected the numbers of a row and of a byte")
    row, byte = map(int, words)
    made = each.map
    if isinstance(made, ArrayMap) and not isinstance(made, InstanceArrayMap):  # straight there
        rows = ((n.to_bytes(4, "little").hex(), made[n]) for n in range(min(row, made.max_entries), made.max_entries))
        return rows, row, byte
    return islice(_rows(each), row, None), row, byte


def _page(shown: Shown, text: str) -> None:
    shown.asked["page"] = _part(text, *_from(shown.what, text))


def _key(each: LoadedMap, digits: str) -> bytes:
    if not isinstance(each.map, (ArrayMap, HashMap)):
        raise _nothing_there(each)
    return _bytes(digits, each.map.key_bytes, "key")


def _bytes(digits: str, size_bytes: int, where: str) -> bytes:
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        raise UsageError(f"{where} {digits[:40]!r}: expected hexadecimal digits in pairs") from None
    if len(found) != size_bytes:
        raise UsageError(f"{where} {digits[:40]!r} has {len(found)} bytes; expected {size_bytes}")
    return found


def _missing(each: LoadedMap, key: bytes) -> UsageError:
    made = each.map
    there = f"; it has 0 to {made.max_entries - 1}" if isinstance(made, ArrayMap) else ""
    return UsageError(f"map {each.id} has no key {key.hex()[:LOGGED_CHARS]}{there}", errno=errno.ENOENT)


def _lookup(shown: Shown, text: str) -> None:
    """KEY, and from which byte of the value on."""
    each: LoadedMap = shown.what
    digits, _, start = text.partition(" ")
    key, made = _key(each, digits), each.map
    if start and not (start.isascii() and start.isdecimal() and len(start) < 10):
        raise UsageError(f"{start[:40]!r}: expected the number of a byte")
    assert isinstance(made, (ArrayMap, HashMap))
    if made.offset(key) is None:
        raise _missing(each, key)
    index = int.from_bytes(key, "little")
    if isinstance(made, InstanceArrayMap):
        rows = _of_instances(made, index)
    else:
        rows = iter([(digits, made[index] if isinstance(made, ArrayMap) else made[key])])
    shown.asked["lookup"] = _part(text, rows, 0, int(start or 0))


def _next(shown: Shown, text: str) -> None:
    """KEY, or nothing for the first; as bpf(2): after a key that is not there comes the first."""
    each: LoadedMap = shown.what
    made = each.map
    if isinstance(made, ArrayMap):
        index = int.from_bytes(_key(each, text), "little") if text else made.max_entries
        after = (index + 1 if index < made.max_entries else 0).to_bytes(5, "little")[:4]
        found = after if index + 1 != made.max_entries else None
    elif isinstance(made, HashMap):
        key = _key(each, text) if text else b""
        keys = (each for each, _ in made.items())
        known = made.offset(key) is not None
        found = next((after for before in keys if before == key for after in keys), None) if known else next(keys, None)
    else:
        raise _nothing_there(each)
    if found is None:
        raise UsageError(f"map {each.id} has no key after {text[:LOGGED_CHARS] or 'the last'}", errno=errno.ENOENT)
    shown.asked["next"] = f"{text}\n{found.hex()}"


def _changeable(each: LoadedMap) -> ArrayMap | HashMap:
    made = each.map
    if not isinstance(made, (ArrayMap, HashMap)):
        raise _nothing_there(each)
    if made.read_only:
        raise UsageError(f"map {each.id} is read-only", errno=errno.EPERM)
    if isinstance(made, InstanceArrayMap):
        why = "has a value for each instance, which its programs write"
        raise UsageError(f"map {each.id} {why}", errno=errno.EOPNOTSUPP)
    return made


def _update(shown: Shown, text: str) -> None:
    """KEY VALUE, and perhaps ``any``, ``noexist`` or ``exist``."""
    each: LoadedMap = shown.what
    made, words = _changeable(each), text.split()
    if not 2 <= len(words) <= 3 or (len(words) == 3 and words[2] not in FLAGS):
        raise UsageError(f"{text[:40]!r}: expected KEY VALUE, and perhaps {', '.join(FLAGS)}")
    key, value = _key(each, words[0]), _bytes(words[1], made.value_bytes, "value")
    flags = FLAGS[words[2]] if len(words) == 3 else ANY
    status = made.update(key, value, flags)
    if status == -errno.E2BIG and isinstance(made, ArrayMap):
        raise _missing(each, key)
    if status:
        why = {errno.ENOENT: "is not there", errno.EEXIST: "is there already"}.get(-status, "finds no room")
        raise UsageError(f"map {each.id}: key {words[0][:LOGGED_CHARS]} {why}", errno=-status)
    _log(shown, key, f"set to {value.hex()[:LOGGED_CHARS]}")


def _delete(shown: Shown, text: str) -> None:
    each: LoadedMap = shown.what
    made, key = _changeable(each), _key(each, text)
    if isinstance(made, ArrayMap):
        raise UsageError(f"map {each.id} is an array, whose elements stay")
    if made.delete(key):
        raise _missing(each, key)
    _log(shown, key, "deleted")


def _log(shown: Shown, key: bytes, what: str) -> None:
    """What programs decide by is changed from outside: part of what happened in this run."""
    each: LoadedMap = shown.what
    shown.bpf.log(f"map {each.id} ({each.map.name}): {key.hex()[:LOGGED_CHARS]} {what}", map=each.id)


ATTRIBUTES: Final = (
    Attribute("page", show=lambda shown: shown.asked.get("page", ""), store=_page),
    Attribute("lookup", show=lambda shown: shown.asked.get("lookup", ""), store=_lookup),
    Attribute("next", show=lambda shown: shown.asked.get("next", ""), store=_next),
    Attribute("update", store=_update), Attribute("delete", store=_delete),
)  # fmt: skip
