"""Who has to go when there is no place for a newcomer.

A crowd of hosts that say nothing must not keep others out.  Who works is never sent away: the rest is up to the limit
for each address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from uxk_nvmet_tcp.controller import NS_PER_MS

if TYPE_CHECKING:
    from uxk_nvmet_tcp.session import Session

QUEUELESS_MS: Final = 10_000
"""A controller without I/O queues that was silent for so long may have to go; hosts create queues at once."""
SILENT_MS: Final = 120_000
"""One with I/O queues.  Hosts with a keep-alive timeout that is of any use are never silent so long."""
_IPV6_SITE: Final = 64
"""Bits of an IPv6 address that count: who has one address has the rest of them."""


def owner_of(peer: str) -> str:
    """Whose a connection from ``ADDRESS:PORT`` is: the address, or the network of an IPv6 one."""
    address = peer.rpartition(":")[0]
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address, _IPV6_SITE), strict=False))


def gives_way(sessions: Iterable[Session], now_ns: int) -> Session | None:
    """Which of these makes room, or None.

    First the oldest that is no queue yet, then the discovery controller that was silent for longest, then a controller
    of the subsystem if it was silent for too long, whatever keep-alive timeout it has asked for.
    """
    found: Session | None = None
    best = (3, 0)
    for session in sessions:
        controller = session.controller
        if controller is None:
            if session.connecting:  # its place is not free before the device has answered
                continue
            rank = (0, session.since_ns)
        elif not controller.io:
            rank = (1, controller.heard_ns)
        else:
            patience_ms = SILENT_MS if len(controller.sessions) > 1 else QUEUELESS_MS
            if now_ns - controller.heard_ns < patience_ms * NS_PER_MS:
                continue
            rank = (2, controller.heard_ns)
        if rank < best:
            found, best = session, rank
    return found
