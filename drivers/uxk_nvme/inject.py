"""What a fault rule does to a command (the rules themselves are :mod:`uxk_nvme.faults`)."""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk_nvme.command import Command
from uxk_nvme.faultrules import Ranges
from uxk_nvme.spec import BROADCAST, RANGE, Io, Refused, Status

_WITH_BLOCKS: Final = frozenset({
    Io.READ, Io.WRITE, Io.COMPARE, Io.WRITE_ZEROES, Io.WRITE_UNCORRECTABLE, Io.VERIFY,
})  # fmt: skip


class Struck(NamedTuple):
    """The part of a fault that the controller acts on after, or instead of, executing the command."""

    delay_ns: int = 0
    status: int = 0
    lost: bool = False


def _ranges(cmd: Command) -> Ranges:
    """First blocks and numbers of blocks of Dataset Management; none if its data cannot be had."""
    try:
        data = cmd.data(((cmd.dw[10] & 0xFF) + 1) * RANGE.size, to_host=False)
    except Refused:
        return ()
    return [(slba, blocks) for _, blocks, slba in RANGE.iter_unpack(data)]


def struck(cmd: Command, *, admin: bool) -> Struck | None:
    """Asks the rules about a command; None if none strikes.  Prepares corruption, truncation and edits."""
    subsystem = cmd.controller.subsystem
    blocks = 0 if admin or cmd.opcode not in _WITH_BLOCKS else (cmd.dw[12] & 0xFFFF) + 1
    nsid = 0 if cmd.nsid == BROADCAST else cmd.nsid
    ranges = _ranges(cmd) if cmd.opcode == Io.DSM and not admin else ()
    action = subsystem.faults.match(cmd.opcode, admin, cmd.queue.qid, nsid, cmd.slba, blocks, cmd.now_ns, ranges)
    if action is None:
        return None
    match action.kind:
        case "status":
            return Struck(action.delay_ns, action.status_field)
        case "drop":
            return Struck(lost=True)
        case "powerloss":
            subsystem.power_loss(cmd.now_ns)
            return Struck(status=Status.POWER_LOSS)
        case "corrupt":
            cmd.corrupt = action.corrupt
        case "truncate":
            cmd.keep_bytes = action.keep_bytes
        case "edit":
            cmd.edit = action.dw0
    return Struck(action.delay_ns)
