"""Every hostile extension, beside a good one: the kernel survives, the good one is served, nothing is left."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio

import uxk
from uxk.errors import ProbeError, RequestError, RingFull, UxkError
from uxk.testing import Ledger, boot, residue, unload_all
from uxk.testing.hostile import HOSTILE, UNLOADABLE, Hostile
from uxk.testing.subject import expect_no_bugs
from uxk.testing.traffic import ordinary


class Bystander(uxk.Extension[uxk.Params]):
    """Wants nothing but to serve."""

    manifest = uxk.Manifest(name="bystander", version="1", license="Apache-2.0")

    def on_batch(self, ctx: uxk.Context, requests: Any) -> None:
        for request in requests:
            ctx.complete(request, request.payload)


async def provoke(kernel: uxk.Kernel, cls: type[uxk.Extension[Any]]) -> None:
    """Loads it, asks it things until it has had its moment, and lets time pass."""
    name = cls.manifest.name
    try:
        await kernel.insmod(cls)
    except ProbeError:
        assert cls in UNLOADABLE
        assert name not in kernel.agents
        return
    assert cls not in UNLOADABLE
    for _ in range(4):
        if name not in kernel.agents:
            break  # its restarts are used up
        for attribute in ("knob",):
            path = f"/sys/module/{name}/attributes/{attribute}"
            if kernel.sysfs.exists(path):
                kernel.sysfs.write(path, "1")
        ledger = Ledger(kernel, name)
        with suppress(RequestError):  # down, with fate "fail"
            ledger.submit(ordinary(8))
        await ledger.settle()
        assert not ledger.problems()
        await kernel.sleep_ns(10_000_000)
        ledger.port.close()


@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_survived(cls: type[uxk.Extension[Any]]) -> None:
    async def main() -> str:
        async with boot() as kernel:
            good = await kernel.insmod(Bystander)
            await provoke(kernel, cls)
            replies = await good.submit_batch(ordinary(16))
            assert [reply.status for reply in replies] == [0] * 16
            digest = kernel.event_hash()
            await unload_all(kernel)
            assert residue(kernel) == {}
        expect_no_bugs(kernel)
        return digest

    assert trio.run(main) == trio.run(main), "an extension's misbehaviour must not make a run irreproducible"


def test_survived_all_together() -> None:
    async def main() -> None:
        async with boot(seed=11) as kernel:
            good = await kernel.insmod(Bystander)
            loaded = []
            for cls in HOSTILE:
                try:
                    loaded.append((await kernel.insmod(cls)).name)
                except UxkError:
                    assert cls in UNLOADABLE
            ledgers = [Ledger(kernel, name) for name in loaded if name in kernel.agents]
            for _ in range(3):
                for ledger in ledgers:
                    try:
                        ledger.submit(ordinary(4))
                    except (RequestError, RingFull):
                        continue
                await kernel.sleep_ns(2_000_000)
                replies = await good.submit_batch(ordinary(16))
                assert [reply.status for reply in replies] == [0] * 16
            for ledger in ledgers:
                await ledger.settle()
                assert not ledger.problems()
                ledger.port.close()
            await unload_all(kernel)
            assert residue(kernel) == {}
        expect_no_bugs(kernel)

    trio.run(main)


def test_every_hostile_class_is_listed() -> None:
    def subclasses(cls: type) -> set[type]:
        return {cls} | {sub for child in cls.__subclasses__() for sub in subclasses(child)}

    assert subclasses(Hostile) - {Hostile} == set(HOSTILE)
