"""What the collector's agent believes, recommends and tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from uxk.subsystems.lfs.miniature import parse_policy
from uxk.testing import boot, volume
from uxk_gc.candidates import HUMANS, NAMES, RATES, STEPS, VARIATIONS, portfolio
from uxk_gc.chooser import CHOOSERS, MARGIN, MARGIN_PLACEMENT, WARM_EPOCHS, FadingMean, River, relative
from uxk_gc.miniatures import Costs, Miniatures
from uxk_gc.search import EVERY, TRIAL_EPOCHS, Search, clamp

PAGES = 16_384


def teach(
    chooser: River, costs: list[float], epochs: int, noise: float = 0.0, seed: int = 0, followed: bool = False
) -> None:  # fmt: skip
    """So many epochs of these costs, with noise that all candidates share and some of their own."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        shared = 1 + 3 * noise * rng.standard_normal()
        chooser.learn(np.array(costs) * shared * (1 + noise * rng.standard_normal(len(costs))), followed)


def river(candidates: int) -> River:
    return River(["rate"] * candidates, np.random.default_rng(0))


# --- choosing ---


def test_nothing_is_recommended_before_anything_is_known() -> None:
    chooser = river(3)
    assert chooser.choice == -1
    for epoch in range(1, WARM_EPOCHS + 1):
        teach(chooser, [2.0, 1.9, 2.1], 1)
        assert chooser.choice == (1 if epoch == WARM_EPOCHS else -1)


def test_noise_that_all_share_hides_nothing() -> None:
    chooser = river(4)
    teach(chooser, [2.0, 1.9, 1.8, 2.1], 40, noise=0.02)
    assert chooser.choice == 2


def test_a_workload_that_turns_is_followed() -> None:
    chooser = river(2)
    teach(chooser, [2.0, 1.5], 60)
    assert chooser.choice == 1
    teach(chooser, [1.5, 2.0], 40)
    assert chooser.choice == 0


def test_a_little_better_is_not_worth_a_change() -> None:
    chooser = river(2)
    teach(chooser, [2.0, 1.9], 30)
    teach(chooser, [1.9 * (1 - MARGIN / 2), 1.9], 300)
    assert chooser.choice == 1


def test_another_placement_must_be_worth_laying_a_volume_out_anew() -> None:
    better, much_better = 1.5 * (1 - MARGIN_PLACEMENT / 2), 1.5 * (1 - 2 * MARGIN_PLACEMENT)
    free, bound = (River(["rate", "rate", "stream"], np.random.default_rng(0)) for _ in range(2))
    for chooser in (free, bound):
        teach(chooser, [2.0, 1.5, 1.6], 60)
        assert chooser.choice == 1
    teach(free, [2.0, 1.5, better], 400)
    teach(bound, [2.0, 1.5, better], 400, followed=True)
    assert (free.choice, bound.choice) == (2, 1)
    teach(bound, [2.0, 1.5, much_better], 400, followed=True)
    assert bound.choice == 2


def test_means_are_relative_to_the_default() -> None:
    chooser = river(3)
    teach(chooser, [2.0, 1.0, 4.0], 5)
    assert chooser.means == pytest.approx([0, -np.log(2), np.log(2)])
    assert relative(np.array([2.0, 1.0, 4.0])) == pytest.approx([0, -np.log(2), np.log(2)])


def test_a_mean_is_plain_while_it_is_young_and_fades_later() -> None:
    mean = FadingMean(half_life=8)
    for value in (8.0, 0.0, 0.0, 0.0):
        mean.update(value)
    assert mean.get() == pytest.approx(2.0)
    for _ in range(100):
        mean.update(1.0)
    before = mean.get()
    for _ in range(8):
        mean.update(0.0)
    assert mean.get() == pytest.approx(before / 2, rel=0.01)


def test_a_replaced_candidate_is_known_no_better_than_its_parent_and_goes_its_own_way() -> None:
    chooser = river(3)
    teach(chooser, [2.0, 1.5, 3.0], 20)
    chooser.forget(2, like=1)
    assert chooser.means[2] == chooser.means[1]
    teach(chooser, [2.0, 1.5, 1.0], 20)
    assert chooser.means[2] < chooser.means[1] == pytest.approx(np.log(0.75))


@pytest.mark.parametrize("name", CHOOSERS)
def test_every_chooser_chooses_one_of_the_candidates(name: str) -> None:
    chooser = CHOOSERS[name](["dac"] * 5, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    for _ in range(50):
        chooser.learn(1 + rng.random(5))
        assert -1 <= chooser.choice < 5
    assert chooser.choice >= 0
    assert len(chooser.means) == 5


# --- candidates ---


@pytest.mark.parametrize("logs", [1, 2, 3, 6, 16])
def test_the_default_comes_first_and_every_candidate_is_valid(logs: int) -> None:
    found = portfolio(logs)
    assert found[0].name == "sepbit/cb-age"
    assert [each.name for each in found[: len(HUMANS)]] == list(HUMANS)
    assert not any(each.needs_future for each in found)
    assert len(portfolio(logs, learned=False)) == len(HUMANS)
    assert len(portfolio(logs, search=True)) == len(found) + VARIATIONS
    for each in found:
        assert parse_policy(each.name, each.args) == each
        assert parse_policy(each.name, each.scaled(16).args)


def test_settings_name_all_parameters_and_are_within_what_the_search_can_reach() -> None:
    assert set(STEPS) < set(NAMES)
    assert all(clamp(args) == args for args in RATES.values())
    rng = np.random.default_rng(0)
    for _ in range(200):
        args = clamp(tuple(int(number) for number in rng.integers(-(1 << 40), 1 << 40, len(NAMES))))
        assert parse_policy("rate/learned", args).args == args


def writes(count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    """All pages of a miniature, then so many writes to ever fewer of them."""
    rng = np.random.default_rng(seed)
    skewed = (4_096 * rng.random(count) ** 4).astype(np.int64) * 1_601 % 4_096
    return np.concatenate([np.arange(4_096), skewed]).astype(np.int32)


def miniatures(candidates: int = 8) -> tuple[Miniatures, Costs]:
    """The first candidates and the variations' places, and what each cost so far."""
    chosen = [*portfolio(6)[:candidates], *portfolio(6, search=True)[-VARIATIONS:]]
    found = Miniatures(4_096, 16, 150_000, 6, 4, chosen)
    costs = found.write(writes(20_000))
    assert costs is not None
    return found, costs


def test_miniatures_rank_as_volumes_do() -> None:
    found, costs = miniatures()
    by_name = dict(zip([each.name for each in found.candidates], costs, strict=True))
    assert by_name["fadac/cb-age"] < by_name["sepbit/cb-age"] < by_name["nosep/greedy"]
    assert found.write(np.empty(0, np.int32)) is None


def test_a_threshold_that_falls_costs_moves() -> None:
    found, costs = miniatures(1)
    found.threshold(50_000)
    later = found.write(writes(20_000, seed=1))
    assert later is not None
    assert later[0] > 1.3 * costs[0]


def test_the_search_tries_variations_of_the_best_and_learns_from_them() -> None:
    found, _ = miniatures(18)
    chooser, search = river(len(found)), Search(np.random.default_rng(3))
    ops = writes(40_000, seed=2)
    begun = list(found.candidates)
    for epoch in range(12 * EVERY):
        costs = found.write(ops[epoch * 500 : epoch * 500 + 500])
        assert costs is not None
        chooser.learn(costs)
        search.vary(found, chooser)
    assert search.tried > TRIAL_EPOCHS // EVERY
    assert found.candidates[:-VARIATIONS] == begun[:-VARIATIONS], "the portfolio stays"
    varied = [each for each in found.candidates[-VARIATIONS:] if each.args != RATES["even"]]
    assert varied
    assert all(parse_policy(each.name, each.args) == each for each in varied)


# --- in a kernel ---


async def results(seed: int = 1, **params: Any) -> Mapping[str, Any]:
    """Of a run of the agent with these parameters."""
    async with boot(seed=seed) as kernel:
        await kernel.modprobe("gc", **params)
        lfs = volume(kernel, pages=PAGES)
        await kernel.run()
        assert any("candidates on" in record.text for record in kernel.kmsg.records(source="gc"))
        found: Mapping[str, Any] = lfs.results()
        return found


async def test_it_earns_the_kernels_trust_and_beats_chance() -> None:
    learned, alone = await results(), await results(learned=False, chooser="random")
    assert learned["epochs"][-1]["mode"] == "recommendation"
    assert learned["wa_second_half_ppm"] < 0.95 * alone["wa_second_half_ppm"]


@pytest.mark.parametrize("search", [False, True])
async def test_it_does_the_same_with_the_same_seed(search: bool) -> None:
    one, two = [await results(seed=2, search=search) for _ in range(2)]
    assert one["epochs"] == two["epochs"]


async def test_a_threshold_that_changes_reaches_its_miniatures() -> None:
    async with boot(seed=1) as kernel:
        await kernel.modprobe("gc")
        lfs = volume(kernel, pages=PAGES)
        after_ns = 5 * PAGES * lfs.params.write_ns
        kernel.machine.call_later(after_ns, lambda _: kernel.sysctl.set("lfs/lfs0/gp_ppm", 60_000))
        await kernel.run()
        assert lfs.epochs[-1].written.wa_ppm > 1.4 * lfs.epochs[-50].written.wa_ppm
        assert int(kernel.sysfs.read("/sys/module/gc/attributes/error_ppm")) < 150_000, "it expects what happens"


async def test_what_it_has_learned_outlives_it_but_not_its_volume() -> None:
    async with boot(seed=1) as kernel:
        await kernel.modprobe("gc")
        lfs = volume(kernel, pages=PAGES)
        await kernel.run_until_ns(6 * PAGES * lfs.params.write_ns)
        lines = [record.text for record in kernel.kmsg.records(source="gc")]
        policy = kernel.sysfs.read("/sys/module/gc/attributes/policy")
        await kernel.restart("gc")
        await kernel.run()
        after = [record.text for record in kernel.kmsg.records(source="gc")][len(lines) :]
        assert any("bytes of state" in line for line in after)
        assert not any("cold" in line for line in after)
        assert kernel.sysfs.read("/sys/module/gc/attributes/policy").split()[0] == policy.split()[0]
        assert lfs.epochs[-1].mode.name == "RECOMMENDATION"
