"""Which requests an export accepts, without I/O, and error numbers in the protocol's terms."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from uxk_nbd_server.wire import REQUEST_MAX_BYTES, Cmd, CmdFlag, Err

_FLAGS: Final = {
    Cmd.READ: CmdFlag.DF, Cmd.WRITE: CmdFlag(0), Cmd.DISC: CmdFlag(0), Cmd.FLUSH: CmdFlag(0), Cmd.TRIM: CmdFlag(0),
    Cmd.CACHE: CmdFlag(0), Cmd.WRITE_ZEROES: CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO, Cmd.BLOCK_STATUS: CmdFlag.REQ_ONE,
}  # fmt: skip
_KNOWN_FLAGS: Final = {int(cmd): int(flags) | int(CmdFlag.FUA) for cmd, flags in _FLAGS.items()}
"""By command; FUA is legal with each."""
_CHANGES: Final = frozenset({int(Cmd.WRITE), int(Cmd.TRIM), int(Cmd.WRITE_ZEROES)})
_GROWS: Final = frozenset({int(Cmd.WRITE), int(Cmd.WRITE_ZEROES)})
"""Beyond the end there is no space for them; for the others such a range is just wrong."""

_WIRE_ERRORS: Final = {
    errno.EPERM: Err.PERM, errno.EACCES: Err.PERM, errno.EROFS: Err.PERM,
    errno.ENOMEM: Err.NOMEM, errno.ENOBUFS: Err.NOMEM,
    errno.EINVAL: Err.INVAL, errno.EMSGSIZE: Err.INVAL,
    errno.ENOSPC: Err.NOSPC, errno.EDQUOT: Err.NOSPC, errno.EFBIG: Err.NOSPC,
    errno.EOVERFLOW: Err.OVERFLOW,
    errno.EOPNOTSUPP: Err.NOTSUP, errno.ENOTSUP: Err.NOTSUP,
    errno.ESHUTDOWN: Err.SHUTDOWN, errno.ENODEV: Err.SHUTDOWN, errno.ENXIO: Err.SHUTDOWN,
    errno.ECANCELED: Err.SHUTDOWN, errno.ESTALE: Err.SHUTDOWN,
}  # fmt: skip


def wire_error(status: int) -> int:
    """The protocol's error number for an errno; what it has no word for is an I/O error."""
    return int(_WIRE_ERRORS.get(status, Err.IO)) if status else 0


class Terms(NamedTuple):
    """What was agreed on with one client, and what holds for every request of its."""

    size_bytes: int
    block_bytes: int
    read_only: bool
    structured: bool
    allocation: bool
    fast_zero: bool


def refusal(terms: Terms, kind: int, flags: int, offset: int, length: int) -> int:
    """The error that a request gets without the device being asked; 0 if it may go there.

    ``length`` is at most REQUEST_MAX_BYTES for a WRITE, since a longer payload is not even received.
    """
    known = _KNOWN_FLAGS.get(kind)
    if known is None or flags & ~known:
        return Err.INVAL
    if kind in (Cmd.FLUSH, Cmd.DISC):
        return 0
    if terms.read_only and kind in _CHANGES:
        return Err.PERM
    if offset + length > terms.size_bytes:
        return Err.NOSPC if kind in _GROWS else Err.INVAL
    if kind == Cmd.CACHE:
        return 0
    if offset % terms.block_bytes or length % terms.block_bytes:
        return Err.INVAL
    if kind == Cmd.READ and length > REQUEST_MAX_BYTES:
        return Err.OVERFLOW
    if kind == Cmd.READ and flags & CmdFlag.DF and not terms.structured:
        return Err.INVAL
    if kind == Cmd.BLOCK_STATUS and not (terms.allocation and length):
        return Err.INVAL
    if kind == Cmd.WRITE_ZEROES and flags & CmdFlag.FAST_ZERO and not terms.fast_zero:
        return Err.NOTSUP
    return 0
