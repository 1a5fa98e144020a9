"""Every check of the conformance suite is shown a violation, so that a check that has gone blind is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import pytest

import uxk
from uxk.errors import ParamError
from uxk.testing import CheckFailure, Subject, all_checks, run_checks, subject

CHECKS = {check.__name__: check for check in all_checks()}


class Plain(uxk.Extension[Any]):
    """Base of what follows: serves, and has a manifest that a subclass need not think about."""

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request)


def manifest(**more: Any) -> uxk.Manifest:
    more = {"name": "specimen", "version": "1", "license": "Apache-2.0", "description": "A specimen.", **more}
    return uxk.Manifest(**more)


class Number(uxk.Params):
    number: Annotated[int, uxk.param(ge=0, le=9, writable=True, help="a number")] = 5


class Good(Plain):
    manifest = manifest(params=Number)


# --- broken extensions, by the check that must notice ---------------------------------------------------


class Mute(uxk.Params):
    number: int = 0


class Undescribed(Plain):
    manifest = manifest(params=Mute)


class Hoarder(Plain):
    manifest = manifest()
    kept: ClassVar[list[Any]] = []

    def setup(self, ctx: uxk.Context) -> None:
        self.kept.append(self)


class LeavesFilesOpen(Plain):
    manifest = manifest()
    opened: ClassVar[list[int]] = []

    def setup(self, ctx: uxk.Context) -> None:
        self.opened.append(os.open(os.devnull, os.O_RDONLY))


class DividesByItsParameter(Plain):
    manifest = manifest(params=Number)

    def setup(self, ctx: uxk.Context) -> None:
        self.each = 100 // self.params.number


class DividesLater(Plain):
    manifest = manifest(params=Number)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        super().on_batch(ctx, requests[: 100 // self.params.number])


class TrustsItsOpcodes(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, payload=uxk.Op(request.opcode).name.encode())


class TrustsItsLengths(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, payload=bytes(request.length))


class ForgetsUnknownOpcodes(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        super().on_batch(ctx, [request for request in requests if request.opcode < uxk.Op.PRIVATE])


class AnswersTwice(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        super().on_batch(ctx, requests)
        super().on_batch(ctx, requests[-1:])


class DropsLongBatches(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        super().on_batch(ctx, requests[:32])


class AsksAtEveryEvent(Plain):
    manifest = manifest(params=Number)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.read("/sys/kernel/seed")
        ctx.read("/sys/kernel/clock")


class DiesSoon(Plain):
    manifest = manifest(restart=uxk.RestartPolicy(mode="temporary"))

    def setup(self, ctx: uxk.Context) -> None:
        ctx.call_later_ns(1, lambda _: 1 // 0)


class AnswersAtTheEnd(Plain):
    manifest = manifest()

    def setup(self, ctx: uxk.Context) -> None:
        self.kept: list[uxk.Request] = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.kept += requests

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        super().on_batch(ctx, self.kept)


class LivesOnce(Plain):
    manifest = manifest()

    def setup(self, ctx: uxk.Context) -> None:
        if ctx.now_ns > 0:  # every kernel loads it at time 0, and restarts it later
            raise ValueError("one life is enough")


class ReadyTwiceOnly(Plain):
    manifest = manifest(ready="explicit", restart=uxk.RestartPolicy(backoff_ns=1, max_restarts=9))
    births: ClassVar[list[int]] = []

    def setup(self, ctx: uxk.Context) -> None:
        self.births.append(ctx.now_ns)
        if len(self.births) < 3:
            ctx.ready()


class LooksAtTheHostsClock(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, result=time.perf_counter_ns())


class Talkative(Plain):
    manifest = manifest()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        super().on_batch(ctx, requests)
        for request in requests:
            ctx.log(f"request {request.cid}")
            ctx.call_later_ns(request.cid, lambda cid: ctx.log(f"served {cid}"), request.cid)


class Alarming(Plain):
    manifest = manifest()

    def setup(self, ctx: uxk.Context) -> None:
        ctx.log("all is well", level=0)


class Restless(Plain):
    manifest = manifest()

    def setup(self, ctx: uxk.Context) -> None:
        self.again(ctx)

    def again(self, ctx: uxk.Context) -> None:
        ctx.call_later_ns(100_000, lambda _: self.again(ctx), daemon=True)


BROKEN: tuple[tuple[str, type[uxk.Extension[Any]], str], ...] = (
    ("check_manifest", Undescribed, "no help for number"),
    ("check_load_unload", Hoarder, "'instances': 50"),
    ("check_load_unload", LeavesFilesOpen, "file_descriptors"),
    ("check_parameters", DividesByItsParameter, "number=0: specimen: ZeroDivisionError"),
    ("check_parameters", DividesLater, "number=0: "),
    ("check_parameters_written", DividesLater, "specimen/parameters/number"),
    ("check_hostile_requests", TrustsItsOpcodes, "every opcode"),
    ("check_hostile_requests", TrustsItsLengths, "lengths beyond a payload"),
    ("check_hostile_requests", ForgetsUnknownOpcodes, "past their deadline"),
    ("check_hostile_requests", AnswersTwice, "stale_cid"),
    ("check_full_queue", DropsLongBatches, "past their deadline"),
    ("check_busy_events", AsksAtEveryEvent, "RingFull"),
    ("check_cancelled_load", DiesSoon, "ZeroDivisionError"),
    ("check_removal_in_flight", AnswersAtTheEnd, "past their deadline"),
    ("check_crash", LivesOnce, "one life is enough"),
    ("check_crash_loop", ReadyTwiceOnly, "expected LIVE or GONE"),
    ("check_determinism", LooksAtTheHostsClock, "event hashes"),
    ("check_log", Talkative, "lines suppressed"),
    ("check_log", Alarming, "all is well"),
    ("check_idle", Restless, "turns in an idle second"),
)


@pytest.mark.parametrize(("name", "cls", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value)))
def test_check_notices(name: str, cls: type[uxk.Extension[Any]], words: str) -> None:
    with pytest.raises(CheckFailure) as caught:
        CHECKS[name](Subject(cls))
    failure = caught.value
    assert words in str(failure), failure
    assert (failure.module, failure.check) == ("specimen", name)
    assert failure.seen
    assert failure.expected


# --- broken kernels: what no extension can bring about --------------------------------------------------


def accepts_anything(module: str, cls: type[uxk.Params], values: object) -> uxk.Params:
    return cls()


def names_nothing(module: str, cls: type[uxk.Params], values: dict[str, object]) -> uxk.Params:
    if values:
        raise ParamError("no")
    return cls()


def nothing(*_: object, **__: object) -> None:
    return None


def fails(*_: object) -> None:
    raise ValueError("a bug of the kernel's")


def grants_everything(*_: object) -> tuple[int, bytes]:
    return 0, b""


BROKEN_KERNELS: tuple[tuple[str, str, Callable[..., Any], str], ...] = (
    ("check_load_unload", "uxk.kernel.views.remove_instance", nothing, "kobjects"),
    ("check_parameters_refused", "uxk.kernel.loader.parse_params", accepts_anything, "accepted"),
    ("check_parameters_refused", "uxk.kernel.loader.parse_params", names_nothing, "names module and parameter"),
    ("check_full_queue", "uxk.kernel.requests.RequestTable._check_backlog", nothing, "requests accepted"),
    ("check_removal_in_flight", "uxk.kernel.loader.Loader.users", lambda *_: [], "requests in flight"),
    ("check_shutdown_in_flight", "uxk.kernel.requests.RequestTable.close", nothing, "shutdown_in_flight"),
    ("check_log", "uxk.kernel.services.Services._log", fails, "BUG"),
    ("check_misuse", "uxk.kernel.services.Services._open", grants_everything, "status 0"),
)


class Logs(Good):
    manifest = manifest(params=Number)

    def setup(self, ctx: uxk.Context) -> None:
        ctx.log("hello")


@pytest.mark.parametrize(("name", "target", "replacement", "words"), BROKEN_KERNELS)
def test_check_notices_a_broken_kernel(
    name: str, target: str, replacement: Callable[..., Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, replacement)
    with pytest.raises(CheckFailure) as caught:
        CHECKS[name](Subject(Logs))
    assert words in str(caught.value), caught.value


# --- the suite as a whole -------------------------------------------------------------------------------


def test_every_check_is_shown_a_violation() -> None:
    assert {case[0] for case in (*BROKEN, *BROKEN_KERNELS)} == set(CHECKS)


def test_a_good_module_passes() -> None:
    assert [result for result in run_checks(Good) if not result.passed] == []


def test_checks_are_documented() -> None:
    assert [name for name, check in CHECKS.items() if not check.__doc__] == []


def test_a_failing_module_gives_results_not_errors() -> None:
    results = {result.check: result for result in run_checks(Undescribed)}
    assert list(results) == list(CHECKS)
    assert not results["check_manifest"].passed
    assert results["check_idle"].passed


def test_a_class_without_a_manifest_is_reported() -> None:
    class Nameless(uxk.Extension[Any]):
        pass

    with pytest.raises(CheckFailure, match="Nameless: check_manifest"):
        CHECKS["check_manifest"](Subject(Nameless))


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(uxk.NoSuchModule, match="no-such"):
        subject("no-such-module-anywhere")
