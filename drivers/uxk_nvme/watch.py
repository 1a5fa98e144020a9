"""What has been under way for too long, found by a look at it from time to time: commands themselves pay nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import uxk

LOOKS: Final = 4
"""In the time that a command may take: it is found late by a quarter of that time at most."""


class Watch:
    """Over the commands of one queue."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[uxk.Request | None, int]] = {}
        """What was there at the last look, by tag, and since which look."""

    def late(self, under_way: Mapping[int, uxk.Request | None], now_ns: int, limit_ns: int) -> list[int]:
        """Tags of those that were there ``limit_ns`` ago already."""
        before, seen, late = self._seen, {}, []
        for tag, request in under_way.items():
            known = before.get(tag)
            since_ns = known[1] if known is not None and known[0] is request else now_ns
            seen[tag] = request, since_ns
            if now_ns - since_ns >= limit_ns:
                late.append(tag)
        self._seen = seen
        return late
