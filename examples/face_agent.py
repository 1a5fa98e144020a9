"""One agent, three faces: a kernel in this process, the same over its socket, and a folder with a copy of its tree.

    python examples/face_agent.py

The agent knows paths and nothing else.  It finds the module that logs most and halves the depth of its queue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import trio

import uxk
from uxk.bridges.control_server import ControlServer


class DiskParams(uxk.Params):
    depth: Annotated[int, uxk.param(ge=1, writable=True, help="requests at a time")] = 32
    errors: Annotated[int, uxk.param(ge=0, help="lines to complain with")] = 0


class Disk(uxk.Extension[DiskParams]):
    manifest = uxk.Manifest(name="disk", version="1.0", license="Apache-2.0", params=DiskParams)

    def setup(self, ctx: uxk.Context) -> None:
        for number in range(self.params.errors):
            ctx.log(f"error {number}", level=4)


async def agent(face: uxk.Face) -> str:
    names = await face.listdir("/sys/module")
    lines = {name: int(await face.read_text(f"/sys/module/{name}/statistics/log_lines")) for name in names}
    worst = max(names, key=lambda name: lines[name])
    knob = f"/sys/module/{worst}/parameters/depth"
    before = int(await face.read_text(knob))
    await face.write_text(knob, str(before // 2))
    return f"{worst} logged {lines[worst]} lines: depth {before} -> {await face.read_text(knob)}"


async def main(folder: Path) -> None:
    async with uxk.Kernel(seed=1) as kernel, trio.open_nursery() as nursery:
        await kernel.insmod(Disk, instance="quiet", errors=1)
        await kernel.insmod(Disk, instance="noisy", errors=3)
        here = uxk.MemoryFace(kernel)
        for path, stat in await here.walk("/sys/module"):
            copy = trio.Path(f"{folder}{path}")
            await (copy.mkdir(parents=True) if stat.kind == "dir" else copy.write_bytes(await here.read(path)))
        print("memory:", await agent(here))
        await nursery.start(ControlServer(kernel, folder / "socket").serve)
        async with uxk.SocketFace(folder / "socket") as there:
            print("socket:", await agent(there))
        print("folder:", await agent(uxk.FolderFace(folder, writable=True)))
        nursery.cancel_scope.cancel()


with tempfile.TemporaryDirectory() as name:
    trio.run(main, Path(name))
