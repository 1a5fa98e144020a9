"""Texts of the files that ``uxk new`` writes beside the module itself; the module is a copy of a template module."""

from __future__ import annotations

from typing import Final

PYPROJECT: Final = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "uxk-{dashed}"
version = "0.1.0"
description = "A loadable {kind} for uxk"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["uxk>=0.1"]

[project.optional-dependencies]
test = ["pytest>=8", "pytest-trio>=0.8"]

# How `modprobe {name}` finds it, once this project is installed.
[project.entry-points."uxk.modules"]
{name} = "uxk_{name}:{cls}"

[tool.hatch.build.targets.wheel]
packages = ["uxk_{name}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
trio_mode = true

[tool.ruff]
line-length = 120

[tool.mypy]
strict = true
"""

_TEST: Final = '''\
"""What {name} does, and the rules that every module obeys."""

from __future__ import annotations

import pytest
import uxk
from uxk.testing import Check, all_checks, boot, subject

from uxk_{name} import {cls}

{body}

@pytest.mark.parametrize("check", all_checks(), ids=lambda check: str(check.__name__))
def test_conformance(check: Check) -> None:
    check(subject({cls}))
'''

_DRIVER_BODY: Final = """
async def test_reads_give_zeros() -> None:
    async with boot() as kernel:
        device = await kernel.insmod({cls}, size="1MiB")
        await device.submit(b"x" * 512, opcode=uxk.Op.WRITE)
        reply = await device.submit(opcode=uxk.Op.READ, length=512)
        assert reply.payload == bytes(512)


async def test_refuses_what_lies_beyond_the_end() -> None:
    async with boot() as kernel:
        device = await kernel.insmod({cls}, size="1MiB")
        with pytest.raises(uxk.RequestError, match="EINVAL"):
            await device.submit(opcode=uxk.Op.READ, offset=1 << 20, length=1)
"""

_EXTENSION_BODY: Final = """
async def test_echoes() -> None:
    async with boot() as kernel:
        module = await kernel.insmod({cls})
        reply = await module.submit(b"abc", opcode=uxk.Op.CALL)
        assert reply.payload == b"abc"
        assert kernel.sysfs.read("/sys/module/{name}/attributes/served") == "1"


async def test_char_device_gives_back_what_was_written() -> None:
    async with boot() as kernel:
        await kernel.insmod({cls})
        await kernel.run()
        async with await kernel.open("/dev/{name}") as file:
            assert await file.write(b"hello") == 5
            assert await file.read() == b"hello"
"""

TESTS: Final = {
    "driver": _TEST.replace("{body}", _DRIVER_BODY),
    "extension": _TEST.replace("{body}", _EXTENSION_BODY),
}
"""Test file by kind; fields are ``name`` and ``cls``."""

DOCSTRINGS: Final = {
    "driver": '"""{name}: a block driver, begun as a copy of uxk\'s null device.  Say here what it drives."""',
    "extension": '"""{name}: an extension, begun as a copy of uxk\'s echo.  Say here what it does."""',
}
"""First line of the module by kind."""
