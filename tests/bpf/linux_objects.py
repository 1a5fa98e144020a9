"""Exported objects in the running kernel: the example's loader, and bpftool."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "bpf"
BPFTOOL = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def example(name: str) -> ModuleType:
    """A module out of examples/bpf."""
    spec = importlib.util.spec_from_file_location(f"bpf_example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_bpftool(linux: ModuleType, folder: Path, data: bytes) -> int:
    """The descriptor of what bpftool made of an object; ``linux`` is the example."""
    if BPFTOOL is None:
        pytest.skip("there is no bpftool")
    path = folder / "p"
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            [BPFTOOL, "prog", "load", file.name, path], check=False, timeout=60, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    descriptor = int(linux.pinned(str(path)))
    path.unlink()
    return descriptor
