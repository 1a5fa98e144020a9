"""Fabrics commands: what Connect says, and the properties that stand for a controller's registers.

Source: NVM Express Base Specification 2.0, sections 3.1.3 (properties), 3.5 (enabling, reset, shutdown) and 6
(fabrics commands).
"""

from __future__ import annotations

from typing import NamedTuple

from uxk.uapi.nvme import DNR, Status
from uxk_nvmet_tcp import spec
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.spec import Connect, Prop

IN_DATA = 1 << 16
"""Of a refusal's result: the offset of the wrong field counts in the data of the Connect."""


class Refusal(NamedTuple):
    """Why a command fails: a status field, and a result."""

    status: int
    result: int = 0


class ConnectRequest(NamedTuple):
    """A Connect command and its data."""

    qid: int
    sqsize: int
    """0-based."""
    flow_control: bool
    kato_ms: int
    host_id: bytes
    cntlid: int
    subsystem: str
    host: str


def wrong_field(offset: int, *, in_data: bool = False) -> Refusal:
    """Connect Invalid Parameters, with the place of the wrong one."""
    return Refusal(Connect.PARAMETER | DNR, offset | (IN_DATA if in_data else 0))


def parse_connect(command: Command, depth: int) -> ConnectRequest | Refusal:
    """Reads a Connect; ``depth`` is the largest number of entries that a queue may have."""
    recfmt, qid, sqsize, cattr, kato_ms = spec.CONNECT.unpack_from(command.sqe)
    if recfmt != 0:
        return Refusal(Connect.FORMAT | DNR)
    data = command.data
    if len(data) != spec.CONNECT_BYTES:
        return Refusal(Status.SGL_LENGTH_INVALID | DNR)
    if not 1 <= sqsize < depth:
        return wrong_field(44)
    host = spec.text_of(data[512:768])
    if not host:
        return wrong_field(512, in_data=True)
    cntlid = int.from_bytes(data[16:18], "little")
    subsystem = spec.text_of(data[256:512])
    flow_control = not cattr & spec.CATTR_NO_FLOW_CONTROL
    return ConnectRequest(qid, sqsize, flow_control, kato_ms, data[:16], cntlid, subsystem, host)


class Registers:
    """CAP, VS, CC and CSTS of a controller behind fabrics."""

    def __init__(self, depth: int, timeout_ms: int) -> None:
        half_seconds = min(255, -(-timeout_ms // 500))
        self.cap = depth - 1 | spec.CAP_CQR | half_seconds << spec.CAP_TO_SHIFT | spec.CAP_CSS_NVM
        self.vs = 0x10400
        self.cc = 0
        self.csts = 0
        self._crto = half_seconds << 16 | half_seconds

    @property
    def ready(self) -> bool:
        """Whether commands are served."""
        return bool(self.csts & spec.CSTS_RDY)

    def get(self, sqe: bytes) -> int | Refusal:
        """The value that a Property Get asks for."""
        wide = sqe[40] & 7
        offset = int.from_bytes(sqe[44:48], "little")
        short: dict[int, int] = {
            Prop.VS: self.vs, Prop.CC: self.cc, Prop.CSTS: self.csts, Prop.CRTO: self._crto,
        }  # fmt: skip
        long: dict[int, int] = {Prop.CAP: self.cap}
        value = (short, long)[wide].get(offset) if wide < 2 else None
        return Refusal(Status.INVALID_FIELD | DNR) if value is None else value

    def set(self, sqe: bytes, *, io: bool) -> int | Refusal:
        """Takes a Property Set of CC, the only property that can be set; returns the bits of CC that have changed.

        A configuration that cannot be enabled is a fatal status (CSTS.CFS), as on a device.
        """
        wide = sqe[40] & 7
        offset = int.from_bytes(sqe[44:48], "little")
        value = int.from_bytes(sqe[48:52], "little")
        if wide != 0 or offset != Prop.CC:
            return Refusal(Status.INVALID_FIELD | DNR)
        changed, self.cc = self.cc ^ value, value
        if changed & value & spec.CC_EN:
            entry_sizes = value >> 16 & 0xFF
            if value & (spec.CC_CSS | spec.CC_MPS) or (io and entry_sizes != 0x46):
                self.csts = spec.CSTS_CFS
                return changed & ~spec.CC_EN
        return changed
