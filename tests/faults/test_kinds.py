"""The kinds of faults beyond crash, hang, drop and delay; which messages they strike, and what sets them off."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

import uxk
from uxk.core.site import DecisionSite
from uxk.faults import Fault, FaultPlan
from uxk.faults.forge import lied, staled
from uxk.faults.model import problem
from uxk.faults.text import parse_fault, render_fault
from uxk.testing import boot
from uxk.uapi.entries import Completion, Hint, Op, Request

US, MS = 1_000, 1_000_000


class Late(uxk.Extension):
    """Answers after 100 us with the payload it got, and allocates when it starts."""

    manifest = uxk.Manifest(
        name="fk-late", license="MIT", fate="reissue", budget=uxk.Budget(memory_bytes=1 << 20, queue_depth=32),
        watchdog=uxk.Watchdog(request_timeout_ns=10 * MS, timeouts_max=1000),
        restart=uxk.RestartPolicy(max_restarts=100, backoff_ns=MS),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(4096).then(lambda done: ctx.set_attribute("memory", done.status))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.call_later_ns(100 * US, lambda r: ctx.complete(r, r.payload, result=len(r.payload)), request)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.set_attribute("heard", f"{event.topic} {event.name}")


class Outcome:
    """What came of a run: (time, completion) in order, by the number of the request."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Completion]] = []
        self.account: Any = None
        self.fired: dict[str, Any] = {}
        self.attributes: dict[str, str] = {}
        self.hash = ""

    @property
    def order(self) -> list[int]:
        return [completion.cid - 1 for _, completion in self.answers]

    @property
    def payloads(self) -> dict[int, bytes]:
        return {completion.cid - 1: completion.payload for _, completion in self.answers}

    def at(self, number: int) -> int:
        return next(now_ns for now_ns, completion in self.answers if completion.cid == number + 1)


def run(
    *faults: Fault, requests: int = 8, spacing_ns: int = MS, op: int = Op.CALL,
    during: Callable[[uxk.Kernel], Awaitable[object]] | None = None,
) -> Outcome:  # fmt: skip
    """Request ``n`` at ``n`` ms, with its number as payload; then until nothing is left to do."""
    outcome = Outcome()

    async def main() -> None:
        async with uxk.Kernel(seed=3) as kernel:
            plan = FaultPlan(kernel, faults)
            module = await kernel.modprobe("fk-late")
            port = module.open_port(lambda got: outcome.answers.extend((kernel.now_ns, c) for c in got))
            plan.start()
            for number in range(requests):
                opcode = (Op.READ, Op.WRITE)[number % 2] if op == -1 else op
                request = Request(0, opcode, b"%03d" % number)
                kernel.call_at_ns(number * spacing_ns, lambda r: port.submit(r), request)
            if during is not None:
                await during(kernel)
            await kernel.run()
            agent = kernel.agents["fk_late"]
            outcome.account, outcome.fired = module.account, plan.results()
            outcome.attributes, outcome.hash = dict(agent.attributes), kernel.event_hash()

    trio.run(main)
    return outcome


def of(kind: Any, **fields: Any) -> Fault:
    return Fault(kind=kind, module="fk-late", **fields)


# --- kinds -----------------------------------------------------------------------------------------------


def test_slow_makes_answers_come_so_many_times_as_late() -> None:
    outcome = run(of("slow", factor=5, until_ns=4 * MS))
    times = [outcome.at(number) - number * MS for number in range(8)]
    assert times == [500 * US] * 4 + [100 * US] * 4


def test_slow_keeps_the_order_of_answers() -> None:
    outcome = run(of("slow", factor=50, count=1), requests=4)
    assert outcome.order == [0, 1, 2, 3] or outcome.order[:1] != [0]
    assert outcome.at(0) == 5 * MS


def test_slow_takes_a_message_without_a_past_for_one_that_needed_some_time() -> None:
    outcome = run(of("slow", where="requests", factor=3, delay_ns=200 * US))
    assert [outcome.at(number) - number * MS for number in range(8)] == [500 * US] * 8


def test_reorder_lets_the_next_message_overtake() -> None:
    outcome = run(of("reorder", at_ns=2 * MS, delay_ns=5 * MS))
    assert outcome.order == [0, 1, 3, 2, 4, 5, 6, 7]


def test_reorder_gives_up_when_nothing_comes() -> None:
    outcome = run(of("reorder", at_ns=7 * MS))
    assert outcome.at(7) == 7 * MS + 100 * US + MS


def test_stale_brings_old_data_in_a_new_answer() -> None:
    outcome = run(of("stale", after=3, count=1))
    assert outcome.payloads[4] == b"000"
    assert [outcome.payloads[n] for n in (3, 5)] == [b"003", b"005"]
    assert not outcome.account.rejects


def test_a_stale_frame_is_an_old_answer_again_and_refused() -> None:
    outcome = run(of("stale", part="frame", after=2, count=2))
    assert [outcome.payloads[n] for n in range(8)] == [b"%03d" % n for n in range(8)]
    assert outcome.account.rejects == {"stale_cid": 2}


def test_a_lie_is_of_the_right_form() -> None:
    outcome = run(of("lie", after=4, count=1))
    assert outcome.payloads[4] != b"004"
    assert len(outcome.payloads[4]) == 3
    assert [outcome.payloads[n] for n in (3, 5)] == [b"003", b"005"]


def test_a_leak_ends_at_the_budget_and_is_taken_back() -> None:
    outcome = run(of("leak", size_bytes=300_000, count=20, every_ns=100 * US))
    assert outcome.fired["leak-0"]["fired"] == 20
    assert outcome.account.arena_bytes_max <= 1 << 20
    assert outcome.account.arena_bytes == 0
    assert [completion.status for _, completion in outcome.answers] == [0] * 8


@pytest.mark.parametrize(("where", "reason"), [("commands", "sq_full"), ("completions", "unknown_cid")])
def test_a_flood_is_refused_and_harms_nobody(where: Any, reason: str) -> None:
    outcome = run(of("flood", where=where, entries=40, at_ns=MS, every_ns=MS, count=3))
    assert reason in outcome.account.rejects
    assert [completion.status for _, completion in outcome.answers] == [0] * 8


def test_a_hang_can_be_over_by_itself_or_be_found_out() -> None:
    assert run(of("hang", after=3, duration_ns=2 * MS)).at(3) == 5 * MS + 100 * US


# --- which messages --------------------------------------------------------------------------------------


def test_only_messages_of_that_name_are_struck_and_answers_have_the_name_of_what_they_answer() -> None:
    for where in ("requests", "completions"):
        outcome = run(of("drop", where=where, message="write", count=2), op=-1)
        assert sorted(c.cid - 1 for _, c in outcome.answers if c.status == errno.ETIMEDOUT) == [1, 3]


def test_after_counts_matching_messages_only() -> None:
    outcome = run(of("crash", message="write", after=1), op=-1)
    assert outcome.account.restarts == 1
    assert outcome.at(3) >= 4 * MS  # the second write


def test_until_ends_it() -> None:
    outcome = run(of("drop", probability_ppm=1_000_000, at_ns=2 * MS, until_ns=4 * MS))
    assert sorted(c.cid - 1 for _, c in outcome.answers if c.status) == [2, 3]


def test_answers_to_commands_and_events_can_be_struck() -> None:
    async def poke(kernel: uxk.Kernel) -> None:
        for number in range(3):
            kernel.agents["fk_late"].event("poke", str(number))
            await kernel.sleep_ns(MS)

    assert run(of("drop", where="events", message="poke", after=2), during=poke).attributes["heard"] == "poke 1"
    again = of("crash", at_ns=MS), of("drop", where="answers", message="allocate", at_ns=MS)
    assert "memory" not in run(*again).attributes  # the answer that the second incarnation waits for


def test_filters_stack_the_first_is_nearest_to_the_kernel() -> None:
    """A completion meets the last filter first: it is made two, then each is late."""
    late, twice = of("delay", delay_ns=MS, count=2), of("duplicate", count=1)
    outcome = run(late, twice, requests=1)
    assert (outcome.at(0), outcome.account.rejects) == (MS + 100 * US, {"stale_cid": 1})
    outcome = run(twice, late, requests=1)
    assert (outcome.at(0), outcome.account.rejects) == (MS + 100 * US, {"stale_cid": 1})
    outcome = run(of("drop", count=1), twice, requests=1)
    assert (outcome.at(0), outcome.account.rejects) == (100 * US, {}), "one of the two is lost"


# --- triggers --------------------------------------------------------------------------------------------


def test_a_line_of_the_log_sets_a_fault_off() -> None:
    async def speak(kernel: uxk.Kernel) -> None:
        await kernel.sleep_ns(3 * MS + MS // 2)
        kernel.machine.log("info", "test", "the battery is low")

    outcome = run(of("hang", when="log:battery?is", at_ns=MS // 4, duration_ns=2 * MS), during=speak)
    assert outcome.at(4) == 3 * MS + MS // 2 + MS // 4 + 2 * MS + 100 * US


def test_an_event_sets_a_fault_off_and_once() -> None:
    crash = of("crash", at_ns=MS + MS // 2)
    outcome = run(crash, of("drop", when="event:crash", count=1))
    assert outcome.fired["drop-1"]["fired"] == 1
    assert run(of("drop", when="event:crash:other")).fired["drop-0"]["fired"] == 0


def test_a_state_sets_a_fault_off() -> None:
    outcome = run(of("crash", at_ns=MS + MS // 2), of("crash", name="again", when="state:restarting", at_ns=3 * MS))
    assert outcome.account.restarts == 2


# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (of("drop", factor=3), "factor has no meaning for a drop"),
        (of("slow", size_bytes=4096), "size_bytes has no meaning"),
        (of("delay", delay_ns=1, entries=2), "entries has no meaning"),
        (of("flood", where="requests"), "commands or completions"),
        (of("drop", message="raed", where="requests"), "did you mean 'read'"),
        (of("drop", message="read", where="commands"), "no such message among commands"),
        (of("crash", when="evnt:crash"), "did you mean 'event'"),
        (of("crash", when="log:"), "log:PATTERN"),
        (of("crash", when="state:lvie"), "did you mean 'live'"),
        (of("drop", at_ns=5, until_ns=5), "is not after"),
        (of("leak", after=1, every_ns=1), "exclude each other"),
    ],
)
def test_senseless_faults_are_refused(fault: Fault, text: str) -> None:
    assert text in problem(fault)


@pytest.mark.parametrize(
    "text",
    [
        "kind=slow module=x factor=8 until_ns=20000000",
        "kind=leak module=x count=3 every_ns=1000 size_bytes=65537",
        "kind=flood module=x where=commands entries=9",
        "kind=stale module=x after=4 where=commands message=hint part=frame",
        "kind=crash module=x when=event:crash:other",
    ],
)
def test_faults_are_read_and_written_as_lines(text: str) -> None:
    fault = parse_fault(text)
    assert not problem(fault)
    assert parse_fault(render_fault(fault)) == fault


def test_sizes_and_times_may_have_units() -> None:
    fault = parse_fault("kind=leak module=x size_bytes=64KiB until_ns=3ms")
    assert (fault.size_bytes, fault.until_ns) == (64 << 10, 3 * MS)


# --- lies ------------------------------------------------------------------------------------------------


def hint(*values: Any) -> Hint:
    return Hint(7, "a.site", 3, MS, msgspec.msgpack.encode(list(values)), predicted=100)


def test_a_lying_hint_is_well_formed_and_says_something_else() -> None:
    stream = np.random.default_rng(1)
    for _ in range(50):
        lie = lied(hint("dac/cb-age", 40, [1, 2, 3], True), [], stream)
        assert isinstance(lie, Hint)
        name, number, numbers, flag = msgspec.msgpack.decode(lie.payload)
        assert (name, flag, len(numbers)) == ("dac/cb-age", True, 3)
        assert 0 <= number <= 80
        assert number != 40
        assert (lie.cid, lie.generation, lie.ttl_ns) == (7, 3, MS)
        assert 0 <= lie.predicted <= 200


def test_what_has_nothing_to_lie_about_is_left_alone() -> None:
    stream = np.random.default_rng(1)
    assert lied(Completion(1), [], stream) is None
    assert lied(Completion(1, 5), [], stream) == Completion(1)


def test_a_stale_message_keeps_its_command_id() -> None:
    old, new = Completion(1, 0, 4, b"old"), Completion(9, 5, 6, b"new")
    assert staled(new, old) == Completion(9, 0, 4, b"old")


class Advising(uxk.Extension):
    """Gives a hint each 100 us."""

    manifest = uxk.Manifest(name="fk-advising", kind="ml-agent", license="MIT", capabilities=("site:fk-site",))

    def setup(self, ctx: uxk.Context) -> None:
        self.left = 20
        self.act(ctx)

    def act(self, ctx: uxk.Context) -> None:
        self.left -= 1
        ctx.hint("fk-site", ctx.now_ns // MS, MS, msgspec.msgpack.encode([self.left + 10]))
        if self.left:
            ctx.call_later_ns(100 * US, lambda _: self.act(ctx))


async def test_stale_and_lying_hints_are_judged_like_all_others() -> None:
    async with boot(seed=5) as kernel:
        seen: list[int] = []

        def check(payload: bytes) -> str:
            seen.append(msgspec.msgpack.decode(payload)[0])
            return "" if seen[-1] < 30 else "out_of_range"

        site = kernel.machine.sites["fk-site"] = DecisionSite("fk-site", check)
        kernel.call_at_ns(MS, lambda _: site.advance())
        common: dict[str, Any] = {"module": "fk-advising", "where": "commands", "message": "hint"}
        lie = Fault(kind="lie", count=4, probability_ppm=1_000_000, **common)
        stale = Fault(kind="stale", name="old", at_ns=MS + 50 * US, after=1, count=2, **common)
        plan = FaultPlan(kernel, [lie, stale])
        await kernel.modprobe("fk-advising")
        plan.start()
        await kernel.run()
        assert plan.results()["lie-0"]["fired"] == 4
        assert plan.results()["old"]["fired"] == 2
        assert site.rejects["stale_generation"] >= 1
        assert seen != sorted(seen, reverse=True), "some were lies"
