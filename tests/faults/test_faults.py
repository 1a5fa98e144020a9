"""Faults strike as declared, are logged and hashed, and harm only what they should."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest
import trio

import uxk
from uxk.errors import ConfigError
from uxk.faults import Fault, FaultPlan
from uxk.faults.model import FAULTS_MAX, problem
from uxk.uapi.entries import Completion, Request

MS = 1_000_000


class Echoing(uxk.Extension):
    """Answers at once with the payload it got."""

    manifest = uxk.Manifest(
        name="ft-echo", license="MIT", fate="reissue",
        watchdog=uxk.Watchdog(request_timeout_ns=10 * MS, timeouts_max=1000),
        restart=uxk.RestartPolicy(max_restarts=100, backoff_ns=MS),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.seen: list[bytes] = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            self.seen.append(request.payload)
            ctx.complete(request, request.payload)


class Outcome:
    """Everything a test may ask of a run."""

    def __init__(self) -> None:
        self.completions: list[tuple[int, Completion]] = []
        self.account: Any = None
        self.fired: dict[str, dict[str, object]] = {}
        self.log: list[str] = []
        self.hash = ""
        self.now_ns = 0

    @property
    def statuses(self) -> list[int]:
        return [completion.status for _, completion in self.completions]


def run(*faults: Fault, requests: int = 10, spacing_ns: int = MS, seed: int = 1) -> Outcome:
    """One request each ``spacing_ns``, with the number as payload, until nothing is left to do."""
    outcome = Outcome()

    async def main() -> None:
        async with uxk.Kernel(seed=seed) as kernel:
            plan = FaultPlan(kernel, faults)
            module = await kernel.modprobe("ft-echo")
            port = module.open_port(lambda got: outcome.completions.extend((kernel.now_ns, c) for c in got))
            plan.start()
            for number in range(requests):
                request = Request(0, 6, b"request %03d" % number)
                kernel.call_at_ns(number * spacing_ns, lambda request: port.submit(request), request)
            await kernel.run()
            outcome.account, outcome.fired = module.account, plan.results()
            outcome.hash, outcome.now_ns = kernel.event_hash(), kernel.now_ns
        outcome.log = [record.text for record in kernel.kmsg.records()]

    trio.run(main)
    return outcome


def test_without_faults_nothing_happens() -> None:
    outcome = run()
    assert outcome.statuses == [0] * 10
    assert outcome.account.faults == 0


def test_a_crash_strikes_at_its_time_and_the_policy_brings_the_module_back() -> None:
    outcome = run(Fault(kind="crash", module="ft-echo", at_ns=3 * MS + 1))
    assert outcome.account.restarts == 1
    assert outcome.statuses == [0] * 10
    assert outcome.fired["crash-0"]["fired"] == 1
    assert any("fault crash-0: crash" in line for line in outcome.log)


def test_a_crash_repeats() -> None:
    outcome = run(Fault(kind="crash", module="ft_echo", name="boom", at_ns=MS // 2, every_ns=3 * MS, count=3))
    assert outcome.fired["boom"]["fired"] == outcome.account.restarts == 3
    assert outcome.statuses == [0] * 10


def test_a_crash_on_a_request_gives_the_request_its_declared_fate() -> None:
    outcome = run(Fault(kind="crash", module="ft-echo", probability_ppm=1_000_000, count=2), requests=4)
    assert outcome.account.restarts == 2
    assert outcome.statuses == [0] * 4


def test_a_hang_holds_everything_until_it_ends() -> None:
    outcome = run(Fault(kind="hang", module="ft-echo", at_ns=3 * MS - 1, duration_ns=4 * MS))
    assert outcome.statuses == [0] * 10
    times = [now_ns for now_ns, _ in outcome.completions]
    assert times[:3] == [0, MS, 2 * MS]
    assert times[3:7] == [7 * MS - 1] * 4
    assert outcome.account.restarts == 0


def test_a_hang_without_end_is_ended_by_deadlines() -> None:
    outcome = run(Fault(kind="hang", module="ft-echo", at_ns=1), requests=3)
    assert outcome.statuses == [0, errno.ETIMEDOUT, errno.ETIMEDOUT]


@pytest.mark.parametrize("where", ["requests", "completions"])
def test_a_dropped_message_ends_in_a_timeout(where: Any) -> None:
    outcome = run(Fault(kind="drop", module="ft-echo", at_ns=2 * MS, count=2, where=where))
    by_cid = sorted((c.cid, c.status) for _, c in outcome.completions)
    assert [status for _, status in by_cid] == [0, 0, errno.ETIMEDOUT, errno.ETIMEDOUT, *[0] * 6]
    assert outcome.account.timeouts == 2


@pytest.mark.parametrize("where", ["requests", "completions"])
def test_a_delayed_message_arrives_later(where: Any) -> None:
    outcome = run(Fault(kind="delay", module="ft-echo", delay_ns=5 * MS // 2, count=1, where=where))
    assert outcome.statuses == [0] * 10
    assert next(now_ns for now_ns, c in outcome.completions if c.cid == 1) == 5 * MS // 2


def test_a_delayed_answer_of_a_dead_instance_never_arrives() -> None:
    outcome = run(
        Fault(kind="delay", module="ft-echo", delay_ns=5 * MS, count=1),
        Fault(kind="crash", module="ft-echo", at_ns=MS // 2),
        requests=1,
    )
    assert outcome.statuses == [0]
    assert outcome.completions[0][0] == MS // 2 + MS  # the next incarnation's answer, not the delayed one
    assert not outcome.account.rejects


def test_duplicated_messages_are_answered_once() -> None:
    for where in ("requests", "completions"):
        outcome = run(Fault(kind="duplicate", module="ft-echo", count=3, where=where))  # type: ignore[arg-type]
        assert outcome.statuses == [0] * 10
        assert outcome.account.rejects == {"stale_cid": 3}


def test_corrupted_data_arrive_with_one_bit_wrong() -> None:
    outcome = run(Fault(kind="corrupt", module="ft-echo", at_ns=4 * MS, count=1))
    wrong = []
    for _, completion in outcome.completions:
        true = int.from_bytes(b"request %03d" % (completion.cid - 1), "little")
        if difference := true ^ int.from_bytes(completion.payload, "little"):
            wrong.append((completion.cid, difference.bit_count()))
    assert wrong == [(5, 1)]


def test_a_corrupted_frame_never_raises_in_the_kernel() -> None:
    faults = [Fault(kind="corrupt", module="ft-echo", part="frame", where=w, probability_ppm=500_000)
              for w in ("completions", "requests")]  # type: ignore[arg-type]  # fmt: skip
    for seed in range(10):
        outcome = run(*faults, requests=20, seed=seed)
        assert len(outcome.completions) == 20
        assert not any("BUG" in line for line in outcome.log)


def test_probabilities_come_from_the_faults_own_stream() -> None:
    drop = Fault(kind="drop", module="ft-echo", probability_ppm=300_000)
    first, again, other = run(drop, requests=50), run(drop, requests=50), run(drop, requests=50, seed=2)
    assert first.hash == again.hash != other.hash
    assert 5 <= first.account.timeouts <= 25
    assert first.fired["drop-0"]["fired"] == first.account.timeouts
    more = run(drop, Fault(kind="duplicate", module="ft-echo", probability_ppm=1), requests=50)
    assert more.fired["drop-0"] == first.fired["drop-0"]


def test_a_strike_is_in_the_event_hash() -> None:
    late = Fault(kind="duplicate", module="ft-echo", at_ns=9 * MS)
    assert run().hash != run(late).hash


def test_a_flood_of_strikes_does_not_flood_the_log() -> None:
    outcome = run(Fault(kind="duplicate", module="ft-echo", probability_ppm=1_000_000), requests=500, spacing_ns=1000)
    assert outcome.fired["duplicate-0"]["fired"] == 500
    assert sum("fault duplicate-0" in line for line in outcome.log) == 64


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(kind="crash", module="m", delay_ns=1), "delay_ns has no meaning for a crash"),
        (Fault(kind="drop", module="m", duration_ns=1), "duration_ns has no meaning"),
        (Fault(kind="hang", module="m", where="requests"), "where has no meaning"),
        (Fault(kind="drop", module="m", part="frame"), "part has no meaning"),
        (Fault(kind="delay", module="m"), "needs delay_ns"),
        (Fault(kind="crash", module="m", count=2), "needs every_ns"),
        (Fault(kind="crash", module="m", every_ns=1, probability_ppm=1), "exclude each other"),
    ],
)
def test_senseless_faults_are_refused(fault: Fault, text: str) -> None:
    assert text in problem(fault)
    with pytest.raises(ConfigError, match=r"faults\[0\]: .*" + text):
        FaultPlan(uxk.Kernel(), [fault])


def test_plans_are_bounded() -> None:
    with pytest.raises(ConfigError, match="at most"):
        FaultPlan(uxk.Kernel(), [Fault(kind="crash", module="m")] * (FAULTS_MAX + 1))


def test_a_fault_for_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'ft_ecko' is not loaded.*did you mean 'ft_echo'"):
        run(Fault(kind="crash", module="ft-ecko"))
