"""Datasets that a driver makes when somebody asks, models that wait for their start, attributes of devices."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import trio

import uxk
from uxk.errors import TreeError
from uxk.testing import boot, crash, residue
from uxk.uapi.ml import ModelCommand, decode_dataset

MODEL = "/sys/kernel/ml/maker/maker0-pick"
DEVICE = "/sys/class/misc/maker0"


class Maker(uxk.Extension):
    """Counts up for whoever asks."""

    manifest = uxk.Manifest(
        name="maker", capabilities=("model:maker0-*:read",), restart=uxk.RestartPolicy(mode="permanent")
    )
    ctx: ClassVar[uxk.Context]
    answers: ClassVar[list[uxk.Completion]]
    fail: ClassVar[str] = ""
    lazy: ClassVar[bool] = False
    asked: ClassVar[int]

    def setup(self, ctx: uxk.Context) -> None:
        type(self).answers, type(self).asked, type(self).ctx = [], 0, ctx
        ctx.offer_site(
            "maker0.pick", schema=(("n", "<u2"),), rows_max=4, start=False, on_demand=True
        ).then(self.answers.append)  # fmt: skip
        ctx.offer_site("maker0.state", schema=(("n", "<u2"),)).then(self.answers.append)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "prepare":
            type(self).asked += 1
            if not self.lazy:
                self.answer(ctx)

    def answer(self, ctx: uxk.Context) -> None:
        rows = b"" if self.fail else bytes([self.asked, 0] * 4)
        ctx.fill_dataset("maker0.pick", rows, failed=self.fail).then(self.answers.append)

    async def run(self, ctx: uxk.Context) -> None:  # so that the kernel hears what the tests have it say
        await trio.sleep_forever()


@pytest.fixture
async def kernel() -> AsyncIterator[uxk.Kernel]:
    Maker.fail, Maker.lazy = "", False
    async with boot(seed=1) as booted:
        await booted.insmod(Maker)
        yield booted


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(1)
    assert reply.completion is not None
    return reply.completion


def pull(offset: int = 0, size: int = 0) -> uxk.Reply:
    return Maker.ctx.model("maker0-pick", ModelCommand.GET_DATASET, "rows", offset=offset, size=size)


def state(kernel: uxk.Kernel) -> str:
    return kernel.sysfs.read(f"{MODEL}/datasets/rows/state")


async def test_a_model_waits_for_its_start_and_stands_in_its_device(kernel: uxk.Kernel) -> None:
    tree = kernel.sysfs
    assert tree.canonical(f"{DEVICE}/pick") == MODEL
    assert [tree.read(f"{MODEL}/{name}") for name in ("state", "mode")] == ["initialized", "emergency"]
    tree.write(f"{DEVICE}/pick/control", "start")
    assert [tree.read(f"{MODEL}/{name}") for name in ("state", "mode")] == ["started", "learning"]
    # A device has an attribute "state": the model of that name is in its own place only.
    assert tree.read(f"{DEVICE}/state") == "open"
    assert tree.read("/sys/kernel/ml/maker/maker0-state/state") == "started"
    await kernel.rmmod("maker")
    assert residue(kernel) == {}


async def test_rows_are_made_when_they_are_asked_for(kernel: uxk.Kernel) -> None:
    kernel.sysfs.write(f"{MODEL}/control", "start")
    kernel.sysfs.write(f"{MODEL}/control", "prepare_dataset")
    assert state(kernel) == "allocated"
    await kernel.run()
    assert (Maker.asked, state(kernel)) == (1, "clean")
    done = await ask(kernel, pull(0, 2))
    view = Maker.ctx.map(done.result)
    assert decode_dataset(done.payload).portion_size == 2
    assert bytes(view[:2]) == b"\x01\x00"
    kernel.sysfs.write(f"{MODEL}/control", "discard_dataset")
    assert (await ask(kernel, pull())).status == errno.EAGAIN
    await kernel.run()
    assert (Maker.asked, state(kernel)) == (2, "clean")


async def test_they_are_asked_for_once_until_they_come(kernel: uxk.Kernel) -> None:
    Maker.lazy = True
    kernel.sysfs.write(f"{MODEL}/control", "start")
    for _ in range(3):
        kernel.sysfs.write(f"{MODEL}/control", "prepare_dataset")
        assert (await ask(kernel, pull())).status == errno.EAGAIN
    assert Maker.asked == 1
    assert (await ask(kernel, Maker.ctx.fill_dataset("maker0.pick", bytes(8)))).result == 1
    kernel.sysfs.write(f"{MODEL}/control", "prepare_dataset")
    await kernel.run()
    assert Maker.asked == 2


async def test_it_may_fail_to_make_them(kernel: uxk.Kernel) -> None:
    Maker.fail = "no light"
    kernel.sysfs.write(f"{MODEL}/control", "start")
    kernel.sysfs.write(f"{MODEL}/control", "prepare_dataset")
    await kernel.run()
    assert state(kernel) == "extraction_failure"
    Maker.fail = ""
    kernel.sysfs.write(f"{MODEL}/control", "prepare_dataset")
    await kernel.run()
    assert state(kernel) == "clean"


@pytest.mark.parametrize(
    ("site", "rows", "status"),
    [("maker0.pick", b"odd", errno.EINVAL), ("maker0.none", b"", errno.ENODEV), ("maker0.state", b"", errno.EINVAL)],
)
async def test_only_rows_that_were_promised_are_taken(kernel: uxk.Kernel, site: str, rows: bytes, status: int) -> None:
    assert (await ask(kernel, Maker.ctx.fill_dataset(site, rows))).status == status


async def test_attributes_of_a_device(kernel: uxk.Kernel) -> None:
    tree = kernel.sysfs
    Maker.ctx.set_attribute("maker0/colour", "red", writable=True)
    Maker.ctx.set_attribute("maker0/uevent", "taken")
    Maker.ctx.set_attribute("other0/colour", "red")
    Maker.ctx.set_attribute("plain", "1")
    await kernel.run()
    assert tree.read(f"{DEVICE}/colour") == "red"
    assert "taken" not in tree.read(f"{DEVICE}/uevent")
    woken: list[int] = []
    tree.poll(f"{DEVICE}/colour", lambda: woken.append(1))
    Maker.ctx.set_attribute("maker0/colour", "blue")
    await kernel.run()
    assert (tree.read(f"{DEVICE}/colour"), woken) == ("blue", [1])
    crash(kernel, "maker")
    with pytest.raises(TreeError):  # it goes with those who publish it; the device stays
        tree.read(f"{DEVICE}/colour")
    assert tree.exists(f"{DEVICE}/uevent")
    await kernel.sleep_ns(10**9)
    Maker.ctx.set_attribute("maker0/colour", "green")
    await kernel.run()
    assert tree.read(f"{DEVICE}/colour") == "green"
    assert tree.canonical(f"{DEVICE}/pick") == MODEL
    await kernel.rmmod("maker")
    assert residue(kernel) == {}
