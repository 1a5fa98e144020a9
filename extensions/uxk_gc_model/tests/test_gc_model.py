"""What the agent learns, injects and answers."""

from __future__ import annotations

import pytest

import uxk
from uxk.subsystems.lfs.rows import SCHEMA
from uxk.testing import boot, volume

SITE = "/sys/fs/bpf/site/lfs0.gc"


async def test_its_program_comes_into_force_and_stays() -> None:
    async with boot(seed=1) as kernel:
        lfs = volume(kernel, "hot-cold-80-20", pages=8_192, segment_blocks=32, modes="recommendation", audit_epochs=4)
        agent = await kernel.modprobe("uxk_gc_model")
        await kernel.sleep_ns(60 * lfs.epoch_blocks * lfs.params.write_ns)
        port = lfs.programs.port
        assert port.current is not None and lfs.programs.counted.named > 500
        assert lfs.epochs[-1].policy == "sepbit/program" and lfs.site.hints_received == 0
        ppm, judged, step = kernel.sysfs.read(f"{SITE}/agreement").split()
        assert int(ppm) >= 990_000 and int(judged) > 64 and step == "swapped"
        weight_ppm = int(kernel.sysfs.read("/sys/module/gc_model/attributes/weight_ppm"))
        assert 300_000 < weight_ppm < 1_000_000
        assert agent.account.crossings < port.followed // 4  # datasets and heats, epoch by epoch


async def test_after_a_fallback_it_tries_again() -> None:
    async with boot(seed=1) as kernel:
        lfs = volume(kernel, pages=8_192, segment_blocks=32, modes="recommendation")
        await kernel.modprobe("uxk_gc_model")
        await kernel.sleep_ns(40 * lfs.epoch_blocks * lfs.params.write_ns)
        first = lfs.programs.port.current
        assert first is not None
        kernel.sysfs.write(f"{SITE}/control", "fallback")
        await kernel.sleep_ns(30 * lfs.epoch_blocks * lfs.params.write_ns)
        second = lfs.programs.port.current
        assert second is not None and second.id > first.id


@pytest.mark.parametrize("backend", ["bytecode", "float"])
async def test_only_a_comparison_gets_the_float_model(backend: str) -> None:
    from uxk_gc_model import GcModel

    made: list[GcModel] = []
    setup = GcModel.setup

    def noted(agent: GcModel, ctx: uxk.Context) -> None:
        made.append(agent)
        setup(agent, ctx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GcModel, "setup", noted)
        async with boot(seed=1) as kernel:
            lfs = volume(kernel, pages=8_192, segment_blocks=32, modes="recommendation")
            await kernel.modprobe("uxk_gc_model", backend=backend)
            await kernel.sleep_ns(40 * lfs.epoch_blocks * lfs.params.write_ns)
            current = lfs.programs.port.current
            assert current is not None
            score = made[0].float_scores(current.program.code)
            assert made[0].float_scores(b"another program") is None
            assert (score is None) == (backend == "bytecode")
            if score is not None:
                row = [each.high // 2 for each in SCHEMA.features]
                assert abs(score(row) * (1 << 16) - current.program.decide(*row, 0)) < 2


async def test_in_a_process_of_its_own_it_does_the_same() -> None:
    found = set()
    for placement in ("task", "process"):
        async with boot(seed=1) as kernel:
            lfs = volume(kernel, "hot-cold-80-20", pages=8_192, segment_blocks=32, modes="recommendation")
            await kernel.modprobe("uxk_gc_model", placement=placement)
            await kernel.sleep_ns(24 * lfs.epoch_blocks * lfs.params.write_ns)
            assert lfs.programs.counted.named > 0
            found.add((kernel.event_hash(), lfs.programs.counted))
    assert len(found) == 1
