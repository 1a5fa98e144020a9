"""Whatever agents, models, administrators and faults do to a policy, in any order: what always holds, and what is left.

Decisions never wait; a verdict is that of a verified program in force, or the built-in rule decides; generations only
grow; what is charged is what is there, and nothing is there when the agents are gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.core.mode import ModeConfig
from uxk.errors import NoSuchModule, TreeError, UxkError
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.limits import PPM
from uxk.testing.kernels import crash
from uxk.uapi.ml import Mode, PolicyStep

SCHEMA = Schema([Feature("age", 0, 1000), Feature("heat", -10, 10)])
CONFIG = InjectionConfig(
    decisions_min=4, batch=2, audit_every=2, interval_ns=0, audit_ns=40_000, lifetime_ns=60_000, flush_ns=2_000
)
LIMIT = "r0 = 0\nr2 = *(u64 *)(r1 + 0)\nif r2 s<= {} goto out\nr0 = 1\nout:\nexit"
WEIGHTED = assemble("""
    r6 = *(u64 *)(r1 + 0)
    r2 = map[fd:0][0]+0
    r3 = *(u64 *)(r2 + 0)
    r3 &= 1
    r3 <<= 3
    r2 += r3
    r3 = *(u64 *)(r2 + 8)
    r0 = 0
    if r6 s<= r3 goto out
    r0 = 1
out:
    exit
""")
CODES = [assemble(LIMIT.format(500)), assemble(LIMIT.format(900)), WEIGHTED, assemble("r0 = 2\nexit"), b"\x95"]
EVENTS = [assemble("r0 = 0\nexit"), assemble("r0 = 1\nexit")]
WEIGHTS = (500).to_bytes(8, "little")
NAMES = ("left", "right")


class Agent(uxk.MLAgent):
    """Judges as it is told to."""

    manifest = uxk.Manifest(
        name="left", version="1", restart=uxk.RestartPolicy(mode="transient", max_restarts=50, backoff_ns=5_000),
        capabilities=("bpf:site/disk.*", "bpf:agent/*"),
    )  # fmt: skip
    contexts: ClassVar[dict[str, uxk.Context]] = {}
    says: ClassVar[dict[str, str]] = {}

    def setup(self, ctx: uxk.Context) -> None:
        self.contexts[ctx.name] = ctx

    def judge(self, ctx: uxk.Context, site: str, rows: NDArray[np.int64]) -> list[int] | None:
        match self.says.get(ctx.name, "honest"):
            case "honest":
                return [int(age > 500) for age, _ in rows.tolist()]
            case "lies":
                return [7] * len(rows)
            case "breaks":
                raise ValueError("no judge")
            case _:
                return None

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


names, small = st.sampled_from(NAMES), st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("decide"), st.integers(1, 8)),
    st.tuples(st.just("sleep"), st.sampled_from([100, 3_000, 50_000])),
    st.tuples(st.just("inject"), names, st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4])),
    st.tuples(st.just("says"), names, st.sampled_from(["honest", "honest", "lies", "silent", "breaks"])),
    st.tuples(st.just("judge"), names, small, small),
    st.tuples(st.just("weights"), names, small),
    st.tuples(st.just("filter"), names, st.integers(0, 1)),
    st.tuples(st.just("crash"), names),
    st.tuples(st.just("upgrade"), names, st.booleans()),
    st.tuples(st.just("reload"), names),
    st.tuples(st.just("mode"), st.sampled_from([Mode.EMERGENCY, Mode.LEARNING, Mode.RECOMMENDATION])),
    st.tuples(st.just("write"), st.sampled_from(["pin", "detach", "run"]), small),
    st.tuples(st.just("unpin")),
    st.tuples(st.just("fallback")),
    st.tuples(st.just("fault")),
)


class World:
    """A kernel with a site and two agents, and what was seen of it."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.proxy = kernel.create_model("blk", "disk", config=ModeConfig(learning_share_ppm=PPM))
        site = self.proxy.site("disk.pick", lambda payload: "")
        self.port = kernel.policies.offer(site, SCHEMA, (0, 1), config=CONFIG)
        self.seen = (0, None)
        self.at = self.versions = 0

    async def do(self, step: tuple[Any, ...]) -> None:
        handler: Callable[..., Any] = getattr(self, step[0])
        try:
            done = handler(*step[1:])
            if done is not None:
                await done
        except (NoSuchModule, TreeError):
            pass  # what is not there cannot be ended
        await self.kernel.sleep_ns(200)
        self.check()

    # --- what may happen ---

    def decide(self, count: int) -> None:
        port = self.port
        for _ in range(count):
            self.at += 173
            program, before_ns = port.current, self.kernel.now_ns
            verdict = port.decide(self.at % 1001, 0, unit=-1)
            assert self.kernel.now_ns == before_ns
            if verdict is not None:
                assert program is not None and program.owner is not None and verdict.value in (0, 1)
                assert verdict.value == program.program.interpret(SCHEMA.pack([self.at % 1001, 0]))
                assert verdict.generation == self.seen[0] and program is self.seen[1]
            self.check()

    def sleep(self, duration_ns: int) -> Any:
        return self.kernel.sleep_ns(duration_ns)

    def inject(self, name: str, code: int) -> None:
        self.command(name, "inject", "disk.pick", CODES[code], weights=WEIGHTS if code == 2 else b"")

    def judge(self, name: str, injection: int, first: int) -> None:
        self.command(name, "judge", injection, first, [1, 0, 1])

    def weights(self, name: str, injection: int) -> None:
        self.command(name, "update_weights", injection, WEIGHTS)

    def filter(self, name: str, code: int) -> None:
        self.command(name, "load_program", f"agent/{name}", EVENTS[code])

    def command(self, name: str, what: str, *arguments: Any, **named: Any) -> None:
        agent = self.kernel.agents.get(name)
        if agent is not None and agent.host is not None and name in Agent.contexts:
            getattr(Agent.contexts[name], what)(*arguments, **named)

    def says(self, name: str, what: str) -> None:
        Agent.says[name] = what

    def crash(self, name: str) -> None:
        crash(self.kernel, name)

    async def upgrade(self, name: str, good: bool) -> None:
        self.versions += 1
        body: dict[str, Any] = {} if good else {"setup": lambda self, ctx: 1 // 0}
        manifest = msgspec.structs.replace(Agent.manifest, version=f"1.{self.versions}")
        with contextlib.suppress(UxkError):  # it may be down just now
            await self.kernel.upgrade(name, type("Build", (Agent,), {"manifest": manifest, **body}), probation_ns=10)

    async def reload(self, name: str) -> None:
        await self.kernel.rmmod(name)
        await self.kernel.insmod(Agent, instance=name)

    def mode(self, mode: Mode) -> None:
        self.proxy.override(mode)

    def write(self, what: str, number: int) -> None:
        ids = sorted(self.kernel.bpf.programs)
        if ids:
            text = {"pin": f"pin{self.at}", "detach": "", "run": "00" * 24}[what]
            self.kernel.sysfs.write(f"/sys/fs/bpf/prog/{ids[number % len(ids)]}/{what}", text)

    def unpin(self) -> None:
        for name in sorted(self.kernel.bpf.pinned)[:1]:
            self.kernel.sysfs.write("/sys/fs/bpf/unpin", name)

    def fallback(self) -> None:
        self.kernel.sysfs.write("/sys/fs/bpf/site/disk.pick/control", "fallback")

    def fault(self) -> None:
        """The next run of whatever runs here raises."""
        for program in (self.port.current, self.port.candidate and self.port.candidate.program):
            if program is not None:
                program.program.translation.function = lambda *_: 1 // 0
                program.program.interpret = lambda *_: -1

    # --- what always holds ---

    def check(self) -> None:
        port, bpf = self.port, self.kernel.bpf
        generation, program = self.seen
        assert port.generation >= generation
        if port.current is not program:
            assert port.generation > generation
        self.seen = (port.generation, port.current)
        assert not (self.proxy.mode is Mode.EMERGENCY and (port.current or port.candidate))
        for made, step in ((port.candidate, PolicyStep.SHADOW), (port.injection, PolicyStep.SWAPPED)):
            if made is not None:
                assert (
                    made.step is step and made.program.id in bpf.programs and made.number in self.kernel.policies._live
                )
        if port.current is not None:
            assert port.current.attached == {"site/disk.pick"} and port.current.program.proof.before
            assert port.injection is not None and port.injection.program is port.current
            assert port.injection._alive or port.current.pins, "somebody audits it, or has said that nobody need"
        for each in bpf.programs.values():
            assert each.owner is None or each.attached or each.pins or each.waits
        for made_map in bpf.maps.values():
            assert made_map.users or made_map.pins
        shown = self.kernel.sysfs.read("/sys/fs/bpf/memory").split()[1::2]
        assert sum(map(int, shown)) == sum(each.held_bytes for each in bpf.held())
        self.read_all()

    def read_all(self) -> None:
        tree = self.kernel.sysfs
        for folder in ("prog", "map"):
            known = bpf_ids = tree.listdir(f"/sys/fs/bpf/{folder}") if tree.exists(f"/sys/fs/bpf/{folder}") else []
            for name in bpf_ids[:2]:
                for attribute in ("name", "owner", "pins", "held_bytes"):
                    tree.read(f"/sys/fs/bpf/{folder}/{name}/{attribute}")
            assert {int(name) for name in known} == set(
                getattr(self.kernel.bpf, f"{folder}s".replace("prog", "program"))
            )
        for attribute in ("policy", "candidate", "agreement", "generation", "last_end"):
            tree.read(f"/sys/fs/bpf/site/disk.pick/{attribute}")


async def lived(steps: list[tuple[Any, ...]]) -> str:
    """Does the steps, ends all, and gives the hash of what happened."""
    Agent.contexts.clear()
    Agent.says.clear()
    async with uxk.Kernel(seed=3) as kernel:
        world = World(kernel)
        for name in NAMES:
            await kernel.insmod(Agent, instance=name)
        for step in steps:
            await world.do(step)
        for name in list(kernel.bpf.pinned):
            kernel.bpf.unpin(name)
        for name in NAMES:
            if name in kernel.agents:
                await kernel.rmmod(name)
        await kernel.sleep_ns(1000)
        bpf = kernel.bpf
        assert not bpf.programs and not bpf.maps and not bpf.pinned and not kernel.policies._live
        assert world.port.current is None and world.port.candidate is None and not kernel.machine.event_hooks
        assert kernel.sysfs.read("/sys/fs/bpf/memory") == "" and not bpf._loads
        assert not [record.text for record in kernel.kmsg.records() if "BUG" in record.text]
        return kernel.event_hash()


GOOD = [("inject", "left", 0), ("decide", 6), ("sleep", 3_000), ("decide", 8)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=30))
@example([*GOOD, ("upgrade", "left", True), ("decide", 8), ("sleep", 50_000), ("decide", 8)])
@example([*GOOD, ("upgrade", "left", False), ("decide", 8), ("sleep", 50_000), ("decide", 8)])
@example([*GOOD, ("write", "pin", 0), ("crash", "left"), ("sleep", 50_000), ("decide", 8), ("unpin",), ("decide", 1)])
@example([*GOOD, ("inject", "right", 2), ("decide", 8), ("sleep", 3_000), ("weights", "right", 2), ("decide", 8)])
@example([*GOOD, ("filter", "left", 1), ("decide", 8), ("sleep", 50_000), ("sleep", 50_000), ("decide", 8)])
@example([*GOOD, ("write", "pin", 0), ("write", "detach", 0), ("unpin",)])
@example([*GOOD, ("fault",), ("decide", 1), ("inject", "left", 0), ("fault",), ("decide", 1)])
def test_what_always_holds(steps: list[tuple[Any, ...]]) -> None:
    trio.run(lived, steps)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=20))
def test_the_same_steps_give_the_same_hash(steps: list[tuple[Any, ...]]) -> None:
    assert trio.run(lived, [*GOOD, *steps]) == trio.run(lived, [*GOOD, *steps])
