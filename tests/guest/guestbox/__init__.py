"""A stock Debian kernel in QEMU's software emulation, and a uxk kernel beside it that exports disks to it."""

from __future__ import annotations
