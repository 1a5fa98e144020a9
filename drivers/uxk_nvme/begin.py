"""What an incarnation of the driver begins with: what the one before has kept, or what the parameters say."""

from __future__ import annotations

import uxk
from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.io import IO_TABLE
from uxk_nvme.kept import Kept
from uxk_nvme.namespaces import LBA_SHIFTS
from uxk_nvme.params import NvmeParams
from uxk_nvme.passthru import QUEUES_MAX
from uxk_nvme.spec import PAGE_BYTES, Refused
from uxk_nvme.subsystem import PRIMARY, Subsystem, resume


def make_namespaces(subsystem: Subsystem, params: NvmeParams) -> None:
    """The first namespaces, attached to the kernel's controller.  ParamError for what does not fit."""
    shift = params.lba_bytes.bit_length() - 1
    assert shift in LBA_SHIFTS
    whole_bytes = subsystem.namespaces.capacity_bytes
    each_bytes = params.namespace_bytes or whole_bytes
    if params.namespaces > 1 and not params.namespace_bytes:
        each_bytes = whole_bytes // params.namespaces // PAGE_BYTES * PAGE_BYTES
    for _ in range(params.namespaces):
        try:
            made = subsystem.namespaces.create(each_bytes >> shift, shift)
        except Refused:
            raise uxk.ParamError(
                f"namespaces={params.namespaces} of {each_bytes} bytes: expected to fit into {whole_bytes} bytes"
            ) from None
        made.attached[PRIMARY] = None


def resume_controllers(subsystem: Subsystem, kept: Kept, now_ns: int) -> None:
    """The kernel's own controller, which is there, and those of hosts go on; all hosts have just been heard."""
    for record in kept.controllers:
        if record.cntlid == PRIMARY:
            made = subsystem.controllers[PRIMARY]
        else:
            made = subsystem.add_controller(
                record.host, record.host_id, record.port, (ADMIN_TABLE, IO_TABLE), cntlid=record.cntlid
            )
            made.queue_limit = QUEUES_MAX
            made.seen_ns = now_ns
        resume(made, record)
