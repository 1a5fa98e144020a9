"""Builds that an agent recommends: checked, swapped in, judged by a KPI, rolled back if that gets worse."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

import uxk
from uxk.testing import crash

MS = 1_000_000


class Constants(uxk.Params):
    wait_ns: Annotated[int, uxk.param(ge=1, le=1_000_000)] = 10_000


class Worker(uxk.Extension):
    """Takes a time that is baked in."""

    manifest = uxk.Manifest(name="re_worker", version="0")
    wait_ns = 10_000

    def setup(self, ctx: uxk.Context) -> None:
        self.served = 0

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.served += len(requests)
        ctx.call_later_ns(self.wait_ns, lambda _: ctx.complete_batch(requests))

    def checkpoint(self) -> bytes:
        return b"%d" % self.served

    def restore(self, data: bytes) -> None:
        self.served = int(data)


def baked(constants: Constants) -> type[uxk.Extension]:
    """The same code, with another constant in it."""
    manifest = uxk.Manifest(name="re_worker", version=str(constants.wait_ns))
    return type("Baked", (Worker,), {"manifest": manifest, "wait_ns": constants.wait_ns})


class Adviser(uxk.Extension):
    """Recommends what it is told to, and publishes what became of it."""

    manifest = uxk.Manifest(
        name="re_adviser", kind="ml-agent", capabilities=("module:re_worker:submit",),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.set_attribute("module", "re_worker", writable=True)
        ctx.set_attribute("wait_ns", "", writable=True)
        self.module, self.heard = "re_worker", 0

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.name == "module":
            self.module = event.value.decode()
        elif event.topic == "store":
            reply = ctx.recommend_build(self.module, {"wait_ns": event.value.decode()}, why="a hunch")
            reply.then(lambda done: self.settled(ctx, done))

    def settled(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.heard += 1
        status = errno.errorcode.get(done.status, "0")
        ctx.set_attribute("answer", f"{self.heard} {status} {done.payload.decode()}")


def loaded(kernel: uxk.Kernel) -> None:
    """A closed loop of requests, until 200 ms."""

    def on_answers(completions: list[uxk.Completion]) -> None:
        answers.extend(completion.status for completion in completions)
        if kernel.now_ns < 200 * MS:
            port.submit_batch([uxk.Request(0) for _ in completions])

    answers: list[int] = []
    port = kernel.module("re_worker").open_port(on_answers)
    port.submit_batch([uxk.Request(0) for _ in range(4)])


async def recommended(kernel: uxk.Kernel, wait_ns: int | str) -> str:
    kernel.sysfs.write("/sys/module/re_adviser/attributes/wait_ns", str(wait_ns))
    await kernel.sleep_ns(30 * MS)
    return kernel.sysfs.read("/sys/module/re_adviser/attributes/answer").strip()


async def test_a_better_build_stays_and_a_worse_one_goes() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        worker = await kernel.insmod(Worker)
        await kernel.insmod(Adviser)
        kernel.builds.offer("re-worker", baked, Constants, interval_ns=MS)
        loaded(kernel)
        await kernel.sleep_ns(MS)
        assert await recommended(kernel, 5000) == "1 0"
        assert worker.manifest.version == "5000"
        answer = await recommended(kernel, 6000)
        assert answer == "2 ECANCELED rolled back: KPI 5000 -> 6000, more than 100000 ppm worse"
        assert worker.manifest.version == "5000" and worker.account.failed == 0
        kernel.builds.withdraw("re_worker")
        assert (await recommended(kernel, 5)).startswith("3 ENODEV")
        lines = [record.text for record in kernel.kmsg.records(source="re_worker")]
        assert "build with wait_ns=5000 by re_adviser: a hunch" in lines
        await kernel.run_until_ns(201 * MS)


@pytest.mark.parametrize(
    ("module", "wait_ns", "answer"),
    [
        ("re_worker", 0, "EINVAL build of re_worker: wait_ns='0': expected int >= 1"),
        ("re_other", 5, "EACCES build of re_other: re_adviser's manifest does not ask for module:re_other:submit"),
        ("re_worker", 7, "ENOEXEC build of re_worker: ValueError: no such luck"),
        ("re_worker", 8, "ECANCELED"),
        ("re_worker", 9, "EINVAL re_worker: module re_else, expected re_worker"),
    ],
)
async def test_what_is_no_build_of_it_is_refused(module: str, wait_ns: int, answer: str) -> None:
    def build(constants: Constants) -> type[uxk.Extension]:
        if constants.wait_ns == 7:
            raise ValueError("no such luck")
        if constants.wait_ns == 8:
            return type("Dead", (Worker,), {"manifest": Worker.manifest, "setup": lambda self, ctx: 1 / 0})
        return type("Else", (Worker,), {"manifest": uxk.Manifest(name="re_else")})

    async with uxk.Kernel() as kernel:
        worker = await kernel.insmod(Worker)
        await kernel.insmod(Adviser)
        kernel.builds.offer("re_worker", build, Constants)
        kernel.sysfs.write("/sys/module/re_adviser/attributes/module", module)
        assert (await recommended(kernel, wait_ns)).startswith(f"1 {answer}")
        assert worker.manifest.version == "0" and kernel.machine.outstanding == 0
        await worker.submit()


async def test_too_soon_and_while_one_is_tried() -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(Worker)
        await kernel.insmod(Adviser)
        kernel.builds.offer("re_worker", baked, Constants, interval_ns=100 * MS)
        kernel.sysfs.write("/sys/module/re_adviser/attributes/wait_ns", "5")
        await kernel.sleep_ns(MS)
        assert (await recommended(kernel, 6)).startswith("2 0")
        assert (await recommended(kernel, 7)).startswith("3 EAGAIN")


async def test_an_adviser_that_dies_is_not_told() -> None:
    async with uxk.Kernel() as kernel:
        worker = await kernel.insmod(Worker)
        await kernel.insmod(Adviser)
        kernel.builds.offer("re_worker", baked, Constants)
        kernel.sysfs.write("/sys/module/re_adviser/attributes/wait_ns", "5")
        await kernel.sleep_ns(MS)
        crash(kernel, "re_adviser")
        await kernel.run()
        assert worker.manifest.version == "5" and kernel.machine.outstanding == 0
        assert not kernel.sysfs.exists("/sys/module/re_adviser/attributes/answer")


async def test_a_builder_may_name_a_file(tmp_path: Path) -> None:
    def build(constants: Constants) -> Path:
        path = tmp_path / f"worker{constants.wait_ns}.py"
        path.write_text(
            f"import uxk\nclass W(uxk.Extension):\n    manifest = uxk.Manifest(name='re_worker', "
            f"version='{constants.wait_ns}')\n    def restore(self, data): pass\n"
        )
        return path

    async with uxk.Kernel() as kernel:
        worker = await kernel.insmod(Worker)
        await kernel.insmod(Adviser)
        kernel.builds.offer("re_worker", build, Constants)
        assert await recommended(kernel, 12) == "1 0" and worker.manifest.version == "12"


async def test_offers_are_checked() -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(uxk.UsageError, match="builds of 're_worker': not loaded"):
            kernel.builds.offer("re_worker", baked, Constants)
        await kernel.insmod(Worker)
        wrong: dict[str, Any]
        for wrong in ({"kpi": "speed"}, {"probation_ns": -1}):
            with pytest.raises(uxk.UsageError):
                kernel.builds.offer("re_worker", baked, Constants, **wrong)
