"""The NVMe statuses that a medium answers with: status code type << 8 | status code."""

from __future__ import annotations

from typing import Final

WRITE_PROTECTED: Final = 0x020
"""The medium has become read-only."""
CAPACITY_EXCEEDED: Final = 0x081
"""The file system that holds the backing file is full."""
WRITE_FAULT: Final = 0x280
"""The data could not be committed to the medium."""
UNRECOVERED_READ: Final = 0x281
"""The data could not be recovered from the medium."""
