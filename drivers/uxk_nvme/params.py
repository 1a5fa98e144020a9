"""Parameters of the module: the medium's, and those of the controller."""

from __future__ import annotations

from typing import Annotated

import uxk
from uxk_nvme.medium import MediumParams


class NvmeParams(MediumParams):
    """What ``modprobe nvme size=1GiB medium=simple`` may set."""

    namespaces: Annotated[int, uxk.param(ge=1, le=32, help="namespaces at first, of equal size")] = 1
    namespace_bytes: Annotated[
        int, uxk.param(ge=0, le=1 << 50, unit="bytes", help="size of each of them; 0: all together take everything")
    ] = 0
    queues: Annotated[int, uxk.param(ge=1, le=16, help="I/O queue pairs of the kernel's own controller")] = 2
    queue_entries: Annotated[int, uxk.param(ge=2, le=4096, help="entries of an I/O queue")] = 1024
    coalesce_ns: Annotated[
        int,
        uxk.param(
            ge=0, le=10_000_000, unit="ns", writable=True,
            help="completions wait for the next multiple of it: fewer interrupts, a faster emulation; 0: none does",
        ),
    ] = 0  # fmt: skip
    serial: Annotated[
        str, uxk.param(pattern="^[ -~]{0,20}$", help="serial number, ASCII; empty: made from the seed of the run")
    ] = ""
    timeout_ns: Annotated[
        int, uxk.param(ge=1_000_000, le=14_000_000_000, unit="ns", help="a command that takes longer is aborted")
    ] = 10_000_000_000
    retries: Annotated[
        int, uxk.param(ge=0, le=100, writable=True, help="times that a failed command without DNR is tried again")
    ] = 5
