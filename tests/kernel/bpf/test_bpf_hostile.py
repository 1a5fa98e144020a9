"""Hostile modules and hostile programs: what they may not do, and what is left of them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.core.site import DecisionSite
from uxk.errors import TreeError, UsageError
from uxk.kernel.bpf.policy import PolicyPort
from uxk.kernel.bpf.registry import ARRAYS_MAX_BYTES, LOADS_BURST, OWNED_MAX, OWNED_MAX_BYTES, PINS_MAX
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.testing.kernels import crash

SCHEMA = Schema([Feature("age", 0, 1000), Feature("heat", -10, 10)])
WIDER = Schema([Feature("age", 0, 100_000), Feature("heat", -10, 10)])
PASS, EXIT = assemble("r0 = 0\nexit"), assemble("r0 = 1\nexit")
AGE = assemble("r0 = *(u64 *)(r1 + 0)\nexit")
CONFIG = InjectionConfig(decisions_min=4, batch=2, audit_every=0, interval_ns=0)
BPF = "/sys/fs/bpf"


class Hostile(uxk.Extension):
    """Says whatever it is told to, and collects the answers."""

    manifest = uxk.Manifest(
        name="bad", version="1", budget=uxk.Budget(queue_depth=256), restart=uxk.RestartPolicy(mode="temporary"),
        capabilities=("bpf:site/disk.*", "bpf:agent/bad", "bpf:queue/bad0:write"),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    answers: ClassVar[list[tuple[int, int, str]]] = []
    word: ClassVar[int] = 1

    def setup(self, ctx: uxk.Context) -> None:
        Hostile.ctx = ctx
        self.answers.clear()

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "shadow":
            shown = uxk.uapi.ml.decode_shadow(event.value)
            ctx.judge(shown.injection, shown.first, [self.word] * (len(shown.rows) // 8 // shown.width))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()

    @classmethod
    def ask(cls, what: str, *arguments: Any, **named: Any) -> None:
        reply = getattr(cls.ctx, what)(*arguments, **named)
        reply.then(lambda done: cls.answers.append((done.status, done.result, done.payload.decode())))


class Victim(uxk.Extension):
    """Somebody else, with a program."""

    manifest = uxk.Manifest(name="good", version="1", capabilities=("bpf:queue/good0", "bpf:site/disk.*"))
    ctx: ClassVar[uxk.Context]

    def setup(self, ctx: uxk.Context) -> None:
        Victim.ctx = ctx
        ctx.load_program("queue/good0", PASS, arrays=[(8, 1)])

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def kernel_with(**offer: Any) -> AsyncIterator[tuple[uxk.Kernel, PolicyPort]]:
    async with uxk.Kernel(seed=4) as kernel:
        site = DecisionSite("disk.pick", lambda payload: "")
        port = kernel.policies.offer(site, SCHEMA, offer.pop("verdict", (0, 1)), config=CONFIG, **offer)
        await kernel.insmod(Hostile)
        yield kernel, port


async def ask(kernel: uxk.Kernel, what: str, *arguments: Any, **named: Any) -> tuple[int, str]:
    Hostile.ask(what, *arguments, **named)
    await kernel.sleep_ns(1000)
    return Hostile.answers[-1][0], Hostile.answers[-1][2]


async def decided(kernel: uxk.Kernel, port: PolicyPort, count: int = 8) -> list[int | None]:
    found = []
    for age in range(count):
        verdict = port.decide(age, 0)
        found.append(None if verdict is None else verdict.value)
        await kernel.sleep_ns(1000)
    return found


@pytest.mark.parametrize(
    ("at", "status"),
    [
        ("agent/good", errno.EACCES), ("queue/good0", errno.EACCES), ("queue/bad0", errno.EACCES),
        ("agent/bad/../good", errno.EACCES), ("agent/*", errno.EACCES), ("site/disk.pick", errno.EINVAL),
        ("site/disk.x/../../queue/good0", errno.EACCES), ("site/disk.*", errno.ENODEV), ("", errno.EINVAL),
        ("agent/bad\n", errno.EACCES), ("site/disk.\n<3>kernel: owned", errno.ENODEV),
    ],
)  # fmt: skip
async def test_nobody_loads_where_his_manifest_does_not_say_so(at: str, status: int) -> None:
    async with kernel_with() as (kernel, _):
        await kernel.insmod(Victim)
        before = list(kernel.bpf.programs)
        found, why = await ask(kernel, "load_program", at, PASS)
        assert found == status and list(kernel.bpf.programs) == before and len(kernel.bpf.maps) == 1
        assert all("\n" not in record.text for record in kernel.kmsg.records()) and "\n" not in why


async def test_words_in_the_wrong_order_are_named_before_they_are_sent() -> None:
    async with kernel_with():
        for what in ("inject", "load_program"):
            with pytest.raises(UsageError, match=r"expected where it goes \(str\), then its bytes; got bytes and str"):
                Hostile.ask(what, PASS, "agent/bad")


async def test_programs_of_others_are_not_replaced_and_their_weights_not_moved() -> None:
    async with kernel_with() as (kernel, port):
        await kernel.insmod(Victim)
        Victim.ctx.inject("disk.pick", PASS, weights=bytes(8))
        await kernel.sleep_ns(1000)
        theirs = [each.id for each in kernel.bpf]
        for number in (*theirs, 99):
            assert (await ask(kernel, "load_program", "agent/bad", PASS, replaces=number))[0] == errno.ENOENT
            assert (await ask(kernel, "load_program", "queue/good0", PASS, replaces=number))[0] == errno.EACCES
        assert (await ask(kernel, "update_weights", 1, bytes(8)))[0] == errno.ENOENT
        assert (await ask(kernel, "judge", 1, 0, [0] * 8))[0] == errno.ENOENT
        assert (await ask(kernel, "inject", "disk.pick", PASS))[0] == errno.EBUSY
        for path in ("prog/1/pin", "prog/1/run", "prog/1/detach", "map/1/pin", "map/1/update", "unpin",
                     "site/disk.pick/control"):  # fmt: skip
            assert (await ask(kernel, "write", f"{BPF}/{path}", "x"))[0] == errno.EACCES, path
        assert [each.id for each in kernel.bpf] == theirs and port.candidate is not None


async def test_the_schema_of_another_site_proves_nothing_here() -> None:
    async with kernel_with(verdict=(0, 1000)) as (kernel, _):
        for name, schema, verdict in (("disk.wide", WIDER, (0, 1000)), ("disk.narrow", SCHEMA, (0, 1))):
            kernel.policies.offer(DecisionSite(name, lambda payload: ""), schema, verdict, config=CONFIG)
            other = kernel.bpf.load(AGE, "site/disk.pick")
            with pytest.raises(UsageError, match=r"verified for site/disk\.pick"):
                kernel.bpf.attach(other, f"site/{name}")
            assert (await ask(kernel, "inject", name, AGE))[0] == errno.EINVAL
        with pytest.raises(UsageError, match="verified for"):
            kernel.bpf.attach(kernel.bpf.load(PASS, "agent/bad"), "queue/bad0")


async def test_kernel_memory_is_bounded_for_each_and_given_back() -> None:
    async with kernel_with() as (kernel, _):
        memory = lambda: kernel.sysfs.read(f"{BPF}/memory")  # noqa: E731
        assert memory() == ""
        for arrays, status in (([(1 << 21, 1)], errno.ENOMEM), ([(1, 1 << 30)], errno.ENOMEM), ([(0, 1)], errno.EINVAL),
                               ([(8, 1), (0, 1)], errno.EINVAL), ([(8, 1), (8, 0)], errno.EINVAL)):  # fmt: skip
            assert (await ask(kernel, "load_program", "agent/bad", PASS, arrays=arrays))[0] == status
            assert not kernel.bpf.maps and memory() == ""
        for arrays, count in (([(ARRAYS_MAX_BYTES - 4096, 1)], 4), ([], OWNED_MAX - 4)):
            for number in range(count + 1):
                await kernel.sleep_ns(100_000_000)
                found, _ = await ask(kernel, "load_program", "agent/bad", PASS, arrays=arrays)
                assert (found == 0) == (number < count)
            assert found == (errno.ENOMEM if arrays else errno.ENOSPC)
            assert 3 << 20 < int(memory().split()[1]) <= OWNED_MAX_BYTES
        assert (len(kernel.bpf.maps), len(kernel.bpf.programs)) == (4, OWNED_MAX)
        crash(kernel, "bad")
        assert not kernel.bpf.programs and not kernel.bpf.maps and memory() == ""


async def test_bytes_of_arrays_are_those_that_they_take() -> None:
    """A value takes a multiple of eight bytes, however small it is."""
    async with kernel_with() as (kernel, _):
        found, why = await ask(kernel, "load_program", "agent/bad", PASS, arrays=[(1, ARRAYS_MAX_BYTES)])
        assert (found, "bytes" in why) == (errno.ENOMEM, True) and not kernel.bpf.maps


async def test_verification_is_not_for_free() -> None:
    async with kernel_with() as (kernel, _):
        for _ in range(LOADS_BURST + 20):
            Hostile.ask("load_program", "agent/bad", b"\x95")
        await kernel.sleep_ns(1000)
        assert [each[0] for each in Hostile.answers] == [errno.EINVAL] * LOADS_BURST + [errno.EAGAIN] * 20
        await kernel.sleep_ns(1_000_000_000)
        assert (await ask(kernel, "load_program", "agent/bad", PASS))[0] == 0


async def test_injections_by_the_hundred_leave_nothing() -> None:
    async with kernel_with() as (kernel, port):
        for number in range(300):
            await kernel.sleep_ns(10_000_000)
            Hostile.ask("inject", "disk.pick", (EXIT, b"\x95", PASS)[number % 3], weights=bytes(64))
            await kernel.sleep_ns(1000)
            await decided(kernel, port, 4)
            assert len(kernel.bpf.programs) <= 2 and len(kernel.bpf.maps) <= 2
            assert len(kernel.policies._live) <= 2
        assert port.generation >= 100 and not [name for name in kernel.machine.streams._streams if "injected" in name]
        await kernel.rmmod("bad")
        assert kernel.sysfs.read(f"{BPF}/memory") == "" and not kernel.policies._live


async def test_a_judge_that_agrees_with_everything_gets_its_program_in_and_no_further() -> None:
    """Agreement is the agent's word; the range of verdicts is not."""
    async with kernel_with() as (kernel, port):
        Hostile.ask("inject", "disk.pick", EXIT)
        await kernel.sleep_ns(1000)
        await decided(kernel, port)
        assert port.current is not None and set(await decided(kernel, port)) == {1}
        for first, word in ((0, 1), (1 << 62, 1), (4, -1)):
            assert (await ask(kernel, "judge", 1, first, [word] * 4))[0] == errno.EINVAL
        assert (await ask(kernel, "judge", 2, 0, [1]))[0] == errno.ENOENT and port.current is not None


async def test_a_program_that_faults_at_its_thousandth_run() -> None:
    async with kernel_with() as (kernel, port):
        Hostile.ask("inject", "disk.pick", EXIT)
        await kernel.sleep_ns(1000)
        await decided(kernel, port)
        program = port.current
        assert program is not None
        usual = program.program.translation.function
        program.program.translation.function = lambda fields: 1 // 0 if program.runs == 1000 else usual(fields)
        found = [port.decide(1, 0) for _ in range(1200)]
        at = found.index(None)
        assert program.runs == 1000 and None not in found[:at] and set(found[at:]) == {None}
        assert port.decisions == 8 + 1200 and port.fallbacks == 1 and not kernel.bpf.programs


async def test_the_interpreter_has_the_last_word() -> None:
    async with kernel_with() as (kernel, port):
        Hostile.ask("inject", "disk.pick", EXIT)
        await kernel.sleep_ns(1000)
        await decided(kernel, port)
        program = port.current
        assert program is not None
        program.program.translation.function = lambda fields: 0  # a translation with a mistake
        for _ in range(5000):
            port.decide(1, 0)
        assert program.runs == 4096 and "the interpreter disagrees with 0" in port.last_end


async def test_a_test_run_does_no_harm() -> None:
    async with kernel_with(verdict=(0, 1000)) as (kernel, port):
        program = kernel.bpf.load(AGE, "site/disk.pick")
        kernel.bpf.attach(program)
        path = f"{BPF}/prog/{program.id}/run"
        kernel.sysfs.write(path, SCHEMA.pack([7, 0]).hex())
        assert kernel.sysfs.read(path) == "7"
        for memory, why in (
            (SCHEMA.pack([1001, 0]), "1001; .* verified for 0 to 1000"), (SCHEMA.pack([-1, 0]), "-1; "),
            (b"\1" * 24, "verified for"), (b"", "0 bytes"),
        ):  # fmt: skip
            with pytest.raises(TreeError, match=why):
                kernel.sysfs.write(path, memory.hex())
        program.program.translation.function = lambda fields: 1 // 0
        kernel.sysfs.write(path, SCHEMA.pack([7, 0]).hex())
        assert "ZeroDivisionError" in kernel.sysfs.read(path) and port.current is program


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "x\ny", "é", "a" * 300, "..", " ", "%s%n", "\x1b[31m"])
async def test_names_of_pins_and_programs_are_names(name: str) -> None:
    async with kernel_with() as (kernel, _):
        program = kernel.bpf.load(PASS, "agent/bad")
        with pytest.raises((TreeError, UsageError)):
            kernel.sysfs.write(f"{BPF}/prog/{program.id}/pin", name)
        if name:
            with pytest.raises(UsageError):
                kernel.bpf.load(PASS, "agent/bad", name=name)
        with pytest.raises((TreeError, UsageError)):
            kernel.sysfs.write(f"{BPF}/unpin", name)
        assert not kernel.bpf.pinned and not kernel.sysfs.exists(f"{BPF}/pinned") and not program.pins


async def test_pins_are_counted() -> None:
    async with kernel_with() as (kernel, _):
        program = kernel.bpf.load(PASS, "agent/bad")
        for number in range(PINS_MAX):
            kernel.bpf.pin(program, f"p{number}")
        with pytest.raises(UsageError, match=f"{PINS_MAX} pins at most"):
            kernel.bpf.pin(program, "more")
        assert len(kernel.sysfs.read(f"{BPF}/prog/{program.id}/pins")) <= 4096
        for number in range(PINS_MAX):
            kernel.bpf.unpin(f"p{number}")
        assert not program.pins and program.id in kernel.bpf.programs  # the kernel's own


async def test_reasons_reach_the_log_as_one_line() -> None:
    async with kernel_with() as (kernel, port):
        for why in ("a\nb", "\x1b[31mred", "x" * 5000, "<3>kernel: panic\n6,1,1,-;owned", "\u202e"):
            await kernel.sleep_ns(10_000_000)
            Hostile.ask("inject", "disk.pick", PASS, why=why[:1000])
            await kernel.sleep_ns(1000)
            kernel.sysfs.write(f"{BPF}/site/disk.pick/control", "fallback")
            await kernel.sleep_ns(1000)
        texts = [record.text for record in kernel.kmsg.records(source="bpf")]
        assert len(texts) >= 15 and all(text.isprintable() and len(text) <= 1000 for text in texts)
        assert not [record for record in kernel.kmsg.records() if record.source == "kernel" and "owned" in record.text]
        assert port.candidate is None


async def test_points_of_instances_go_with_them() -> None:
    async with kernel_with() as (kernel, _):
        program = kernel.bpf.load(PASS, "agent/bad")
        kernel.bpf.attach(program)
        kernel.bpf.pin(program, "kept")
        await kernel.rmmod("bad")
        assert not program.attached and not kernel.machine.event_hooks and "agent/bad" not in kernel.bpf.points
        await kernel.insmod(Hostile)
        kernel.bpf.attach(program)
        assert list(kernel.machine.event_hooks) == [kernel.agents["bad"].id]


async def test_what_an_agent_had_loaded_for_another_goes_with_that() -> None:
    class Watcher(Hostile):
        manifest = uxk.Manifest(name="bad", version="1", capabilities=("bpf:agent/good",))

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Victim)
        await kernel.insmod(Watcher)
        await ask(kernel, "load_program", "agent/good", PASS, arrays=[(8, 4)])
        assert len(kernel.bpf.programs) == 2
        await kernel.rmmod("good")
        assert not kernel.bpf.programs and not kernel.bpf.maps  # nobody could unload it


async def test_what_vanishes_while_it_is_looked_at() -> None:
    async with kernel_with() as (kernel, _):
        program = kernel.bpf.load(PASS, "agent/bad")
        for path in ("name", "code/0", "run", "maps"):
            kernel.sysfs.read(f"{BPF}/prog/{program.id}/{path}")
        kernel.bpf.unload(program)
        for path in ("name", "code/0", "run"):
            with pytest.raises(TreeError) as gone:
                kernel.sysfs.read(f"{BPF}/prog/{program.id}/{path}")
            assert gone.value.errno == errno.ENOENT
        with pytest.raises(TreeError):
            kernel.sysfs.write(f"{BPF}/prog/{program.id}/pin", "late")
        with pytest.raises(UsageError, match="is not loaded"):
            kernel.bpf.pin(program, "late")
        with pytest.raises(UsageError, match="is not loaded"):
            kernel.bpf.attach(program)
        assert not kernel.bpf.pinned
