"""Whether a kernel in another process still lives."""

from __future__ import annotations

from pathlib import Path

from uxk.bridges.control_client import ControlClient
from uxk.errors import UxkError


async def wait_gone(path: str | Path) -> None:
    """Returns when the kernel that listens at ``path`` shuts down, is killed, or is gone already.

    A connection of its own follows no level of the log: nothing is ever sent on it but its end.
    """
    try:
        async with ControlClient(path) as kernel:
            async for _ in await kernel.follow(0, oldest=False):
                pass
    except UxkError:
        return
