"""The hint mailbox of one decision site: the kernel looks in, and never waits (R110).

Holds the newest hint only.  A hint is taken if it is fresh (time to live), belongs to the site's present
generation and passes the site's own check against current state; otherwise it is refused, with the reason
counted, and the site uses its built-in default in the same step (R28, R104).
"""

from __future__ import annotations

from collections.abc import Callable

from uxk.uapi.entries import Hint


class Mailbox:
    """One site's newest hint.  ``check(payload)`` returns a reason to refuse, or ``""``."""

    __slots__ = ("_check", "_expires_ns", "_hint", "_sender", "generation", "rejects", "site", "taken")

    def __init__(self, site: str, check: Callable[[bytes], str]) -> None:
        self.site = site
        self.generation = 0
        self.rejects: dict[str, int] = {}
        self.taken = 0
        self._check = check
        self._hint: Hint | None = None
        self._sender = 0
        self._expires_ns = 0

    def offer(self, sender: int, hint: Hint, now_ns: int) -> str:
        """Takes a hint in, replacing an older one; returns the reason if it is refused at once."""
        if hint.generation != self.generation:
            return self._reject("stale_generation")
        reason = self._check(hint.payload)
        if reason:
            return self._reject(reason)
        self._hint, self._sender, self._expires_ns = hint, sender, now_ns + hint.ttl_ns
        return ""

    def take(self, now_ns: int) -> Hint | None:
        """The hint to follow now, checked once more against current state, or None.  Never waits."""
        hint, self._hint = self._hint, None
        if hint is None:
            return None
        reason = "expired" if now_ns > self._expires_ns else self._check(hint.payload)
        if hint.generation != self.generation:
            reason = "stale_generation"
        if reason:
            self._reject(reason)
            return None
        self.taken += 1
        return hint

    def advance(self) -> int:
        """Starts the next generation: hints for earlier state are stale from now on."""
        self.generation += 1
        return self.generation

    def forget(self, sender: int) -> None:
        """Drops the hint of an instance that is gone."""
        if self._sender == sender:
            self._hint = None

    def _reject(self, reason: str) -> str:
        self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return reason
