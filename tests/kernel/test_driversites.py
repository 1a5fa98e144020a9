"""Decision sites that drivers offer: epochs, modes, hints, feedback, and what becomes of them all."""

from __future__ import annotations

import errno
from typing import Any, ClassVar

import pytest

import uxk
from uxk.core.mode import ModeConfig
from uxk.kernel.kernel import Kernel
from uxk.testing import boot, crash, residue
from uxk.uapi.entries import Completion

SITE = "cleaner0.gc"
MODEL = "cleaner0-gc"
EPOCH_NS = 1_000_000


class Cleaner(uxk.Extension):
    """Has a decision to make; a hint ``good`` is worth a fifth, ``bad`` costs as much."""

    manifest = uxk.Manifest(name="cleaner", restart=uxk.RestartPolicy(mode="permanent", max_restarts=5))
    units: ClassVar[int] = 8
    offer: ClassVar[dict[str, Any]] = {"schema": (("valid", "<u4"),), "rows_max": 8}
    refuse: ClassVar[str] = ""

    def setup(self, ctx: uxk.Context) -> None:
        self.seen: list[uxk.SiteState] = []
        self.state: uxk.SiteState | None = None
        self.errors: list[Completion] = []
        newest.append(self)
        ctx.offer_site(SITE, units=self.units, **self.offer).then(self.errors.append)
        ctx.call_later_ns(EPOCH_NS, self.epoch, ctx, daemon=True)

    def epoch(self, ctx: uxk.Context) -> None:
        hint = b"" if self.state is None else self.state.hint
        figures = {"default_kpi": 5000, "weight": 80}
        if hint and self.state is not None:
            figures |= {
                "hinted_kpi": 4000 if hint == b"good" else 11_000,
                "hinted_weight": 10 * self.state.hinted_units,
            }
        rows = b"".join(n.to_bytes(4, "little") for n in range(3))
        ctx.end_epoch(SITE, rows=rows, refused=self.refuse if hint else "", **figures).then(self.answer)
        ctx.call_later_ns(EPOCH_NS, self.epoch, ctx, daemon=True)

    def answer(self, completion: Completion) -> None:
        if completion.status:
            self.errors.append(completion)
            return
        self.state = uxk.decode_site(completion.payload)
        self.seen.append(self.state)


newest: list[Cleaner] = []


class Advisor(uxk.MLAgent):
    """Always says the same."""

    manifest = uxk.Manifest(
        name="advisor", kind="ml-agent", capabilities=("model:*:read", "site:*"),
    )  # fmt: skip
    advice: ClassVar[bytes] = b"good"

    def setup(self, ctx: uxk.Context) -> None:
        self.rows: list[int] = []
        self.feedback: list[uxk.Feedback] = []
        advisors.append(self)
        ctx.attach(MODEL)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "model":
            ctx.hint(SITE, 0, 10**12, self.advice, standing=True)
        elif event.topic == "feedback":
            from uxk.uapi.ml import decode_feedback

            self.feedback += decode_feedback(event.value)
        elif event.topic == "dataset":
            from uxk.uapi.ml import decode_dataset

            info = decode_dataset(event.value)
            self.rows.append(info.rows)


advisors: list[Advisor] = []


async def ask(kernel: Kernel, reply: uxk.Reply) -> Completion:
    kernel.machine.mark_dirty(kernel.agents["cleaner"])  # spoken for it between turns
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


async def at_work(kernel: Kernel, epochs: int) -> None:
    await kernel.run_until_ns(kernel.now_ns + epochs * EPOCH_NS)


async def test_good_advice_is_promoted_to_all_units_and_the_agent_hears_what_it_was_worth() -> None:
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await at_work(kernel, 1)
        assert newest[-1].seen[-1] == uxk.SiteState(uxk.Mode.LEARNING, ModeConfig().learning_share_ppm, 1, b"")
        await kernel.insmod(Advisor)
        await at_work(kernel, 200)
        state = newest[-1].seen[-1]
        assert (state.mode, state.hinted_units, state.hint) == (uxk.Mode.RECOMMENDATION, 8, b"good")
        modes = [seen.mode for seen in newest[-1].seen]
        assert modes == sorted(modes)  # up one step at a time
        agent = advisors[-1]
        assert set(agent.rows) == {3}
        good = [record for record in agent.feedback if not record.reject]
        assert good and {(record.outcome, record.baseline) for record in good} == {(4000, 5000)}


async def test_bad_advice_ends_in_emergency_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Advisor, "advice", b"bad")
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await kernel.insmod(Advisor)
        await at_work(kernel, 200)
        modes = {seen.mode for seen in newest[-1].seen}
        assert uxk.Mode.EMERGENCY in modes and uxk.Mode.COLLABORATION not in modes
        assert all(not seen.hinted_units for seen in newest[-1].seen if seen.mode is uxk.Mode.EMERGENCY)


async def test_a_hint_that_the_driver_cannot_follow_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cleaner, "refuse", "no_such_policy")
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await kernel.insmod(Advisor)
        await at_work(kernel, 5)
        assert [record.reject for record in advisors[-1].feedback] == ["no_such_policy"]
        assert newest[-1].seen[-1].hint == b""  # it is not given again
        assert kernel.sysfs.read(f"{kernel.models.get(MODEL).path}/sites/{SITE}/rejects") == "no_such_policy 1"


async def test_an_epoch_that_is_refused_leaves_the_hint_in_force_and_its_outcome_is_booked() -> None:
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await kernel.insmod(Advisor)
        await at_work(kernel, 5)
        cleaner, feedback = newest[-1], advisors[-1].feedback
        assert cleaner.state is not None and cleaner.state.hint == b"good"
        count = len(feedback)
        kernel.agents["cleaner"].host._actor.ctx.end_epoch(SITE, default_kpi=1, rows=b"odd").then(cleaner.errors.append)
        await at_work(kernel, 1)
        assert cleaner.errors[-1].status == errno.EINVAL
        await at_work(kernel, 1)
        assert len(feedback) == count + 2


async def test_a_site_goes_with_its_device() -> None:
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await at_work(kernel, 2)
        ctx = kernel.agents["cleaner"].host._actor.ctx
        for name in ("further", "further-more"):
            await ask(kernel, ctx.add_device(name))
        assert (await ask(kernel, ctx.offer_site("further.gc", units=1))).status == 0
        assert (await ask(kernel, ctx.offer_site("further.more-gc", units=1))).status == errno.EINVAL
        assert (await ask(kernel, ctx.offer_site("further-more.gc", units=1))).status == 0
        before = len(kernel.models)
        await ask(kernel, ctx.remove_device("further"))
        assert len(kernel.models) == before - 1
        assert kernel.models.get("further-more-gc") and kernel.models.get(MODEL)
        with pytest.raises(uxk.UsageError):
            kernel.models.get("further-gc")
        assert (await ask(kernel, ctx.end_epoch("further.gc"))).status == errno.ENODEV
        await kernel.rmmod("cleaner")
        assert residue(kernel) == {}


async def test_the_next_incarnation_offers_its_site_anew() -> None:
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await at_work(kernel, 3)
        crash(kernel, "cleaner")
        await at_work(kernel, 10)
        assert len(newest[-1].seen) > 5 and newest[-1].errors[0].status == 0
        await kernel.rmmod("cleaner")
        assert residue(kernel) == {}


@pytest.mark.parametrize(
    ("offer", "status"),
    [
        ({"schema": (("valid", "<f8"),)}, errno.EINVAL),
        ({"schema": (("valid", "nonsense"),)}, errno.EINVAL),
        ({"schema": (("valid", "<u8"),), "rows_max": 1 << 20}, errno.EINVAL),
        ({"no_such_setting": 3}, errno.EINVAL),
        ({"alpha_ppm": 0}, errno.EINVAL),
    ],
)
async def test_an_offer_that_cannot_be_is_refused_and_leaves_nothing(
    offer: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cleaner, "offer", offer)
    async with boot() as kernel:
        await kernel.insmod(Cleaner)
        await at_work(kernel, 3)
        assert [each.status for each in newest[-1].errors] == [status, *[errno.ENODEV] * 3]
        assert len(kernel.models) == 0 and not kernel.machine.sites
        await kernel.rmmod("cleaner")
        assert residue(kernel) == {}


async def test_a_site_must_be_of_a_device_of_ones_own() -> None:
    class Squatter(uxk.Extension):
        """Wants somebody else's name."""

        manifest = uxk.Manifest(name="squatter")

        def setup(self, ctx: uxk.Context) -> None:
            self.answers: list[Completion] = []
            squatters.append(self)
            for site in (SITE, "squatter0", "squatter0.", "."):
                ctx.offer_site(site).then(self.answers.append)

    squatters: list[Any] = []
    async with boot() as kernel:
        await kernel.insmod(Squatter)
        await kernel.run()
        assert [each.status for each in squatters[0].answers] == [errno.EACCES] * 4
