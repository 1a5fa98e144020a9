"""Exports disks over NBD (Network Block Device): fixed newstyle, structured replies, TLS.

Rooms, from the bottom: ``wire`` (numbers and layouts), ``handshake``, ``checks``, ``replies``, ``memory``, ``receiver``
and ``places`` do no I/O; ``sockets``, ``idle``, ``outbox``, ``disk``, ``jobs`` and a connection in three parts
(``answers``, ``starting``, ``connection``) do; ``exports``, ``telling`` and ``server`` are for all clients; ``driver``
is the extension.
"""

from __future__ import annotations

from uxk_nbd_server.driver import NbdServer
from uxk_nbd_server.params import NbdParams

__all__ = ["NbdParams", "NbdServer"]
