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

ML_AGENT: Final = """\
{docstring}

from __future__ import annotations

import uxk


class {cls}(uxk.MLAgent):
    \"""Learns from the model `{name}0`, and advises its site `{name}0.site`: write down your own names.\"""

    manifest = uxk.Manifest(name="{name}", version="0.1.0", license="Apache-2.0")
    model = "{name}0"
    sites = ("{name}0.site",)

    def setup(self, ctx: uxk.Context) -> None:
        \"""Any object with `learn_one` and `predict_one` will do; river's models go by their names.\"""
        self.cost = uxk.online("linear_model.LinearRegression", intercept_lr=0.1)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        \"""Here the first column is what is to be predicted, and the others are what it depends on.\"""
        target, *names = dataset.columns
        for row in dataset.features():
            self.cost.test_then_learn({{name: row[name] for name in names}}, row[target])
        ctx.set_attribute("error", round(self.cost.error))  # /sys/module/{name}/attributes/error
        ctx.set_attribute("naive_error", round(self.cost.naive_error))

    def recommend(self, ctx: uxk.Context, site: str) -> bytes | None:
        \"""A payload as the site wants it; None as long as there is nothing better than what came last.\"""
        return b"go" if self.cost.error < self.cost.naive_error else None

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        \"""What became of each hint: learn from it, or from why it was refused.\"""
        if feedback.reject:
            ctx.set_attribute("refused", feedback.reject)
"""
"""An ml-agent; fields are ``docstring``, ``name`` and ``cls``."""

_ML_AGENT_BODY: Final = """
@pytest.mark.parametrize(("count", "advised"), [(1, False), (200, True)])
async def test_advises_once_it_beats_a_naive_guess(count: int, advised: bool) -> None:
    async with boot() as kernel:
        proxy = kernel.create_model("demo", "{name}0")
        data = proxy.dataset("samples", [("cost", "<u4"), ("load", "<u4")], capacity=200)
        site = proxy.site("{name}0.site", check=lambda payload: "" if payload == b"go" else "malformed")
        await kernel.insmod({cls})
        data.append([(3 * load, load) for load in (step * 7 % 10 for step in range(count))])
        data.publish()
        await kernel.run_until_ns(kernel.now_ns)
        assert (site.standing(kernel.now_ns) is not None) == advised
        assert (kernel.sysfs.read("/sys/module/{name}/attributes/naive_error") != "0") == advised
"""

TESTS: Final = {
    "ml-agent": _TEST.replace("import pytest\nimport uxk\n", "import pytest\n").replace("{body}", _ML_AGENT_BODY),
    "driver": _TEST.replace("{body}", _DRIVER_BODY),
    "extension": _TEST.replace("{body}", _EXTENSION_BODY),
}
"""Test file by kind; fields are ``name`` and ``cls``."""

DOCSTRINGS: Final = {
    "ml-agent": '"""{name}: an agent that learns online.  Say here what it learns, and what it recommends."""',
    "driver": '"""{name}: a block driver, begun as a copy of uxk\'s null device.  Say here what it drives."""',
    "extension": '"""{name}: an extension, begun as a copy of uxk\'s echo.  Say here what it does."""',
}
"""First line of the module by kind."""
