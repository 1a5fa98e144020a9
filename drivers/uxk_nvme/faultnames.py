"""Names of opcodes and statuses in the language of faults."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal, TypeAlias

from uxk_nvme.spec import Admin, Io, Vendor

Scope: TypeAlias = Literal["io", "admin", "any"]


def _names(kind: type[IntEnum], prefix: str = "") -> dict[str, int]:
    return {prefix + word.name.lower().replace("namespace", "ns").replace("_", "-"): int(word) for word in kind}


IO_OPCODES: Final[Mapping[str, int]] = _names(Io)
ADMIN_OPCODES: Final[Mapping[str, int]] = {
    **_names(Admin), **_names(Vendor, "vendor-"), "fw-commit": 0x10, "fw-download": 0x11, "self-test": 0x14,
}  # fmt: skip
"""NVMe base specification 2.0, figure 138."""
STATUS: Final[Mapping[str, int]] = {
    "invalid-opcode": 0x001, "invalid-field": 0x002, "data-transfer-error": 0x004, "power-loss-abort": 0x005,
    "internal-error": 0x006, "aborted": 0x007, "invalid-namespace": 0x00B, "sequence-error": 0x00C,
    "sanitize-in-progress": 0x01D, "write-protected": 0x020, "command-interrupted": 0x021,
    "transient-transport-error": 0x022, "lba-out-of-range": 0x080, "capacity-exceeded": 0x081,
    "namespace-not-ready": 0x082, "reservation-conflict": 0x083, "format-in-progress": 0x084,
    "write-fault": 0x280, "media-error": 0x281, "guard-check-error": 0x282, "app-tag-check-error": 0x283,
    "ref-tag-check-error": 0x284, "compare-failure": 0x285, "access-denied": 0x286, "unwritten-block": 0x287,
    "internal-path-error": 0x300, "ana-persistent-loss": 0x301, "ana-inaccessible": 0x302, "ana-transition": 0x303,
    "controller-path-error": 0x360, "host-path-error": 0x370, "host-aborted": 0x371,
}  # fmt: skip
"""Status code type and code, ``SCT << 8 | SC`` (base specification 2.0, figures 94 to 101)."""


def opcode_name(code: int, scope: Scope) -> str:
    """An opcode's name among the commands of ``scope``, or its number as ``0x81``."""
    names = {"io": IO_OPCODES, "admin": ADMIN_OPCODES, "any": {}}[scope]
    return next((name for name, number in names.items() if number == code), f"0x{code:02x}")


def status_name(status: int) -> str:
    """A status's name, or its number as ``0x281``."""
    return next((name for name, number in STATUS.items() if number == status), f"0x{status:03x}")
