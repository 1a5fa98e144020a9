"""What ``modprobe nvmet_tcp nqn=... port=4420`` may set."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

import uxk

NQN_MAX_BYTES: Final = 223
"""Longest NVMe qualified name (NVMe base specification, 4.5)."""

_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}[.])*(?![0-9]+$){_LABEL}")
"""A host name (RFC 1123, 2.1); one that ends in a number would be an address."""


def hosts_of(text: str) -> frozenset[str]:
    """The host NQNs of a list with commas.  Raises ParamError."""
    hosts = frozenset(filter(None, (word.strip() for word in text.split(","))))
    for host in sorted(hosts):
        if not host.startswith("nqn.") or not host.isprintable() or len(host.encode()) > NQN_MAX_BYTES:
            raise uxk.ParamError(
                f"allow={host!r}: expected the NQNs of hosts, such as nqn.2014-08.org.nvmexpress:uuid:..., that "
                "/etc/nvme/hostnqn has (the address to listen on is parameter host, `uxk serve --tcp`)"
            )
    return hosts


def address_of(text: str) -> tuple[str, int]:
    """Address and port of ``ADDRESS``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``; empty and 0 for what is not given.

    Raises ParamError.
    """
    found = re.fullmatch(r"(?:\[([^][]*)\]|([^][:]*))(?::([0-9]{1,5}))?|([^][]*:[^][]*:[^][]*)", text)
    host = found[1] or found[2] or found[4] or "" if found else ""
    port = int(found[3] or 0) if found else 65536
    if port > 65535 or (host and not _is_host(host)):
        raise uxk.ParamError(
            f"advertise={text!r}: expected ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, with ports up to 65535"
        )
    return host, port


def _is_host(text: str) -> bool:
    """Whether it is an IP address or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return True


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
    per_address: Annotated[
        int,
        uxk.param(ge=0, le=512, help="connections of one address (IPv6: network of 64 bits); 0: half, or one host's"),
    ] = 0
    memory: Annotated[
        int, uxk.param(ge=1 << 18, le=1 << 30, unit="bytes", help="data in flight, divided among the connections")
    ] = 64 << 20
    digests: Annotated[bool, uxk.param(help="whether hosts may ask for header and data digests")] = True
