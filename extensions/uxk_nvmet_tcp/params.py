"""What ``modprobe nvmet_tcp nqn=... port=4420`` may set."""

from __future__ import annotations

from typing import Annotated

import uxk

NQN_MAX_BYTES = 223
"""Longest NVMe qualified name (NVMe base specification, 4.5)."""


class NvmetTcpParams(uxk.Params):
    """Parameters of the NVMe/TCP export; types and bounds are checked."""

    device: Annotated[str, uxk.param(help="controller device to export, such as nvme0; without one, nothing is")] = ""
    host: Annotated[str, uxk.param(help="address to listen on; empty for all")] = "127.0.0.1"
    port: Annotated[int, uxk.param(ge=0, le=65535, help="TCP port; 0 for any that is free")] = 4420
    nqn: Annotated[
        str, uxk.param(pattern="^nqn[.]", max_length=NQN_MAX_BYTES, help="NVMe qualified name of the subsystem")
    ] = "nqn.2026-11.example.uxk:nvme0"
    allow: Annotated[
        str, uxk.param(writable=True, help="NQNs of the hosts that may connect, with commas; empty: all")
    ] = ""
    advertise: Annotated[
        str, uxk.param(writable=True, help="ADDRESS or ADDRESS:PORT for the discovery log; empty: as the host came in")
    ] = ""
    queues: Annotated[int, uxk.param(ge=1, le=128, help="I/O queues of each controller")] = 8
    depth: Annotated[int, uxk.param(ge=32, le=1024, help="entries of each queue")] = 128
    in_capsule: Annotated[
        int, uxk.param(ge=0, le=64 << 10, unit="bytes", help="data that an I/O command may carry in its capsule")
    ] = 4096
    connections: Annotated[int, uxk.param(ge=2, le=512, help="connections at a time")] = 64
    memory: Annotated[
        int, uxk.param(ge=1 << 18, le=1 << 30, unit="bytes", help="data in flight, divided among the connections")
    ] = 64 << 20
    digests: Annotated[bool, uxk.param(help="whether hosts may ask for header and data digests")] = True
