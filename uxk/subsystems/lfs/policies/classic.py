"""Placements that know only who writes: the user or the cleaner."""

from __future__ import annotations

from uxk.subsystems.lfs.policies.base import Placement


class NoSep(Placement):
    """One log for everything."""

    name = "nosep"
    source = "Rosenblum & Ousterhout, TOCS 1992"
    user_log = 0
    moved_log = 0


class SepGC(Placement):
    """User writes to log 0, moved blocks to log 1."""

    name = "sepgc"
    source = "Van Houdt, 'On the necessity of hot and cold data identification to reduce the write amplification', 2014"
    user_log = 0
    moved_log = 1
