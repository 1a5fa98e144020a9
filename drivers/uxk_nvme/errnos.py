"""NVMe statuses as errnos of block requests: Linux's nvme_error_status() and blk_status_to_errno() (6.1)."""

from __future__ import annotations

import errno
from typing import Final

from uxk_nvme.spec import DNR, Status

_ERRNOS: Final = {
    Status.CAPACITY_EXCEEDED: errno.ENOSPC,
    Status.LBA_OUT_OF_RANGE: errno.EREMOTEIO,
    Status.CONFLICTING_ATTRIBUTES: errno.EOPNOTSUPP,
    Status.INVALID_OPCODE: errno.EOPNOTSUPP,
    Status.INVALID_FIELD: errno.EOPNOTSUPP,
    Status.INVALID_NAMESPACE: errno.EOPNOTSUPP,
    Status.WRITE_FAULT: errno.ENODATA,
    Status.READ_ERROR: errno.ENODATA,
    Status.DEALLOCATED: errno.ENODATA,
    Status.COMPARE_FAILURE: errno.ENODATA,
    Status.READ_ONLY_RANGE: errno.ENODATA,
    0x286: errno.ENODATA,  # Access Denied
    Status.GUARD_CHECK: errno.EILSEQ,
    0x283: errno.EILSEQ,  # application tag check
    0x284: errno.EILSEQ,  # reference tag check
    0x181: errno.EILSEQ,  # invalid protection information
    0x083: errno.EBADE,  # reservation conflict
    0x370: errno.ENOLINK,  # host path error
}


def errno_of(status: int) -> int:
    """0 for success; EIO for whatever has no better word."""
    code = status & 0x7FF
    return _ERRNOS.get(code, errno.EIO) if code else 0


def may_retry(status: int) -> bool:
    """Whether another try may help."""
    return not status & DNR
