"""A module in Python that the kernel's process never imports: its manifest is a TOML file, its program this Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import uxk
from uxk.core.cost import ClockKind
from uxk.errors import ProbeError

MODULE = """
from typing import Annotated

import trio
import uxk


class StrangerParams(uxk.Params):
    times: Annotated[int, uxk.param(ge=1, le=9)] = 1


class Stranger(uxk.Extension[StrangerParams]):
    manifest = uxk.Manifest(name="stranger", params=StrangerParams)

    async def run(self, ctx):
        async for requests in ctx.batches():
            for request in requests:
                await ctx.sleep_ns(int(ctx.random("delays").integers(100)))
                ctx.complete(request, request.payload * self.params.times)
"""
MANIFEST = """
name = "stranger"
exec = ["{python}", "-m", "uxk.actor.attach", "{file}"]

[params.times]
type = "int"
ge = 1
le = 9
default = 1
"""


def written(folder: Path, text: str) -> tuple[Path, Path]:
    """The module, and the manifest that names it."""
    file, manifest = folder / "stranger.py", folder / "stranger.toml"
    file.write_text(text)
    manifest.write_text(MANIFEST.format(python=sys.executable, file=file.name))
    return file, manifest


@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_it_runs_as_any_other_and_nothing_of_it_is_imported_here(tmp_path: Path, clock: ClockKind) -> None:
    file, manifest = written(tmp_path, MODULE)

    async def run(source: Path) -> str:
        async with uxk.Kernel(seed=3, clock=clock) as kernel:
            module = await kernel.insmod(source, times=3)
            for _ in range(5):
                assert (await module.submit(b"ab")).payload == b"ababab"
            await kernel.rmmod("stranger")
        return kernel.event_hash()

    before = set(sys.modules)
    found = await run(manifest)
    assert not [name for name in set(sys.modules) - before if "stranger" in name or "attach" in name]
    if clock == "virtual":
        assert found == await run(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import uxk\n", "0 extensions, expected one"),
        ("raise ValueError('as asked')\n", "ValueError in import: as asked"),
        (MODULE.replace("times:", "often:"), "times"),
        ("import os\nos._exit(3)\n", "Exited in process: status 3"),
    ],
)
async def test_what_is_wrong_with_it_is_told(tmp_path: Path, text: str, told: str) -> None:
    _, manifest = written(tmp_path, text)
    async with uxk.Kernel() as kernel:
        with pytest.raises(ProbeError, match=told):
            await kernel.insmod(manifest)
        assert kernel.lsmod() == []
