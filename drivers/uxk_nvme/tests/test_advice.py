"""The decision site of the flash, within a kernel: agents good, bad and hostile, dead and restarted."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest

import uxk
from uxk.testing import boot, crash, residue
from uxk_nvme.medium.hint import GcHint, encode_hint

SITE, MODEL = "nvme0.gc", "nvme0-gc"
ATTRIBUTES = "/sys/module/nvme/attributes"
UNITS = 1024
FLASH = {"size": "4MiB", "medium": "ftl", "cell": "slc", "precondition": "random"}
GOOD = encode_hint(GcHint("cost-benefit"))
BAD = encode_hint(GcHint("age-weighted", (-1_000_000,)))


class Advisor(uxk.MLAgent):
    """Always says the same."""

    manifest = uxk.Manifest(name="advisor", version="1.0", license="Apache-2.0")
    model, sites = MODEL, (SITE,)
    advice: ClassVar[bytes] = GOOD

    def setup(self, ctx: uxk.Context) -> None:
        self.rows: list[dict[str, Any]] = []
        self.feedback: list[uxk.Feedback] = []
        advisors.append(self)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        self.rows = list(dataset.features())

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        return self.advice

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        self.feedback.append(feedback)


advisors: list[Advisor] = []


class Turncoat(Advisor):
    """Gives good advice until it is trusted."""

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        self.trusted = getattr(self, "trusted", False) or self.mode is uxk.Mode.RECOMMENDATION
        return BAD if self.trusted else GOOD


class Writer:
    """Writes skewed, and remembers."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.draw = random.Random(1)
        self.held: dict[int, int] = {}

    async def write(self, capacities: int) -> None:
        nvme = self.kernel.module("nvme")
        for _ in range(capacities * UNITS // 64):
            batch = []
            for _ in range(64):
                unit = self.draw.randrange(UNITS // 10 if self.draw.random() < 0.9 else UNITS)
                self.held[unit] = value = self.draw.randrange(256)
                batch.append(uxk.Request(0, uxk.Op.WRITE, bytes((value,)) * 4096, unit * 4096, 4096))
            assert {answer.status for answer in await nvme.submit_batch(batch)} == {0}

    async def check(self) -> None:
        """Every unit is what was written last."""
        nvme = self.kernel.module("nvme")
        wanted = sorted(self.held)
        for at in range(0, len(wanted), 64):
            units = wanted[at : at + 64]
            answers = await nvme.submit_batch([uxk.Request(0, uxk.Op.READ, b"", u * 4096, 4096) for u in units])
            assert [a.payload for a in answers] == [bytes((self.held[u],)) * 4096 for u in units]


def shown(kernel: uxk.Kernel, name: str = "advice") -> dict[str, str]:
    lines = kernel.sysfs.read(f"{ATTRIBUTES}/{name}").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


async def settled(kernel: uxk.Kernel) -> dict[str, int]:
    """Figures of the medium as of now."""
    kernel.sysfs.write(f"{ATTRIBUTES}/refresh", "1")
    await kernel.module("nvme").submit(opcode=uxk.Op.NOP)
    return {name: int(value) for name, value in shown(kernel, "medium").items()}


def modes(kernel: uxk.Kernel) -> list[uxk.Mode]:
    return [change.new for change in kernel.models.get(MODEL).timeline]


async def test_good_advice_is_promoted_and_pays_and_no_data_are_lost() -> None:
    found = []
    for agents in ((), (Advisor,)):
        async with boot() as kernel:
            await kernel.modprobe("nvme", **FLASH)
            for agent in agents:
                await kernel.insmod(agent)
            writer = Writer(kernel)
            await writer.write(6)
            await writer.check()
            found.append((await settled(kernel))["write_amplification_ppm"])
            if agents:
                assert modes(kernel)[-2:] == [uxk.Mode.COLLABORATION, uxk.Mode.RECOMMENDATION]
                said = shown(kernel)
                assert (said["mode"], said["hinted_units"], said["policy"]) == ("recommendation", "16", "cost-benefit")
                assert int(said["hinted_choices"]) > 100
                agent_seen = advisors[-1]
                assert {record.reject for record in agent_seen.feedback} == {""}
                assert agent_seen.feedback[-1].outcome < agent_seen.feedback[-1].baseline
                assert 0 < agent_seen.rows[0]["valid"] <= agent_seen.rows[0]["units"]
                await kernel.rmmod("nvme")
                await kernel.rmmod("advisor")
                await kernel.run()
                assert residue(kernel) == {}
    assert found[1] < found[0] * 95 // 100


@pytest.mark.parametrize("agent", [Advisor, Turncoat])
async def test_bad_advice_ends_in_emergency(agent: type[Advisor], monkeypatch: pytest.MonkeyPatch) -> None:
    if agent is Advisor:
        monkeypatch.setattr(Advisor, "advice", BAD)
    async with boot() as kernel:
        await kernel.modprobe("nvme", **FLASH)
        await kernel.insmod(agent)
        writer = Writer(kernel)
        await writer.write(6)
        await writer.check()
        assert modes(kernel).count(uxk.Mode.EMERGENCY) > 1
        if agent is Turncoat:
            assert uxk.Mode.RECOMMENDATION in modes(kernel)
        else:
            assert uxk.Mode.COLLABORATION not in modes(kernel)
            assert int(shown(kernel)["hinted_choices"]) < 100


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\xff" * 20, "malformed"),
        (b"\x91" * 4000, "malformed"),
        (encode_hint(GcHint()), "malformed"),
        (encode_hint(GcHint("oracle")), "unknown_policy"),
        (encode_hint(GcHint("d-choices", (1 << 60,))), "out_of_range"),
        (encode_hint(GcHint(victims=(1 << 40,))), "out_of_range"),
        (encode_hint(GcHint("greedy", max_valid_units=-1)), "out_of_range"),
    ],
    ids=["empty", "noise", "nested", "nothing", "policy", "parameter", "victim", "bound"],
)
async def test_what_cannot_be_followed_is_refused(payload: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Advisor, "advice", payload)
    async with boot() as kernel:
        await kernel.modprobe("nvme", **FLASH)
        await kernel.insmod(Advisor)
        writer = Writer(kernel)
        await writer.write(1)
        await writer.check()
        said = shown(kernel)
        assert (said["policy"], said["hinted_epochs"], said["hinted_choices"]) == ("default", "0", "0")
        if payload:  # an empty one means the default, which is not refused
            assert {record.reject for record in advisors[-1].feedback} == {reason}
            assert int(said["refused_epochs"]) > 0
            rejects = kernel.sysfs.read(f"{kernel.models.get(MODEL).path}/sites/{SITE}/rejects")
            assert rejects.startswith(f"{reason} ")


@pytest.mark.parametrize("how", ["crash", "rmmod"])
async def test_without_its_agent_the_flash_does_as_by_default(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", **FLASH)
        await kernel.insmod(Advisor)
        writer = Writer(kernel)
        await writer.write(2)
        assert shown(kernel)["policy"] == "cost-benefit"
        if how == "crash":
            monkeypatch.setattr(Advisor, "recommend", lambda *_: None)  # the next incarnation says nothing
            crash(kernel, "advisor")
        else:
            await kernel.rmmod("advisor")
        await writer.write(1)
        before = shown(kernel)
        assert before["policy"] == "default"
        await writer.write(1)
        assert shown(kernel)["hinted_choices"] == before["hinted_choices"]
        assert int(shown(kernel)["epochs"]) > int(before["epochs"])
        await writer.check()


async def test_the_next_incarnation_of_the_driver_offers_its_site_anew() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", **FLASH)
        await kernel.insmod(Advisor)
        writer = Writer(kernel)
        await writer.write(2)
        model = kernel.models.get(MODEL)
        crash(kernel, "nvme")
        await kernel.run_until_ns(kernel.now_ns + 10_000_000_000)
        assert kernel.models.get(MODEL) is not model
        await writer.check()
        await writer.write(2)
        said = shown(kernel)
        assert said["policy"] == "cost-benefit"
        assert int(said["hinted_epochs"]) > 5
        await writer.check()
        await kernel.rmmod("nvme")
        await kernel.rmmod("advisor")
        await kernel.run()
        assert residue(kernel) == {}


async def test_a_full_queue_costs_an_epoch_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    report, calls = uxk.Context.end_epoch, []

    def sometimes(ctx: uxk.Context, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise uxk.RingFull("full")
        return report(ctx, *args, **more)

    monkeypatch.setattr(uxk.Context, "end_epoch", sometimes)
    async with boot() as kernel:
        await kernel.modprobe("nvme", **FLASH)
        await kernel.insmod(Advisor)
        await Writer(kernel).write(2)
        said = shown(kernel)
        assert int(said["unreported_epochs"]) == -(-int(said["epochs"]) // 2)
        assert said["policy"] == "cost-benefit"


async def test_same_seed_same_hash() -> None:
    hashes = []
    for _ in range(2):
        async with boot(seed=3) as kernel:
            await kernel.modprobe("nvme", **FLASH, gc_victim="d-choices")
            await kernel.insmod(Advisor)
            await Writer(kernel).write(2)
            hashes.append((kernel.event_hash(), shown(kernel)))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("medium", ["none", "simple"])
async def test_other_media_have_nothing_to_advise(medium: str) -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="4MiB", medium=medium)
        assert len(kernel.models) == 0
        assert "advice" not in kernel.sysfs.listdir(ATTRIBUTES)
