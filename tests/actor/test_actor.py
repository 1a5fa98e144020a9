"""The user-space runtime: what an extension's code does wrong ends the extension, never its host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.actor.actor import Actor, Output, Start
from uxk.core.codec import encode, up_codec
from uxk.limits import TIMERS_PER_ACTOR_MAX
from uxk.uapi import entries as e


class Numbers(uxk.Params):
    size: int = 1


def start(depth: int = 8, params: uxk.Params | None = None) -> Start:
    return Start("actor", 1, 7, depth, 0, msgspec.msgpack.encode(params or Numbers()))


def made(depth: int = 8, **methods: Any) -> Actor:
    manifest = uxk.Manifest(name="actor", params=Numbers)
    cls: type[uxk.Extension[Numbers]] = type("Actor", (uxk.Extension,), {**methods, "manifest": manifest})
    actor = Actor(cls, start(depth))
    actor.setup()
    return actor


def down(*entries: e.Entry) -> list[bytes]:
    return [encode(list(entries))]


def ups(output: Output) -> list[Any]:
    return [entry for frame, count in output.up for entry in up_codec.decode(frame, count)[0]]


def replies(output: Output) -> list[Any]:
    return [entry for frame, _ in output.replies for entry in msgspec.msgpack.decode(frame)]


def raiser(exc: BaseException) -> Callable[..., Any]:
    def method(*_: object) -> None:
        raise exc

    return method


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("not even a word")


class Loud(Exception):
    def __str__(self) -> str:
        return "\ud800 surrogates"


@pytest.mark.parametrize(
    "exc", [ValueError("x"), SystemExit(1), Mute(), Loud(), RecursionError(), GeneratorExit()], ids=repr
)
@pytest.mark.parametrize("where", ["__init__", "setup", "on_batch", "on_event", "on_stop"])
def test_whatever_a_callback_raises_ends_the_actor_only(where: str, exc: BaseException) -> None:
    methods: dict[str, Any] = {where: raiser(exc)}
    actor = made(**methods)
    output = actor.turn(5, down(e.Request(1), e.Event("topic")), [])
    actor.stop("bye")
    assert actor.crash is not None
    assert actor.crash.kind == type(exc).__name__
    assert actor.crash.traceback.isascii() or actor.crash.traceback.encode(errors="replace")
    assert isinstance(output, Output)
    assert replies(actor.turn(6, down(e.Request(2)), [])) == []  # the dead say nothing


def test_ctrl_c_is_nobodys_crash() -> None:
    with pytest.raises(KeyboardInterrupt):
        made(on_batch=raiser(KeyboardInterrupt())).turn(0, down(e.Request(1)), [])


def test_params_that_do_not_fit_are_a_crash_at_birth() -> None:
    cls: type[Any] = type("A", (uxk.Extension,), {"manifest": uxk.Manifest(name="a", params=Numbers)})
    actor = Actor(cls, Start("a", 1, 7, 8, 0, b"\x81\xa4size\xa1x"))
    assert actor.crash is not None and actor.crash.kind == "ValidationError"


def test_a_batch_is_split_by_events_and_kept_in_order() -> None:
    heard: list[Any] = []
    actor = made(
        on_batch=lambda self, ctx, requests: heard.append([request.cid for request in requests]),
        on_event=lambda self, ctx, event: heard.append(event.topic),
    )
    actor.turn(0, down(e.Request(1), e.Request(2), e.Event("a"), e.Ping(9), e.Request(3)), [])
    assert heard == [[1, 2], "a", [3]]


@pytest.mark.parametrize(
    ("payloads", "answers"),
    [((), [b"", b""]), ((b"a", b"b"), [b"a", b"b"]), (iter([b"a", b"b"]), [b"a", b"b"])],
    ids=["none", "one each", "an iterator"],
)
def test_a_batch_is_answered_at_once(payloads: Iterable[bytes], answers: list[bytes]) -> None:
    actor = made(on_batch=lambda self, ctx, requests: ctx.complete_batch(requests, payloads))
    output = actor.turn(0, down(e.Request(1), e.Request(2)), [])
    assert actor.crash is None
    done = [e.Completion(*entry[1:]) for entry in replies(output)]
    assert done == [e.Completion(cid, 0, 0, payload) for cid, payload in enumerate(answers, 1)]


@pytest.mark.parametrize("payloads", [[b"a"], [b"a"] * 3], ids=len)
def test_a_batch_answered_with_another_number_of_payloads_is_an_error(payloads: list[bytes]) -> None:
    actor = made(on_batch=lambda self, ctx, requests: ctx.complete_batch(requests, payloads))
    output = actor.turn(0, down(e.Request(1), e.Request(2)), [])
    assert actor.crash is not None and actor.crash.kind == "ValueError"
    assert replies(output) == [], "none of them is answered"


def test_pings_are_answered_by_the_runtime() -> None:
    assert replies(made().turn(0, down(e.Ping(9)), [])) == [[17, 9]]


def test_what_no_message_can_hold_is_a_crash_and_the_rest_is_still_said() -> None:
    def on_batch(self: object, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete(requests[0], b"fine")
        ctx.log("\ud800")

    actor = made(on_batch=on_batch)
    output = actor.turn(0, down(e.Request(1)), [])
    assert actor.crash is not None and actor.crash.where == "encode"
    assert replies(output) == [[16, 1, 0, 0, b"fine"]]


def test_a_timer_that_rearms_itself_for_now_does_not_hold_the_turn() -> None:
    """The kernel can count turns and call it a livelock; a turn without end it could not stop."""
    fired: list[int] = []

    def setup(self: object, ctx: uxk.Context) -> None:
        def again(_: object) -> None:
            fired.append(ctx.now_ns)
            ctx.call_later_ns(0, again)

        again(None)

    actor = made(setup=setup)
    for turn in range(1, 4):
        assert actor.turn(10, [], []).wake_at_ns is not None
        assert len(fired) == 1 + turn


def test_timers_fire_in_order_and_report_the_next() -> None:
    fired: list[str] = []

    def setup(self: object, ctx: uxk.Context) -> None:
        ctx.call_at_ns(20, fired.append, "late", daemon=True)
        ctx.call_at_ns(10, fired.append, "a")
        ctx.call_at_ns(10, fired.append, "b")
        ctx.cancel_timer(ctx.call_at_ns(5, fired.append, "never"))
        with pytest.raises(uxk.UsageError):
            ctx.call_later_ns(-1, print)

    actor = made(setup=setup)
    output = actor.turn(0, [], [])
    assert (output.wake_at_ns, output.daemon_wake) == (10, False)
    output = actor.turn(10, [], [])
    assert (fired, output.wake_at_ns, output.daemon_wake) == (["a", "b"], 20, True)
    assert actor.turn(25, [], []).wake_at_ns is None


def test_timers_are_bounded() -> None:
    actor = made()
    for _ in range(TIMERS_PER_ACTOR_MAX):
        actor.ctx.call_at_ns(1, print)
    with pytest.raises(uxk.BudgetError):
        actor.ctx.call_at_ns(1, print)


@pytest.mark.parametrize("due_ns", [1 << 63, 1 << 80])
def test_a_time_beyond_the_clock_is_refused(due_ns: int) -> None:
    with pytest.raises(uxk.UsageError):
        made().ctx.call_at_ns(due_ns, print)


def test_a_full_up_queue_says_eagain_and_counts_lost_log_lines() -> None:
    ctx = made(depth=4).ctx
    for _ in range(4):
        ctx.read("/sys")
    with pytest.raises(uxk.RingFull):
        ctx.read("/sys")
    with pytest.raises(uxk.RingFull):
        ctx.charge_ns(1)
    ctx.log("lost")
    assert ctx.dropped_log_lines == 1


def test_commands_without_answer_are_bounded_over_turns() -> None:
    actor = made(depth=2)
    for _ in range(2):
        actor.ctx.read("/sys")
        actor.output()
    with pytest.raises(uxk.RingFull, match="outstanding"):
        actor.ctx.read("/sys")
    actor.turn(0, [], [encode([e.Completion(1)])])
    actor.ctx.read("/sys")


def test_only_the_last_value_of_an_attribute_leaves_the_turn() -> None:
    actor = made(depth=4)
    for n in range(100):
        actor.ctx.set_attribute("a", n)
        actor.ctx.set_poll("tap", readable=bool(n % 2))
        actor.ctx.set_attribute("b", -n)
    said = ups(actor.output())
    assert [(type(entry).__name__, entry.name) for entry in said] == [
        ("SetAttribute", "a"), ("SetPoll", "tap"), ("SetAttribute", "b")
    ]  # fmt: skip
    assert (said[0].value, said[1].mask, said[2].value) == ("99", 1, "-99")


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 200)), max_size=30))
def test_answers_reach_the_command_they_belong_to_once(answers: list[tuple[int, int]]) -> None:
    actor = made(depth=8)
    heard: list[tuple[int, int]] = []

    def hear(n: int, completion: uxk.Completion) -> None:
        heard.append((n, completion.status))

    for n in range(1, 9):
        actor.ctx.read("/sys").then(partial(hear, n))
    actor.turn(0, [], [encode([e.Completion(cid, status) for cid, status in answers])])
    expected: dict[int, int] = {}
    for cid, status in answers:
        if 1 <= cid <= 8:
            expected.setdefault(cid, status)
    assert heard == list(expected.items())


async def test_several_tasks_may_await_one_reply() -> None:
    actor = made()
    reply = actor.ctx.read("/sys")
    got: list[bytes] = []

    async def wait() -> None:
        got.append((await reply).payload)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        actor.turn(0, [], [encode([e.Completion(1, payload=b"x")])])
    assert got == [b"x", b"x"]
    assert (await reply).payload == b"x"


async def test_an_error_reply_raises_with_errno_and_words() -> None:
    actor = made()
    reply = actor.ctx.read("/sys")
    actor.turn(0, [], [encode([e.Completion(1, 13, payload=b"no \xff")])])
    with pytest.raises(uxk.RequestError, match="TreeRead: no") as caught:
        await reply
    assert caught.value.errno == 13


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    actor = made()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.ctx.sleep_ns, 1000)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert actor.turn(0, [], []).wake_at_ns is None


async def test_giving_up_on_a_lock_gives_it_back() -> None:
    actor = made()

    async def take() -> None:
        async with actor.ctx.lock(5):
            raise AssertionError("never held")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    actor.output()
    output = actor.turn(0, [], [encode([e.Completion(1, result=77)])])
    assert [(entry.cap, entry.token) for entry in ups(output)] == [(5, 77)]


def test_raw_frames_must_be_bytes_and_a_number() -> None:
    ctx: Any = made().ctx
    for frame, count in (("text", 1), (None, 1), (b"x", "1"), (b"x", None)):
        with pytest.raises(TypeError):
            ctx.write_raw(frame, count)


# --- submission queues ---


def test_a_queue_stages_entries_and_gets_its_answers_in_batches() -> None:
    got: list[list[e.Completion]] = []

    def setup(self: Any, ctx: uxk.Context) -> None:
        queue = ctx.queue(9, got.append)
        for index in range(3):
            assert queue.submit(uxk.Op.READ, 512 * index, 512, region=5, buffer=index, flags=7) == index + 1
        assert (queue.room, queue.cap) == (5, 9)

    actor = made(setup=setup)
    assert ups(actor.output()) == [
        e.Submit(index + 1, 9, 1, b"", 512 * index, 512, 5, False, index, 7) for index in range(3)
    ]  # fmt: skip
    actor.turn(5, [], down(e.Completion(2), e.Completion(1)))
    actor.turn(6, [], down(e.Completion(2), e.Completion(3, 5)))  # 2 is stale
    assert got == [[e.Completion(2), e.Completion(1)], [e.Completion(3, 5)]]
    assert actor.ctx._pending == {}


def test_a_queue_has_room_for_what_is_neither_staged_nor_outstanding() -> None:
    def setup(self: Any, ctx: uxk.Context) -> None:
        queue = ctx.queue(9, lambda batch: None)
        for _ in range(7):
            ctx.log("taken")
        queue.submit(uxk.Op.READ)
        assert queue.room == 0
        with pytest.raises(uxk.RingFull, match="actor: 1 commands are outstanding, 8 staged, of 8"):
            queue.submit(uxk.Op.READ)

    actor = made(setup=setup)
    assert actor.crash is None and len(ups(actor.output())) == 8


def test_an_error_in_the_callback_of_a_queue_is_a_crash() -> None:
    def setup(self: Any, ctx: uxk.Context) -> None:
        ctx.queue(9, raiser(ValueError("boom"))).submit(uxk.Op.READ)

    actor = made(setup=setup)
    actor.output()
    actor.turn(5, [], down(e.Completion(1)))
    assert actor.crash is not None and (actor.crash.where, actor.crash.message) == ("turn", "boom")


def test_without_a_kernel_that_can_be_kicked_nothing_happens() -> None:
    kicks: list[bool] = []
    actor = made(on_stop=lambda self, ctx, reason: kicks.append(ctx.kick()))
    assert actor.ctx.kick() is False
    actor.watch_output(None, lambda: True)
    assert actor.ctx.kick() is True
    actor.stop("bye")  # told outside turns
    assert kicks == [False]
