"""``uxk bpf prog`` and ``uxk bpf map`` on a running kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.maps import ArrayMap
from uxk.bridges.control_server import ControlServer
from uxk.cli import main
from uxk.core.site import DecisionSite

LIMIT = "r0 = *(u64 *)(r1 + 0)\nr2 = map[fd:3][0]+0\nr2 = *(u64 *)(r2 + 0)\nr0 -= r2\nexit\n"


async def test_on_a_running_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def said(*words: str) -> tuple[int, str]:
        code = await trio.to_thread.run_sync(main, ["bpf", *words, "-k", str(tmp_path / "k")])
        streams = capsys.readouterr()
        return code, streams.out + streams.err

    async with uxk.Kernel(seed=5) as kernel, trio.open_nursery() as nursery:
        await nursery.start(ControlServer(kernel, tmp_path / "k").serve)
        assert await said("prog", "show") == (0, "")
        schema = Schema([Feature("age", 0, 1000, "writes")])
        kernel.policies.offer(DecisionSite("disk.pick", lambda payload: ""), schema, (-(1 << 63), (1 << 63) - 1))
        table = kernel.bpf.add_map(ArrayMap(8, 1, "limit"))
        kernel.bpf.attach(kernel.bpf.load(assemble(LIMIT), "site/disk.pick", {3: table}, "limit"))
        code, out = await said("prog", "show")
        assert code == 0 and out.startswith("1: name limit tag ") and "attached site/disk.pick maps 3 1" in out
        assert json.loads((await said("prog", "show", "1", "--json"))[1])["1"]["instructions"] == "6"
        assert "r0 -= r2" in (await said("prog", "dump", "1"))[1]
        assert await said("prog", "run", "1", "2a" + "00" * 15) == (0, "42\n")
        assert "owner kernel key_bytes 4 value_bytes 8" in (await said("map", "show"))[1]
        assert await said("map", "dump", "1") == (0, f"0 {'00' * 8}\n")
        assert await said("prog", "pin", "1", "keep") == await said("map", "pin", "1", "limit") == (0, "")
        assert set(kernel.bpf.pinned) == {"keep", "limit"}
        assert await said("prog", "unpin", "keep") == (0, "")
        (tmp_path / "good.s").write_text("r0 = *(u64 *)(r1 + 0)\nexit\n")
        (tmp_path / "bad.s").write_text("r0 = *(u64 *)(r1 + 16)\nexit\n")
        assert (await said("prog", "verify", str(tmp_path / "good.s"), "site/disk.pick"))[1].startswith("safe: ")
        code, out = await said("prog", "verify", str(tmp_path / "bad.s"), "site/disk.pick")
        assert code == 1 and "insn 0" in out
        assert await said("prog", "dump", "7") == (1, "uxk: bpf: no program 7; there are: 1 [EINVAL]\n")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("prog", "required"),
        ("prog list", "invalid choice: 'list'"),
        ("prog dump -k x", "0 words; expected ID"),
        ("prog dump a -k x", "'a': expected a number"),
        ("prog show", "needs a running kernel"),
        ("map pin 1 -k x", "expected ID NAME"),
    ],
)
def test_mistakes(words: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UXK_SOCKET", raising=False)
    assert main(["bpf", *words.split()]) == 2
    assert why in capsys.readouterr().err
