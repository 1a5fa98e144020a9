"""Pytest fixtures for authors of modules.

Name this file in your top ``conftest.py``: ``pytest_plugins = ["uxk.testing.fixtures"]``.  Needs pytest-trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_trio  # type: ignore[import-untyped]

from uxk.kernel.kernel import Kernel
from uxk.testing.kernels import boot


@pytest_trio.trio_fixture  # type: ignore[untyped-decorator,unused-ignore]
async def kernel() -> AsyncIterator[Kernel]:
    """A booted kernel, virtual clock, seed 7; shut down when the test ends."""
    async with boot() as booted:
        yield booted
