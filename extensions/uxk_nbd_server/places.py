"""Who may be connected: a limited number of clients.

When there is no place left, a client that has not done with its handshake makes room for one who comes: the oldest from
where most of them are.  One who has an export keeps its place, however long it is silent, for NBD knows no keep-alive;
so that one machine cannot take all of them, a share of the places is the most that one address gets.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import NamedTuple

_IPV6_NETWORK_BITS = 64
"""Of an IPv6 address: whoever has one has them all."""


class Guest:
    """One client.  ``leave`` is called if somebody else gets its place."""

    __slots__ = ("at_home", "leave", "peer")

    def __init__(self, peer: str, leave: Callable[[str], object]) -> None:
        self.peer = peer
        self.leave = leave
        self.at_home = False
        """Whether it has done with the handshake."""


class Refused(NamedTuple):
    """Why a client cannot stay."""

    reason: str


class Places:
    """All guests.  ``per_address`` limits those of one address; an empty address has no limit of its own."""

    def __init__(self, places: int, per_address: int) -> None:
        self._places = places
        self._per_address = per_address
        self._guests: dict[Guest, None] = {}
        self._arriving: dict[Guest, None] = {}
        """Those who shake hands, the oldest first."""
        self._of: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many there are."""
        return len(self._guests)

    def admit(self, peer: str, leave: Callable[[str], object]) -> Guest | Refused:
        """A place for a client from ``peer``, perhaps somebody else's who has no export yet."""
        if peer and self._of.get(peer, 0) >= self._per_address and not self._clear(peer):
            return Refused(f"{self._per_address} clients from {peer} are connected already")
        if len(self._guests) >= self._places and not self._clear(self._busiest()):
            return Refused(f"{len(self._guests)} clients are connected already")
        guest = Guest(peer, leave)
        self._guests[guest] = self._arriving[guest] = None
        self._of[peer] = self._of.get(peer, 0) + 1
        return guest

    def settle(self, guest: Guest) -> None:
        """Its handshake is over."""
        guest.at_home = True
        self._arriving.pop(guest, None)

    def leave(self, guest: Guest) -> None:
        """It is gone; no mistake if it had to make room before."""
        if guest not in self._guests:
            return
        del self._guests[guest]
        self._arriving.pop(guest, None)
        self._of[guest.peer] -= 1
        if not self._of[guest.peer]:
            del self._of[guest.peer]

    def all(self) -> list[Guest]:
        """All of them."""
        return list(self._guests)

    def _busiest(self) -> str:
        """From where most of those come who shake hands."""
        counts: dict[str, int] = {}
        for guest in self._arriving:
            counts[guest.peer] = counts.get(guest.peer, 0) + 1
        return max(counts, key=counts.__getitem__, default="")

    def _clear(self, peer: str) -> bool:
        """Takes the place of the oldest from there who shakes hands; False if there is none."""
        guest = next((each for each in self._arriving if each.peer == peer), None)
        if guest is None:
            return False
        self.leave(guest)
        guest.leave("somebody else needed its place")
        return True


def peer_of(sock: socket.socket) -> str:
    """Where a client comes from; empty for Unix sockets, whose clients all are the same user's."""
    if sock.family == socket.AF_UNIX:
        return ""
    try:
        address = ipaddress.ip_address(str(sock.getpeername()[0]).partition("%")[0])
    except (OSError, ValueError):  # gone already
        return "nowhere"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_NETWORK_BITS), strict=False))
