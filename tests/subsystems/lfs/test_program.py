"""A program at the victim-selection site of a volume with threads: it chooses on the state of the moment."""

from __future__ import annotations

import numpy as np

import uxk
from bench.methods_compiled import bytecode
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.advice import GcAdvice
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.timed.volume import StepVolume
from uxk.uapi.ml import Mode

PAGES, SIZE = 2048, 32


def aged() -> StepVolume:
    geometry = Geometry(pages=PAGES, segment_blocks=SIZE, gp_ppm=100_000, logs=2, segments=PAGES // SIZE + 16)
    volume = StepVolume(geometry, policies.lookup("sepgc/cb-age"))
    volume.run(range(PAGES))
    volume.run(np.random.default_rng(3).integers(0, PAGES, PAGES).tolist())
    return volume


async def test_a_program_chooses_without_a_crossing() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        volume = aged()
        advice = GcAdvice(kernel, "lfs0", volume, 1)
        assert advice.choose(0) is None
        bpf = kernel.bpf
        bpf.attach(bpf.load(bytecode(SIZE), "site/lfs0.gc"))
        choice = advice.choose(0)
        rows = [
            ((SIZE - live) * (volume.now - volume.sealed_at[segment]) / max(live, 1e-9), -segment)
            for segment, live in enumerate(volume.live)
            if volume.sealed_at[segment] >= 0 and live <= volume.most
        ]
        assert choice is not None and choice.segment == -max(rows)[1]
        advice.proxy.override(Mode.EMERGENCY)
        assert advice.choose(0) is None and kernel.sysfs.read("/sys/fs/bpf/site/lfs0.gc/policy") == "built-in"
