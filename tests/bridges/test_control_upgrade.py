"""Upgrades and supervisors over the control socket."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

import uxk
from uxk import errors
from uxk.bridges.control_client import ControlClient
from uxk.bridges.control_server import ControlServer
from uxk.uapi import control as c
from uxk.uapi.supervisor import SupervisorSpec

TEXT = """
import uxk

class Filed(uxk.Extension):
    manifest = uxk.Manifest(name="ctl_filed", version="VERSION")

    def setup(self, ctx):
        BODY
"""


def filed(folder: Path, version: str, body: str = "pass") -> Path:
    path = folder / f"v{version}.py"
    path.write_text(TEXT.replace("VERSION", version).replace("BODY", body))
    return path


async def test_upgrades_and_supervisors(tmp_path: Path) -> None:
    first, second, bad = filed(tmp_path, "1"), filed(tmp_path, "2"), filed(tmp_path, "3", "raise ValueError(3)")
    async with uxk.Kernel(seed=5) as served, trio.open_nursery() as nursery:
        await nursery.start(ControlServer(served, tmp_path / "k.sock").serve)
        async with ControlClient(tmp_path / "k.sock") as kernel:
            await kernel.insmod(first)
            hashed = served.event_hash()
            assert await kernel.upgrade("ctl_filed", str(second), probation_ns=1000) == "2"
            assert served.event_hash() != hashed
            assert await kernel.upgrade("ctl_filed") == "2"
            assert await kernel.upgrade("ctl_filed", "1", quiesce_ns=1, kpi="latency") == "1"
            with pytest.raises(errors.UpgradeError, match="rolled back: 3: ValueError in setup: 3") as caught:
                await kernel.upgrade("ctl_filed", str(bad))
            assert caught.value.errno == errno.ECANCELED
            for to, params, why in (
                ("x/y.py", {}, "expected an absolute path"), ("", {"kpi": "latency"}, "kpi: no parameter"),
                ("9", {}, "no version '9'"),
            ):  # fmt: skip
                with pytest.raises(errors.UsageError, match=why):
                    await kernel._call(c.Upgrade, str, "ctl_filed", to, params)

            await kernel.supervise(SupervisorSpec(name="top", children=("ctl_filed",)))
            with pytest.raises(errors.UsageError, match="exists already"):
                await kernel.supervise(SupervisorSpec(name="top"))
            assert await kernel.read("/sys/kernel/supervisors/top/children") == "ctl_filed"
            await kernel.unsupervise("top")
            assert "supervisors" not in {entry.name for entry in await kernel.listdir("/sys/kernel")}
        nursery.cancel_scope.cancel()
