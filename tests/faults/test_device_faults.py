"""Faults that a device does to itself, in scenarios; and faults added while a kernel runs."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.errors import ConfigError, TreeError
from uxk.faults import Fault, FaultPlan
from uxk.faults.model import problem
from uxk.faults.text import LIVE_MAX, LiveFaults, parse_fault, render_fault
from uxk.scenario import ClosedLoop, Load
from uxk.scenario.model import Check, Scenario
from uxk.testing import boot

MS = 1_000_000
PIECES = (
    "kind=drop", "kind=delay", "module=m", "delay_ns=1ms", "at_ns=\u0663", "count=-1", "name=a b", "=",
    "probability_ppm=5",
)  # fmt: skip


class Fragile(uxk.Extension):
    """Fails requests while it has a rule ``fail``; refuses rules with other names."""

    manifest = uxk.Manifest(name="fd-fragile", license="MIT", kind="driver", driver_class="block")

    def setup(self, ctx: uxk.Context) -> None:
        self.rules: dict[str, int] = {}
        self.writes = 0
        self.outcome = "ok"
        self.publish(ctx)
        ctx.set_attribute("knob", "", writable=True)

    def publish(self, ctx: uxk.Context) -> None:
        lines = (f"add id={number} fail # fired={fired}" for number, fired in self.rules.items())
        ctx.set_attribute("faults", "\n".join(lines), writable=True)
        ctx.set_attribute("faults_status", f"{self.writes} {self.outcome}")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        words = event.value.decode().split()
        if event.name == "knob":
            ctx.set_attribute("knob", event.value.decode(), writable=True)
            return
        self.writes += 1
        self.outcome = "ok"
        if words[0] == "rm":
            del self.rules[words[1]]
        elif words[2] == "fail":
            self.rules[words[1].removeprefix("id=")] = 0
        else:
            self.outcome = f"error: {words[2]!r}: expected fail"
        self.publish(ctx)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            for number in self.rules:
                self.rules[number] += 1
            ctx.complete(request, status=errno.EIO if self.rules else 0)
        self.publish(ctx)


def scenario(*faults: Fault, checks: tuple[Check, ...] = (), module: str = "fd-fragile") -> Scenario:
    """One request each millisecond for 20 ms."""
    load = ClosedLoop(device=f"{module.replace('-', '_')}0", think_ns=MS, count=20, read_ppm=0, size_bytes=512)
    return Scenario(name="t", modules=(Load(name=module),), workloads=(load,), faults=faults, checks=checks)


def run(*faults: Fault, **settings: Any) -> Any:
    return uxk.run(scenario(*faults, **settings))


def test_a_device_misbehaves_from_its_time_on() -> None:
    result = run(Fault(kind="device", module="fd-fragile", rule="fail", at_ns=12 * MS + 1))
    assert result["workloads.load.failed"] == 7
    assert result["faults.device-0.fired"] == 7
    assert result["modules.fd_fragile.attributes.faults"].startswith("add id=1000 fail")
    assert result.exit_code == 0


def test_it_stops_when_the_rule_is_taken_back() -> None:
    fault = Fault(kind="device", module="fd-fragile", name="bad", rule="fail", at_ns=3 * MS + 1, until_ns=8 * MS + 1)
    result = run(fault, checks=(Check(value="faults.bad.fired", op="==", than=5),))
    assert result["workloads.load.failed"] == 5
    assert result["modules.fd_fragile.attributes.faults"] == ""
    assert result.exit_code == 0
    assert run(fault).event_hash == run(fault).event_hash != run().event_hash


def test_a_rule_that_the_module_refuses_fails_the_run_with_place_and_words() -> None:
    result = run(Fault(kind="device", module="fd-fragile", rule="fial", at_ns=2 * MS))
    assert result.exit_code == 1
    (failed,) = (verdict for verdict in result.checks if not verdict.good)
    assert failed.what == "fault device-0"
    assert failed.seen == "faults[0] at 2000000 ns: fd_fragile, 'fial': 'fial': expected fail"


def test_writes_of_one_instant_are_answered_one_by_one() -> None:
    rules = ("fail", "wrong", "fail", "odd")
    result = run(*(Fault(kind="device", module="fd-fragile", rule=rule, at_ns=MS) for rule in rules))
    assert {verdict.what: verdict.seen.rpartition(": '")[2] for verdict in result.checks} == {
        "fault device-1": "wrong': expected fail",
        "fault device-3": "odd': expected fail",
    }
    assert len(result["modules.fd_fragile.attributes.faults"].splitlines()) == 2


def test_other_attributes_take_the_rule_as_it_is() -> None:
    result = run(Fault(kind="device", module="fd-fragile", attribute="knob", rule="down", at_ns=MS))
    assert result["modules.fd_fragile.attributes.knob"] == "down"
    for until_ns, value in ((2 * MS, "up"), (500 * MS, "down")):
        fault = Fault(
            kind="device", module="fd-fragile", attribute="knob", rule="down", undo="up", at_ns=MS, until_ns=until_ns
        )
        assert run(fault)["modules.fd_fragile.attributes.knob"] == value
    assert result["faults.device-0.fired"] == 1
    assert result.exit_code == 0


def test_a_module_that_publishes_no_such_attribute_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"faults\[0\]: no attribute .*attributes/faults; published are: none"):
        uxk.run(scenario(Fault(kind="device", module="fd-plain", rule="fail"), module="fd-plain"))
    with pytest.raises(ConfigError, match=r"attributes/knop \(did you mean 'knob'\?\); published are: faults, "):
        run(Fault(kind="device", module="fd-fragile", attribute="knop", rule="x"))


class Plain(uxk.Extension):
    """Answers everything."""

    manifest = uxk.Manifest(name="fd-plain", license="MIT", kind="driver", driver_class="block")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests)


class Deaf(uxk.Extension):
    """Publishes the attributes, and never says what came of a write."""

    manifest = uxk.Manifest(name="fd-deaf", license="MIT", kind="driver", driver_class="block")

    def setup(self, ctx: uxk.Context) -> None:
        ctx.set_attribute("faults", "", writable=True)
        ctx.set_attribute("faults_status", "0 ok")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests)


class Mortal(Plain):
    """Can be killed, and comes back."""

    manifest = uxk.Manifest(
        name="fd-mortal", license="MIT", kind="driver", driver_class="block", fate="reissue",
        restart=uxk.RestartPolicy(backoff_ns=MS), watchdog=uxk.Watchdog(request_timeout_ns=MS, timeouts_max=100),
    )  # fmt: skip


def test_silence_is_a_failure_in_the_end() -> None:
    result = run(Fault(kind="device", module="fd-deaf", rule="x", at_ns=MS), module="fd-deaf")
    assert [verdict.seen for verdict in result.checks] == [
        "faults[0] at 1000000 ns: fd_deaf, 'x': written, but the module has not answered"
    ]


def test_a_module_that_dies_takes_its_rules_along() -> None:
    result = run(
        Fault(kind="device", module="fd-fragile", rule="fail", at_ns=3 * MS + 1, until_ns=9 * MS),
        Fault(kind="crash", module="fd-fragile", at_ns=5 * MS + 1),
    )
    assert result["workloads.load.failed"] >= 2
    assert result["modules.fd_fragile.attributes.faults"] == ""
    assert not result.checks


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(kind="device", module="m"), "needs a rule"),
        (Fault(kind="device", module="m", rule="a\nb"), "expected one line"),
        (Fault(kind="device", module="m", rule="x", at_ns=5, until_ns=5), "until_ns=5 is not after at_ns=5"),
        (Fault(kind="device", module="m", rule="x", attribute="link", until_ns=5), "takes back rules of 'faults'"),
        (Fault(kind="device", module="m", rule="x", undo="y", until_ns=5), "undo has no meaning for attribute"),
        (Fault(kind="device", module="m", rule="x", undo="y", attribute="link"), "undo needs until_ns"),
        (Fault(kind="device", module="m", rule="x", undo="a\nb", attribute="link", until_ns=5), "expected one line"),
        (Fault(kind="drop", module="m", undo="y"), "undo has no meaning for a drop"),
        (Fault(kind="device", module="m", rule="x", count=1), "count has no meaning for a device"),
        (Fault(kind="device", module="m", rule="x", probability_ppm=1), "probability_ppm has no meaning"),
        (Fault(kind="drop", module="m", rule="x"), "rule has no meaning for a drop; it is for: device"),
    ],
)
def test_senseless_device_faults_are_refused(fault: Fault, text: str) -> None:
    assert text in problem(fault)
    with pytest.raises(ConfigError, match=r"faults\[0\]: .*" + text):
        FaultPlan(uxk.Kernel(), [fault])


# --- while it runs ------------------------------------------------------------------------------------------


async def test_a_fault_added_to_a_running_kernel_strikes_and_can_be_removed() -> None:
    async with boot() as kernel:
        plain = await kernel.modprobe("fd-mortal")
        LiveFaults(kernel)
        path = "/sys/kernel/faults"
        assert kernel.sysfs.read(path) == ""
        await plain.submit()
        kernel.sysfs.write(path, "add kind=delay module=fd-mortal delay_ns=100us probability_ppm=1000000")
        before_ns = kernel.now_ns
        await plain.submit()
        assert kernel.now_ns - before_ns == 100_000
        assert kernel.sysfs.read(path) == (
            "add kind=delay module=fd-mortal name=delay-0 probability_ppm=1000000 delay_ns=100000 # fired=1"
        )
        kernel.sysfs.write(path, "rm delay-0")
        before_ns = kernel.now_ns
        await plain.submit()
        assert kernel.now_ns == before_ns
        kernel.sysfs.write(path, "add kind=crash module=fd-mortal name=boom at_ns=1ms")
        await kernel.sleep_ns(3 * MS)
        assert plain.account.restarts == 1
        kernel.sysfs.write(path, "add kind=drop module=fd-mortal count=1")
        assert [(await plain.submit_batch([uxk.Request(0), uxk.Request(0)]))[n].status for n in (0, 1)].count(0) == 1
        assert [line.rpartition(" # ")[2] for line in kernel.sysfs.read(path).splitlines()] == ["fired=1", "fired=1"]
        kernel.sysfs.write(path, "clear")
        assert kernel.sysfs.read(path) == ""
        await plain.submit()


async def test_a_removed_crash_does_not_strike() -> None:
    async with boot() as kernel:
        plain = await kernel.modprobe("fd-mortal")
        LiveFaults(kernel)
        kernel.sysfs.write("/sys/kernel/faults", "add kind=crash module=fd-mortal at_ns=1ms\nrm crash-0")
        await kernel.sleep_ns(3 * MS)
        assert plain.account.faults == 0


async def test_a_removed_fault_is_waited_for_no_longer() -> None:
    async with boot() as kernel:
        plain = await kernel.modprobe("fd-mortal")
        LiveFaults(kernel)
        lasting, now_ns = kernel.machine.heap.lasting, kernel.now_ns
        for number in range(50):
            text = f"add kind=crash module=fd-mortal at_ns=1h name=x{number % 2}"
            kernel.sysfs.write("/sys/kernel/faults", f"{text} every_ns=1s count=2\nrm x{number % 2}")
        kernel.sysfs.write("/sys/kernel/faults", "add kind=crash module=fd-mortal every_ns=1h count=9 name=y")
        await kernel.sleep_ns(MS)
        kernel.sysfs.write("/sys/kernel/faults", "rm y")  # has struck once, and would again
        assert (plain.account.faults, kernel.machine.heap.lasting - lasting) == (1, 0)
        await kernel.run()
        assert kernel.now_ns - now_ns < 3600 * 1000 * MS


class Tasked(uxk.Extension):
    """Has a task of its own; at the second request it goes."""

    manifest = uxk.Manifest(
        name="fd-tasked", license="MIT", fate="reissue",
        restart=uxk.RestartPolicy(mode="permanent", backoff_ns=MS, max_restarts=9),
    )  # fmt: skip

    async def run(self, ctx: uxk.Context) -> None:
        async for batch in ctx.batches():
            ctx.complete_batch(batch)
            if any(request.payload == b"go" for request in batch):
                return


async def test_a_running_instance_with_a_task_of_its_own_can_be_struck() -> None:
    async with boot() as kernel:
        tasked = await kernel.modprobe("fd-tasked")
        LiveFaults(kernel)
        write = partial(kernel.sysfs.write, "/sys/kernel/faults")
        write("add kind=crash module=fd-tasked at_ns=1ms")
        await kernel.sleep_ns(5 * MS)
        assert (tasked.account.faults, tasked.account.restarts) == (1, 1)
        write("add kind=delay module=fd-tasked delay_ns=5ms count=1")
        before_ns = kernel.now_ns
        assert (await tasked.submit(b"one")).status == 0
        assert kernel.now_ns - before_ns >= 5 * MS
        write("add kind=hang module=fd-tasked duration_ns=7ms")
        await kernel.sleep_ns(0)
        before_ns = kernel.now_ns
        assert (await tasked.submit(b"two")).status == 0
        assert 7 * MS <= kernel.now_ns - before_ns < 9 * MS
        # The end of its task is noticed, behind the filter, too.
        await tasked.submit(b"go")
        await kernel.sleep_ns(5 * MS)
        assert (tasked.account.faults, tasked.account.restarts) == (1, 2)
        write("add kind=crash module=fd-tasked probability_ppm=1000000 count=1")
        assert (await tasked.submit(b"three")).status == 0
        assert (tasked.account.faults, tasked.account.restarts) == (2, 3)
        await kernel.rmmod("fd-tasked")


async def test_on_the_real_clock_a_fault_strikes_a_kernel_that_has_nothing_to_do() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        tasked = await kernel.modprobe("fd-tasked")
        LiveFaults(kernel)
        await trio.testing.wait_all_tasks_blocked()
        kernel.sysfs.write("/sys/kernel/faults", "add kind=crash module=fd-tasked")
        called = trio.Event()
        kernel.call_at_ns(0, lambda _: called.set())
        with trio.fail_after(30):
            await called.wait()
        assert tasked.account.faults == 1


@pytest.mark.parametrize(
    ("text", "message", "number"),
    [
        ("add kind=drop module=fd-plian", "line 1: module 'fd_plian' is not loaded.*mean 'fd_plain'", errno.EINVAL),
        ("add kind=drop", "missing required field `module`", errno.EINVAL),
        ("add kind=drap module=fd-plain", "Invalid enum value 'drap'", errno.EINVAL),
        ("add kind=device module=fd-plain", "known: kind|needs a rule", errno.EINVAL),
        ("add kind=delay module=fd-plain delay_ns=1parsec", "delay_ns=1parsec: unknown unit", errno.EINVAL),
        ("add kind=drop module=fd-plain modul=x", r"'modul=x': no such key \(did you mean 'module'\?\)", errno.EINVAL),
        ("add kind=drop kind=drop module=x", "kind is given twice", errno.EINVAL),
        ("add kind=drop module", "'module': expected KEY=VALUE", errno.EINVAL),
        ("add kind=drop module=fd-plain name=a\nadd kind=drop module=fd-plain name=a", "line 2: name=a: there is", 17),
        ("add " + "x" * 600, "expected at most", errno.EINVAL),
        ("ad kind=drop", "did you mean 'add'", errno.EINVAL),
        ("rm x", "no fault 'x'; there are: none", errno.ENOENT),
    ],
)
async def test_mistakes_while_it_runs_are_named(text: str, message: str, number: int) -> None:
    async with boot() as kernel:
        await kernel.modprobe("fd-plain")
        await kernel.modprobe("fd-tasked")
        LiveFaults(kernel)
        with pytest.raises(TreeError, match=message) as caught:
            kernel.sysfs.write("/sys/kernel/faults", text)
        assert caught.value.errno == number


async def test_faults_of_a_running_kernel_are_bounded() -> None:
    async with boot() as kernel:
        await kernel.modprobe("fd-plain")
        LiveFaults(kernel)
        lines = ["add kind=drop module=fd-plain at_ns=1h"] * (LIVE_MAX + 1)
        with pytest.raises(TreeError, match=f"line {LIVE_MAX + 1}: {LIVE_MAX} faults are there"):
            kernel.sysfs.write("/sys/kernel/faults", "\n".join(lines))


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join))
def test_any_line_is_a_fault_or_a_config_error(text: str) -> None:
    try:
        fault = parse_fault(text)
    except ConfigError:
        return
    assert parse_fault(render_fault(fault)) == fault


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="hang", module="a-b", at_ns=5, duration_ns=7, count=3, every_ns=9, name="x"),
        Fault(kind="corrupt", module="m", where="requests", part="frame", probability_ppm=3, count=0),
    ],
)
def test_a_fault_survives_its_line(fault: Fault) -> None:
    assert parse_fault(render_fault(fault)) == fault
