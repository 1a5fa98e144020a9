"""The discovery controller: tells hosts where the subsystem is.

Source: NVM Express Base Specification 2.0, sections 3.1.2.3 (discovery controllers) and 5.16.1.23 (discovery log).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from uxk.uapi.nvme import DNR, Admin, Feature, Log, Status
from uxk_nvmet_tcp import identify, spec
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.controller import NS_PER_MS, Controller
from uxk_nvmet_tcp.fabrics import ConnectRequest

if TYPE_CHECKING:
    from uxk_nvmet_tcp.session import Session
    from uxk_nvmet_tcp.target import Target

ENTRY_BYTES: Final = 1024
TRANSFER_MAX_BYTES: Final = 8192
"""More than any of its pages has (MDTS)."""
IDLE_MS: Final = 120_000
"""A discovery controller without keep-alive lives so long without a command (base specification, 3.1.2.3.3)."""
LOG_CHANGED: Final = 2 | 0xF0 << 8 | Log.DISCOVERY << 16
"""DW0 of the event: a notice, discovery log page change."""
_NOTICE: Final = 1 << 31
_TRTYPE_TCP: Final = 3
_ADRFAM_IPV4, _ADRFAM_IPV6 = 1, 2
_SUBTYPE_NVM: Final = 2
_TREQ: Final = 1 << 2
"""Submission queue flow control may be off."""
_PORT_ID: Final = 1


def log_entry(subsystem: str, address: str, port: int) -> bytes:
    """An entry of the discovery log."""
    family = _ADRFAM_IPV6 if ":" in address else _ADRFAM_IPV4
    entry = bytearray(ENTRY_BYTES)
    head = (_TRTYPE_TCP, family, _SUBTYPE_NVM, _TREQ, _PORT_ID, spec.CNTLID_DYNAMIC, 32)
    struct.pack_into("<BBBBHHH", entry, 0, *head)
    entry[32:64] = spec.padded(str(port), 32, b" ")
    entry[256:512] = spec.padded(subsystem, 256)
    entry[512:768] = spec.padded(address, 256, b" ")
    return bytes(entry)


def discovery_log(generation: int, entries: list[bytes]) -> bytes:
    """The whole log page."""
    return struct.pack("<QQH", generation, len(entries), 0).ljust(ENTRY_BYTES, b"\0") + b"".join(entries)


class DiscoveryController(Controller):
    """Answers Identify and the discovery log itself; nothing reaches the device."""

    features = frozenset({Feature.KEEP_ALIVE, Feature.EVENTS})

    def __init__(self, target: Target, cntlid: int, request: ConnectRequest) -> None:
        super().__init__(target, cntlid, request)
        self._event_mask = 0
        self._changed = False
        """The log has changed since it was read."""
        self._told = False
        """An event was sent, and the log not read since."""

    @property
    def expires_ns(self) -> int | None:
        """Without keep-alive, silence ends it."""
        return super().expires_ns or self.heard_ns + IDLE_MS * NS_PER_MS

    def other_admin(self, session: Session, command: Command) -> None:
        """Identify and Get Log Page."""
        conn, sqe = session.conn, command.sqe
        if command.opcode == Admin.IDENTIFY:
            if sqe[40] != 1:
                conn.complete(command, Status.INVALID_FIELD | DNR)
            elif command.length != identify.BYTES or not command.transport:
                conn.complete(command, Status.SGL_LENGTH_INVALID | DNR)
            else:
                session.passthrough(command)
        elif command.opcode == Admin.GET_LOG_PAGE:
            self._log_page(session, command)
        else:
            super().other_admin(session, command)

    def _log_page(self, session: Session, command: Command) -> None:
        conn, sqe = session.conn, command.sqe
        page = self._page(session, sqe[40])
        offset = int.from_bytes(sqe[48:56], "little")
        if page is None:
            conn.complete(command, Status.INVALID_LOG_PAGE | DNR)
        elif offset % 4 or offset > len(page) or command.length > TRANSFER_MAX_BYTES:
            conn.complete(command, Status.INVALID_FIELD | DNR)
        elif not command.length:
            conn.complete(command)
        else:
            session.passthrough(command)

    def content(self, session: Session, command: Command) -> bytes:
        """Identify data, or the piece of a log page; a page that ends before it is followed by zeros."""
        sqe = command.sqe
        if command.opcode == Admin.IDENTIFY:
            return identify.discovery_controller(self.target.discovery_face(self.cntlid))
        page, offset = self._page(session, sqe[40]) or b"", int.from_bytes(sqe[48:56], "little")
        dwords = 1 + int.from_bytes(sqe[42:46], "little")
        if sqe[40] == Log.DISCOVERY and not sqe[41] & 0x80:  # without RAE: the event may come again
            self._told = self._changed = False
        return page[offset : offset + min(4 * dwords, command.length)].ljust(command.length, b"\0")

    def _page(self, session: Session, number: int) -> bytes | None:
        if number == Log.DISCOVERY:
            entries = []
            if self.target.allowed(self.host):
                entries.append(log_entry(self.target.config.nqn, *self.target.advertised(session)))
            return discovery_log(self.target.generation, entries)
        if number == Log.SUPPORTED:
            supported = (Log.SUPPORTED, Log.DISCOVERY)
            return b"".join(int(page in supported).to_bytes(4, "little") for page in range(256))
        return None

    def log_changed(self) -> None:
        """The discovery log says something else now."""
        self._changed = True
        self.armed()

    def armed(self) -> None:
        """Says once that the log has changed, to a host that wants to know."""
        if self._changed and self._event_mask & _NOTICE and not self._told:
            self._told = self.post(LOG_CHANGED)

    def set_feature(self, feature: int, value: int) -> tuple[int, int]:
        """Asynchronous Event Configuration, Keep Alive Timer."""
        if feature != Feature.EVENTS:
            return super().set_feature(feature, value)
        self._event_mask = value
        return 0, 0

    def get_feature(self, feature: int, *, default: bool) -> tuple[int, int]:
        """Asynchronous Event Configuration, Keep Alive Timer."""
        if feature != Feature.EVENTS:
            return super().get_feature(feature, default=default)
        return 0, 0 if default else self._event_mask
