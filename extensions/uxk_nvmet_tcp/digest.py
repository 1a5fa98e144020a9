"""CRC32C, the polynomial of NVMe/TCP's digests (RFC 3720, appendix B.4)."""

from __future__ import annotations

from uxk_nvmet_tcp.pdu import Crc


def load_crc32c() -> Crc | None:
    """The function of package ``crc32c``, which few hosts need; None where it is not installed."""
    try:
        from crc32c import crc32c
    except ImportError:
        return None
    function: Crc = crc32c
    return function
