"""Parameters of the server."""

from __future__ import annotations

from typing import Annotated, Literal

import uxk

POOL_MIN_BYTES = 36 << 20
"""The longest request, and a few connections."""


class NbdParams(uxk.Params):
    """What ``modprobe nbd_server device=nvme0n1 unix=/run/disk.sock`` may set."""

    device: Annotated[
        str, uxk.param(max_length=1024, help="disks to export, with commas between them; without one, nothing is")
    ] = ""
    export: Annotated[
        str, uxk.param(max_length=4096, help="names of the exports; default: those of the disks")
    ] = ""  # fmt: skip
    description: Annotated[str, uxk.param(max_length=1024, help="what clients are told of the exports")] = ""
    unix: Annotated[
        str, uxk.param(max_length=107, help="path of a Unix socket, mode 0600; from the kernel's folder on")
    ] = ""
    tcp: Annotated[str, uxk.param(max_length=300, help="HOST:PORT; port 0 is any free one")] = ""
    read_only: Annotated[bool, uxk.param(help="refuse every change")] = False
    multi_conn: Annotated[bool, uxk.param(help="tell clients that several connections see one disk")] = True
    tls: Annotated[Literal["off", "allow", "require"], uxk.param(help="what becomes of clients without TLS")] = "off"
    tls_cert: Annotated[str, uxk.param(max_length=4096, help="PEM file of the server's certificate chain")] = ""
    tls_key: Annotated[str, uxk.param(max_length=4096, help="PEM file of its key, if that is another file")] = ""
    tls_ca: Annotated[str, uxk.param(max_length=4096, help="PEM file: clients must show a certificate of it")] = ""
    pool: Annotated[
        int, uxk.param(ge=POOL_MIN_BYTES, le=1 << 40, unit="bytes", help="memory for data under way")
    ] = 96 << 20  # fmt: skip
    connections: Annotated[int, uxk.param(ge=1, le=4096, help="clients at a time")] = 64
    per_address: Annotated[
        int, uxk.param(ge=0, le=4096, help="of those from one address over TCP; 0: three quarters of them")
    ] = 0  # fmt: skip
    requests: Annotated[int, uxk.param(ge=1, le=1024, help="requests under way of one connection")] = 128
    depth: Annotated[int, uxk.param(ge=1, le=1024, help="requests under way at one disk")] = 256
    handshake_ns: Annotated[
        int, uxk.param(ge=1_000_000, le=3_600_000_000_000, unit="ns", help="time to ask for an export in")
    ] = 10_000_000_000  # fmt: skip
    stall_ns: Annotated[
        int, uxk.param(ge=1_000_000, le=3_600_000_000_000, unit="ns",
                       help="time after which one who holds memory and does not get on gives way to one who waits"),
    ] = 5_000_000_000  # fmt: skip
    spin_ns: Annotated[
        int, uxk.param(ge=0, le=1_000_000, unit="ns", help="how long to look for the next request before sleeping")
    ] = 50_000  # fmt: skip
