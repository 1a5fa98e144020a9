"""Exports disks over NBD (Network Block Device): fixed newstyle, structured replies, TLS.

Rooms, from the bottom: ``wire`` (numbers and layouts), ``handshake``, ``checks``, ``replies``, ``memory`` and
``receiver`` do no I/O; ``sockets``, ``idle``, ``disk``, ``jobs``, ``connection`` and ``server`` do; ``driver`` is the
extension.
"""

from __future__ import annotations

from uxk_nbd_server.driver import NbdServer
from uxk_nbd_server.params import NbdParams

__all__ = ["NbdParams", "NbdServer"]
