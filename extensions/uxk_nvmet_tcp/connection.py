"""One NVMe/TCP connection of the controller's side, without I/O: bytes in, commands and bytes out.

Source: NVM Express TCP Transport Specification 1.0, sections 3.3 to 3.6.  :meth:`Connection.receive` takes any pieces
of the stream and never raises: a host that breaks the protocol gets a termination request, after which
:attr:`Connection.closed` is set.  What it does depends on the stream alone, never on how it was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.uapi.nvme import DNR, Status
from uxk_nvmet_tcp import pdu
from uxk_nvmet_tcp.command import Command, Handler
from uxk_nvmet_tcp.pdu import Buffer, Crc, Digests, Fes, Flag, PduType
from uxk_nvmet_tcp.spec import ADMIN_CAPSULE_BYTES, FABRICS, NO_FLOW_CONTROL, SGL, SGL_IN_CAPSULE, SGL_TRANSPORT

MAX_H2C_BYTES: Final = 1 << 20
"""MAXH2CDATA: the most that one H2CData may carry."""
PAD_MAX_BYTES: Final = 128
"""Between header and data: the largest alignment that can be agreed on."""
FIRST_DEPTH: Final = 32
"""Commands under way before Connect has named the size of the queue."""
OUT_MAX: Final = 1024
"""Pieces in :attr:`Connection.out` beyond which input waits.  What is answered at once makes small ones, of at most 152
bytes; data come out of the connection's memory, which bounds theirs."""

_FROM_HOST: Final = frozenset({PduType.IC_REQ, PduType.H2C_TERM_REQ, PduType.CAPSULE_CMD, PduType.H2C_DATA})
_HLEN: Final = [pdu.HEADER_BYTES[PduType(kind)] if kind in _FROM_HOST else 0 for kind in range(256)]
_HDGST, _DDGST, _LAST, _SUCCESS = int(Flag.HDGST), int(Flag.DDGST), int(Flag.LAST), int(Flag.SUCCESS)
_IC_REQ, _H2C_TERM, _CAPSULE, _H2C_DATA = 0, 2, 4, 6
_CAPSULE_BYTES: Final = 72
_DATA_BYTES: Final = 24


class Transfer:
    """An R2T and what has come for it."""

    __slots__ = ("command", "good", "got", "view")

    def __init__(self, command: Command, view: memoryview) -> None:
        self.command = command
        self.view = view
        self.got = 0
        self.good = True


class _Sink:
    """Data of the H2CData that is coming in."""

    __slots__ = ("crc", "end", "transfer")

    def __init__(self, transfer: Transfer, end: int) -> None:
        self.transfer = transfer
        self.end = end
        self.crc = 0


class Connection:
    """The protocol machine of one connection."""

    def __init__(self, handler: Handler, crc: Callable[[], Crc | None], capsule_bytes: int = 4096) -> None:
        self._handler = handler
        self._load_crc = crc
        self._capsule_max_bytes = max(ADMIN_CAPSULE_BYTES, capsule_bytes)
        self._rest = b""
        self._sink: _Sink | None = None
        self._transfers: dict[int, Transfer] = {}
        self._ttag = 0
        self._sqhd = 0
        self._begun = False
        self.out: list[Buffer] = []
        """Pieces of the stream to the host."""
        self.open: dict[int, Command] = {}
        """Commands under way, by command id."""
        self.digests = Digests()
        self.qid = 0
        self.depth = FIRST_DEPTH
        """Entries of the queue: the most commands that may be under way."""
        self.capsule_bytes = ADMIN_CAPSULE_BYTES
        """Data that a command which is no fabrics command may carry."""
        self.flow_control = True
        self.closed = False
        self.reason = ""
        """Why it is closed."""

    # --- from the host ---

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the stream; calls the handler for every command that is complete with it.

        While there is too much to send it only keeps the piece: see :attr:`held`.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end, out = 0, len(data), self.out
        while not self.closed and len(out) <= OUT_MAX:
            if self._sink is not None:
                at = self._fill(data, at)
                if self._sink is not None:
                    break
                continue
            if end - at < 8:
                break
            kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(data, at)
            if not self._common(data, at, kind, flags, hlen, pdo, plen):
                return
            if end - at < (pdo if kind == _H2C_DATA else plen):
                break
            at = self._whole(data, at, kind, pdo, plen)
        if not self.closed:
            self._rest = data[at:]

    @property
    def held(self) -> bool:
        """Whether input waits for :attr:`out` to be taken: then ``receive(b"")`` goes on, and more must not come."""
        return len(self.out) > OUT_MAX and not self.closed

    def _common(self, data: bytes, at: int, kind: int, flags: int, hlen: int, pdo: int, plen: int) -> bool:
        """Whether a common header is right, in what the connection is in."""
        wrong = self._what_is_wrong(kind, flags, hlen, pdo, plen)
        if wrong is None:
            return True
        self._fatal(*wrong, data[at : at + 8])
        return False

    def _what_is_wrong(self, kind: int, flags: int, hlen: int, pdo: int, plen: int) -> tuple[int, int, str] | None:
        """FES, FEI and words; the order of the checks is that of the fields."""
        expected = _HLEN[kind]
        if not expected:
            return Fes.INVALID_FIELD, 0, f"PDU type {kind:#x}"
        if (kind == _IC_REQ) == self._begun and kind != _H2C_TERM:
            return Fes.SEQUENCE, 0, "a second ICReq" if self._begun else f"PDU type {kind:#x} before ICReq"
        if hlen != expected:
            return Fes.INVALID_FIELD, 2, f"HLEN {hlen}, expected {expected}"
        if kind in (_IC_REQ, _H2C_TERM):
            most = 128 if kind == _IC_REQ else _DATA_BYTES + pdu.TERM_DATA_MAX_BYTES
            return None if expected <= plen <= most else (Fes.INVALID_FIELD, 4, f"PLEN {plen}")
        head = expected + (4 if self.digests.header else 0)
        has_data = kind == _H2C_DATA or plen > head
        if bool(flags & _HDGST) != self.digests.header:
            return Fes.INVALID_FIELD, 1, f"FLAGS {flags:#x}: header digest"
        if bool(flags & _DDGST) != (self.digests.data and has_data):
            return Fes.INVALID_FIELD, 1, f"FLAGS {flags:#x}: data digest"
        if has_data and (pdo % 4 or not head <= pdo <= head + PAD_MAX_BYTES):
            return Fes.INVALID_FIELD, 3, f"PDO {pdo}"
        least = pdo + (4 if self.digests.data else 0) if has_data else head
        most = head + PAD_MAX_BYTES + 4 + (MAX_H2C_BYTES if kind == _H2C_DATA else self._capsule_max_bytes)
        if not least <= plen <= most:
            return Fes.INVALID_FIELD, 4, f"PLEN {plen}"
        return None

    def _whole(self, data: bytes, at: int, kind: int, pdo: int, plen: int) -> int:
        """Acts on a PDU that is there; of an H2CData, only the header is.  Returns where the next begins."""
        digests = self.digests
        hlen = _HLEN[kind]
        if digests.header and digests.crc is not None and kind in (_CAPSULE, _H2C_DATA):
            (said,) = pdu.DIGEST.unpack_from(data, at + hlen)
            if digests.crc(memoryview(data)[at : at + hlen], 0) != said:
                self._fatal(Fes.HEADER_DIGEST, said, "header digest", data[at : at + hlen])
                return at
        if kind == _CAPSULE:
            self._capsule(data, at, pdo, plen)
        elif kind == _H2C_DATA:
            self._h2c_data(data, at, pdo, plen)
            return at + pdo
        elif kind == _IC_REQ:
            self._ic_req(data[at : at + 128])
        else:
            _, _, _, _, _, fes, fei = pdu.TERM.unpack_from(data, at)
            self.end(f"the host ended it: FES {fes}, FEI {fei}")
        return at + plen

    def _ic_req(self, header: bytes) -> None:
        *_, pfv, hpda, dgst, _ = pdu.IC.unpack(header)
        if pfv != 0:
            self._fatal(Fes.UNSUPPORTED, 8, f"PFV {pfv}", header)
            return
        if hpda > 31:
            self._fatal(Fes.INVALID_FIELD, 10, f"HPDA {hpda}", header)
            return
        crc = self._load_crc() if dgst & 3 else None
        if dgst & 3 and crc is None:
            self._fatal(Fes.UNSUPPORTED, 11, "digests are not offered", header)
            return
        self._begun = True
        self.digests = Digests(crc, bool(dgst & 1), bool(dgst & 2), (hpda + 1) * 4)
        self.out.append(pdu.ic_resp(dgst & 3, MAX_H2C_BYTES))

    # --- commands ---

    def _capsule(self, data: bytes, at: int, pdo: int, plen: int) -> None:
        digests = self.digests
        sqe = data[at + 8 : at + _CAPSULE_BYTES]
        inside = b""
        good = True
        if plen > _CAPSULE_BYTES + (4 if digests.header else 0):
            end = at + plen - (4 if digests.data else 0)
            inside = data[at + pdo : end]
            if digests.data and digests.crc is not None:
                good = digests.crc(inside, 0) == pdu.DIGEST.unpack_from(data, end)[0]
        address, length, kind = SGL.unpack_from(sqe, 24)
        command = Command(sqe, inside, length, kind == SGL_TRANSPORT)
        if len(self.open) >= self.depth:
            header = data[at : at + _CAPSULE_BYTES]
            self._fatal(Fes.SEQUENCE, 0, f"more than {self.depth} commands at a time", header)
            return
        if command.cid in self.open:
            self._respond(command.cid, Status.CID_CONFLICT | DNR, 0)
            return
        self.open[command.cid] = command
        status = self._sgl(command, address, kind) if good else int(Status.TRANSIENT_TRANSPORT)
        if status:
            self.complete(command, status)
        else:
            self._handler.on_command(command)

    def _sgl(self, command: Command, address: int, kind: int) -> int:
        """The status of a data pointer; leaves in ``command.data`` exactly what it points to."""
        if command.sqe[1] >> 6 != 1:  # PSDT: SGLs, and metadata in one buffer
            return Status.INVALID_FIELD | DNR
        if kind == SGL_TRANSPORT:
            command.data = b""
            return 0
        if kind != SGL_IN_CAPSULE:
            return Status.SGL_TYPE_INVALID | DNR
        limit = ADMIN_CAPSULE_BYTES if command.opcode == FABRICS else self.capsule_bytes
        if command.length > limit:
            return Status.SGL_LENGTH_INVALID | DNR
        if address + command.length > len(command.data):
            return Status.SGL_OFFSET_INVALID | DNR
        command.data = command.data[address : address + command.length]
        return 0

    def request_data(self, command: Command, view: memoryview) -> None:
        """Asks the host for the data of ``command``, all at once; they are put into ``view``.

        ``view`` has at least one byte, and no other request for this command is under way.
        """
        self._ttag = self._ttag + 1 & 0xFFFF
        while self._ttag in self._transfers:
            self._ttag = self._ttag + 1 & 0xFFFF
        self._transfers[self._ttag] = Transfer(command, view)
        self.out.append(pdu.r2t(command.cid, self._ttag, 0, len(view), self.digests))

    def _h2c_data(self, data: bytes, at: int, pdo: int, plen: int) -> None:
        """The header of an H2CData: everything that its data must fit is checked before the first byte is taken."""
        _, flags, _, _, _, cid, ttag, offset, length = pdu.DATA.unpack_from(data, at)
        header = data[at : at + _DATA_BYTES]
        transfer = self._transfers.get(ttag)
        if not self._transfers:
            self._fatal(Fes.SEQUENCE, 0, "H2CData without R2T", header)
        elif transfer is None:
            self._fatal(Fes.INVALID_FIELD, 10, f"TTAG {ttag}", header)
        elif transfer.command.cid != cid:
            self._fatal(Fes.INVALID_FIELD, 8, f"CID {cid}, expected {transfer.command.cid}", header)
        elif length > MAX_H2C_BYTES:
            self._fatal(Fes.LIMIT_EXCEEDED, 0, f"{length} bytes in one H2CData", header)
        elif length == 0 or length != plen - pdo - (4 if self.digests.data else 0):
            self._fatal(Fes.INVALID_FIELD, 16, f"DATAL {length}", header)
        elif offset != transfer.got or offset + length > len(transfer.view):
            self._fatal(Fes.OUT_OF_RANGE, 12, f"{length} bytes at {offset}, expected at {transfer.got}", header)
        elif flags & _LAST and offset + length < len(transfer.view):
            self._fatal(Fes.INVALID_FIELD, 1, f"LAST at {offset + length} of {len(transfer.view)} bytes", header)
        else:
            self._sink = _Sink(transfer, offset + length)
            if offset + length == len(transfer.view):
                del self._transfers[ttag]

    def _fill(self, data: bytes, at: int) -> int:
        """Takes data of the present H2CData and its digest; returns where they end."""
        sink = self._sink
        assert sink is not None
        transfer, digests = sink.transfer, self.digests
        size = min(sink.end - transfer.got, len(data) - at)
        if size:
            piece = memoryview(data)[at : at + size]
            transfer.view[transfer.got : transfer.got + size] = piece
            transfer.got += size
            at += size
            if digests.data and digests.crc is not None:
                sink.crc = digests.crc(piece, sink.crc)
        if transfer.got < sink.end:
            return at
        if digests.data:
            if len(data) - at < 4:
                return at
            if pdu.DIGEST.unpack_from(data, at)[0] != sink.crc:
                transfer.good = False
            at += 4
        self._sink = None
        if transfer.got == len(transfer.view):
            self._handler.on_data(transfer.command, transfer.good)
        return at

    # --- to the host ---

    def complete(self, command: Command, status: int = 0, result: int = 0, data: Buffer | None = None) -> None:
        """Answers a command: with ``data`` if it was to read and ``status`` is 0.  ``result`` is DW0 | DW1 << 32.

        ``data`` are not copied before the pieces of :attr:`out` are joined.
        """
        if self.open.pop(command.cid, None) is None or self.closed:
            return
        if data is not None and len(data) and not status:
            if not self.flow_control and not result:
                self.out += pdu.c2h_data(command.cid, 0, data, _LAST | _SUCCESS, self.digests)
                return
            self.out += pdu.c2h_data(command.cid, 0, data, _LAST, self.digests)
        self._respond(command.cid, status, result)

    def _respond(self, cid: int, status: int, result: int) -> None:
        sqhd = NO_FLOW_CONTROL
        if self.flow_control:
            sqhd = self._sqhd = (self._sqhd + 1) % self.depth
        self.out.append(pdu.capsule_resp(result, sqhd, self.qid, cid, status, self.digests))

    def _fatal(self, fes: int, fei: int, why: str, header: bytes) -> None:
        self.out.append(pdu.term_req(PduType.C2H_TERM_REQ, fes, fei, header))
        self.end(f"FES {int(fes)}, FEI {fei}: {why}")

    def end(self, why: str) -> None:
        """Nothing more is taken or answered; what is in :attr:`out` may still be sent."""
        self.closed = True
        self.reason = why
        self._sink = None
        self._transfers.clear()
        self._rest = b""
