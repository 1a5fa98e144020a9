"""Lets the tests here import ``bpf_cases``; the running kernel, where it answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from linux_judge import Judge

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def linux() -> ModuleType:
    """The example that speaks bpf(2)."""
    from linux_answers import why_not
    from linux_objects import example

    if why := why_not():
        pytest.skip(why)
    return example("linux")


@pytest.fixture(scope="module")
def strict() -> Iterator[Judge]:
    """The running kernel without privileges beyond loading programs."""
    from linux_judge import Judge

    try:
        judge = Judge()
    except OSError as exc:
        pytest.skip(f"bpf(2) does not answer here: {exc}")
    with judge:
        yield judge


@pytest.fixture
def folder(linux: ModuleType) -> Iterator[Path]:
    """A folder where bpftool may pin."""
    home = Path("/sys/fs/bpf") / f"uxk-test-{os.getpid()}"
    try:
        home.mkdir()
    except OSError:
        mounted = subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("there is no bpf file system")
        home.mkdir()
    yield home
    for path in home.iterdir():
        path.unlink()
    home.rmdir()
