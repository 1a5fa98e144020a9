"""What the server says of itself: figures as attributes, not more often than anybody reads, and lines in the log.

Both are limited, for it is strangers who make them happen: a flood of connects must neither cost more than the
connects themselves, nor hide what else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

import uxk

PAUSE_S: Final = 0.1
"""Between one look at the figures and the next."""
LINES_MAX: Final = 8
INTERVAL_S: Final = 5
"""So many lines of one kind in so long."""


class _Kind:
    """Lines of one kind."""

    def __init__(self) -> None:
        self.since_s = 0.0
        self.lines = self.left_out = self.level = 0


class Teller:
    """Of one server."""

    def __init__(self, ctx: uxk.Context) -> None:
        self._ctx = ctx
        self._changed = trio.Event()
        self._shown: dict[str, int] = {}
        self._kinds: dict[str, _Kind] = {}

    # --- figures ---

    def changed(self) -> None:
        """Some figure may have."""
        self._changed.set()

    def show(self, figures: Mapping[str, int]) -> None:
        """Publishes those that are not what they were."""
        try:
            for name, value in figures.items():
                if self._shown.get(name) != value:
                    self._ctx.set_attribute(name, value)
                    self._shown[name] = value
        except uxk.RingFull:  # the next time will do
            self.changed()

    async def run(self, figures: Callable[[], Mapping[str, int]]) -> None:
        """Publishes figures when they have changed; until cancelled."""
        while True:
            left_out = any(kind.left_out for kind in self._kinds.values())
            with trio.move_on_after(INTERVAL_S if left_out else float("inf")):
                await self._changed.wait()
                self._changed = trio.Event()
                self.show(figures())
            self._sum_up()
            await trio.sleep(PAUSE_S)

    # --- lines ---

    def say(self, kind: str, text: str, level: int = 4) -> None:
        """A line, unless there were many of its kind just now; those are counted."""
        entry = self._kinds.setdefault(kind, _Kind())
        now_s = trio.current_time()
        if now_s - entry.since_s >= INTERVAL_S:
            self._sum_up()
            entry.since_s, entry.lines = now_s, 0
        entry.level = level
        if entry.lines < LINES_MAX:
            entry.lines += 1
            self._ctx.log(text, level=level)
        else:
            entry.left_out += 1

    def _sum_up(self) -> None:
        now_s = trio.current_time()
        for kind, entry in self._kinds.items():
            if entry.left_out and now_s - entry.since_s >= INTERVAL_S:
                self._ctx.log(f"{kind}: {entry.left_out} more", level=entry.level)
                entry.left_out = 0
