"""Tools for tests: kernels, what is left over, turns, crashes, ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.testing import Ledger, after_turns, boot, crash, residue, unload_all, usage


class Slow(uxk.Extension[Any]):
    """Answers one request in each turn."""

    manifest = uxk.Manifest(
        name="slow", version="1", license="Apache-2.0", capabilities=("lock:l:lock",),
        restart=uxk.RestartPolicy(mode="temporary"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.waiting: list[uxk.Request] = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if not self.waiting:
            ctx.call_later_ns(10, self.serve, ctx)
        self.waiting += requests

    def serve(self, ctx: uxk.Context) -> None:
        ctx.complete(self.waiting.pop(0))
        if self.waiting:
            ctx.call_later_ns(10, self.serve, ctx)


class Grabber(uxk.Extension[Any]):
    """Takes one of everything."""

    manifest = uxk.Manifest(
        name="grabber", version="1", license="Apache-2.0",
        capabilities=("lock:l:lock", "kmsg:read"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        ctx.allocate(4096)
        ctx.add_chardev("grabbed")
        ctx.set_attribute("a", 1)
        ctx.follow_kmsg()
        ctx.call_later_ns(10**12, lambda _: None)
        ctx.open("lock", "l", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result))


async def test_a_fresh_kernel_has_no_residue() -> None:
    async with boot() as kernel:
        assert residue(kernel) == {}
        assert residue(kernel, usage(kernel)) == {}
        assert kernel.seed == 7
        assert kernel.machine.clock == "virtual"


async def test_residue_names_everything_that_is_held() -> None:
    async with boot() as kernel:
        module = await kernel.insmod(Grabber)
        await kernel.sleep_ns(1000)
        left = residue(kernel)
        held = {
            "agents", "devices", "chardevs", "kobjects", "links", "attributes", "kmsg_followers", "capabilities",
            "arena_bytes", "granted_bytes", "locks", "timers",
        }  # fmt: skip
        assert held <= set(left), module.statistics()["rejects"]
        assert left["arena_bytes"] == 4096
        since = usage(kernel)
        assert residue(kernel, since) == {}
        await unload_all(kernel)
        assert residue(kernel) == {}
        assert residue(kernel, since)["agents"] == -1


async def test_after_turns_stops_exactly() -> None:
    async with boot() as kernel:
        module = await kernel.insmod(Slow)
        await kernel.run()
        ledger = Ledger(kernel, "slow")
        ledger.submit([uxk.Request(0) for _ in range(5)])
        seen = []
        for _ in range(7):
            before = module.account.turns
            await after_turns(kernel, 1)
            seen.append((module.account.turns - before, len(ledger.waiting)))
        # The requests arrive in the first turn, and the next five answer them; then nothing is left to do.
        assert seen == [(1, 5), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0), (0, 0)]


async def test_after_no_turns_nothing_has_happened() -> None:
    async with boot() as kernel:
        module = await kernel.insmod(Slow)
        before = (module.account.turns, kernel.now_ns)
        await after_turns(kernel, 0)
        assert (module.account.turns, kernel.now_ns) == before


async def test_crash_applies_the_policy() -> None:
    async with boot() as kernel:
        await kernel.insmod(Slow)
        ledger = Ledger(kernel, "slow")
        ledger.submit([uxk.Request(0) for _ in range(3)])
        crash(kernel, "slow", "a whim")
        assert not ledger.problems()
        assert {answers[0].status for answers in ledger.answers.values()} == {5}  # EIO
        assert "slow" not in kernel.agents
        assert any("a whim" in record.text for record in kernel.kmsg.records(max_level=3))
        with pytest.raises(uxk.NoSuchModule, match="slow"):
            crash(kernel, "slow")


async def test_ledger_tells_what_is_wrong() -> None:
    async with boot() as kernel:
        await kernel.insmod(Slow)
        ledger = Ledger(kernel, "slow")
        ledger.submit([uxk.Request(0, uxk.Op.CALL), uxk.Request(0, uxk.Op.READ)])
        assert [problem.split(" to ")[0] for problem in ledger.problems()] == ["no answer", "no answer"]
        await ledger.settle(15)
        assert (ledger.asked, len(ledger.waiting)) == (2, 1)
        await ledger.settle()
        assert ledger.problems() == []
        cid = next(iter(ledger.answers))
        ledger.answers[cid] *= 2
        ledger.answers[99] = [uxk.Completion(99)]
        assert [problem.split(" ")[:2] for problem in ledger.problems()] == [["2", "answers"], ["an", "answer"]]


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(uxk.NoSuchModule):
        async with boot() as kernel:
            await kernel.modprobe("no-such-module")


def test_fixture(pytester_like: Path) -> None:
    assert pytester_like.name == "test_with_fixture.py"


@pytest.fixture
def pytester_like(tmp_path: Path) -> Path:
    """A project of somebody else's that uses the fixture ``kernel``; its test has passed."""
    import subprocess
    import sys

    (tmp_path / "conftest.py").write_text('pytest_plugins = ["uxk.testing.fixtures"]\n', "utf-8")
    test = tmp_path / "test_with_fixture.py"
    test.write_text(
        "import pytest\n\n\n@pytest.mark.trio\nasync def test_it(kernel):\n    assert kernel.lsmod() == []\n", "utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    return test
