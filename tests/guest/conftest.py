"""One guest for all tests; skipped, with the reason, where qemu, the kernel package or a program is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for guestbox, which is no test

from guestbox.image import NotHere
from guestbox.machine import Guest


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A booted stock kernel."""
    try:
        machine = Guest(tmp_path_factory.mktemp("guest"))
    except NotHere as exc:
        pytest.skip(str(exc))
    with machine:
        yield machine
