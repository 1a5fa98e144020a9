"""The kernel's tree as a real file system: ``async with mount(kernel, folder)``."""

from __future__ import annotations

from uxk.bridges.fuse.mount import Mount, mount

__all__ = ["Mount", "mount"]
