"""What an instance puts aside in an upgrade: the old incarnation as it was, complete, while another is started.

Either it is put back, and goes on as if nothing had been, or it is let go for good; see :mod:`uxk.kernel.reclaim`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from uxk.uapi.entries import Entry, OfferSite
from uxk.uapi.ids import CapId, InstanceId, LockToken

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.forward import Forwarder


class Aside(msgspec.Struct, eq=False, kw_only=True):
    """One incarnation, put aside.  What is handed over is not here: rings, device names, open files, kept memory."""

    host: Any
    incarnation: int
    queue_cap: int
    staged: list[Entry]
    staged_answers: list[Entry]
    policies: tuple[Any, ...]
    """Counters and rates that follow a manifest."""
    late: list[Any] = []
    """What it had said and the kernel had still to act on, on the charged clock."""
    forwarders: dict[Any, Forwarder] = {}
    """Its connections to others."""
    locks: dict[str, LockToken] = {}
    """Locks that it holds.  The new build may ask for them, and gets them as they are."""
    handed_locks: dict[str, None] = {}
    """Those that the new build has asked for."""
    pins: int = 0
    regions: dict[int, int] = {}
    """Memory without a name: bytes by offset."""
    kept_regions: dict[str, int] = {}
    """Memory with a name, which both builds see."""
    attributes: dict[str, tuple[str, bool]] = {}
    """Values of attributes, and whether they can be written."""
    follower: Any = None
    masks: dict[str, int] = {}
    """What its char devices reported to poll."""
    properties: dict[str, dict[str, str]] = {}
    """Of its devices."""
    bound: dict[str, CapId] = {}
    """Devices that bind rules have attached it to."""
    models: list[str] = []
    """Models that it asked to be attached to."""
    sites: list[OfferSite] = []
    """Decision sites that it offered."""

    @property
    def memory_bytes(self) -> int:
        """What it holds besides the new build."""
        return sum(self.regions.values())


def own_bytes(agent: KernelAgent) -> int:
    """Arena memory of an instance's present build, without what another one has that is put aside."""
    return agent.account.arena_bytes - (0 if agent.aside is None else agent.aside.memory_bytes)


def shadow(instance: InstanceId) -> InstanceId:
    """A number for what an instance has put aside, which no instance has."""
    return InstanceId(-instance)
