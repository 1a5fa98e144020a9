"""Bind rules: which extensions attach to a device with given properties.

Linux matches a device's modalias text against the patterns of ``modules.alias`` (``fnmatch``);
Fuchsia matches properties key by key.  Rules here are Fuchsia's shape with Linux's patterns, and
:func:`modalias` writes properties as Linux would write them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from uxk import limits
from uxk.errors import UsageError
from uxk.uapi.manifest import Bind, Manifest

PREFIX: Final = "uxk:"
"""Bus part of every modalias."""
_PLAIN: Final = "*?[]!/:@+,()"
"""Written as they are: patterns stay readable; ``;``, ``=`` and ``%`` are escaped."""


def matches(bind: Bind, properties: Mapping[str, str]) -> bool:
    """Whether every key is there and its value fits the rule's pattern (case counts)."""
    return all(key in properties and fnmatchcase(properties[key], pattern) for key, pattern in bind.match.items())


def specificity(bind: Bind) -> tuple[int, int]:
    """How exact a rule is: its number of keys, then of characters that are no wildcards."""
    text = "".join(bind.match.values())
    literal = len(text) - sum(map(text.count, "*?[]"))
    return len(bind.match), literal


def matching(manifests: Iterable[Manifest], properties: Mapping[str, str]) -> list[Manifest]:
    """The manifests with a rule that matches: the most specific first, then by name.

    Each at most once.
    """
    found: list[tuple[int, int, str, Manifest]] = []
    for manifest in manifests:
        fitting = [specificity(bind) for bind in manifest.binds if matches(bind, properties)]
        if fitting:
            keys, literal = max(fitting)
            found.append((-keys, -literal, manifest.name, manifest))
    return [entry[3] for entry in sorted(found, key=lambda entry: entry[:3])]


def modalias(properties: Mapping[str, str]) -> str:
    """Text of properties or of a rule's patterns: ``"uxk:class=block;vendor=x"``, keys in order.

    :func:`parse_modalias` reads it back exactly.  Raises :class:`UsageError` on an empty key or on
    text that has no UTF-8 form.
    """
    try:
        pairs = [f"{quote(key, safe=_PLAIN)}={quote(value, safe=_PLAIN)}" for key, value in sorted(properties.items())]
    except UnicodeEncodeError as error:
        raise UsageError(f"modalias: properties {dict(properties)!r}: not text: {error}") from None
    if "" in properties:
        raise UsageError(f"modalias: properties {dict(properties)!r}: a key is empty")
    return PREFIX + ";".join(pairs)


def parse_modalias(text: str) -> dict[str, str]:
    """Properties of a modalias.  Raises :class:`UsageError` if it is not one."""
    if len(text) > limits.PATH_MAX_BYTES:
        raise UsageError(f"modalias: {len(text)} characters; at most {limits.PATH_MAX_BYTES}")
    if not text.startswith(PREFIX):
        raise UsageError(f"modalias {text!r}: expected it to begin with {PREFIX!r}")
    properties: dict[str, str] = {}
    body = text[len(PREFIX) :]
    for pair in body.split(";") if body else ():
        key, equals, value = pair.partition("=")
        if not key or not equals or "=" in value:
            raise UsageError(f"modalias {text!r}: {pair!r} is not KEY=VALUE")
        name = _unquote(key, text)
        if name in properties:
            raise UsageError(f"modalias {text!r}: key {name!r} is given twice")
        properties[name] = _unquote(value, text)
    return properties


def _unquote(text: str, whole: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        raise UsageError(f"modalias {whole!r}: {text!r} does not decode as UTF-8") from None
