"""A volume's thresholds as sysctls: an administrator writes them, an agent may recommend one on trial (R29).

``lfs/NAME/gp_ppm``
    The garbage share above which a victim is cleaned.  Whoever raises it saves moves and pays with space, so a trial
    is judged by write amplification times space amplification.
``lfs/NAME/clean_min``
    Clean segments below which hints are dropped (R109).  For administrators alone: no KPI of a volume that has never
    run short says what a reserve is worth.

No range lets a volume run out of segments: their number is settled when it is made, for the highest ``gp_ppm`` that
can ever be asked for (``gp_max_ppm``), and that value is the sysctl's maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.core.action import ActionConfig
from uxk.core.sysctl import Sysctl
from uxk.errors import ConfigError
from uxk.kernel.kernel import Kernel
from uxk.limits import I64_MAX, PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.volume import Volume, set_threshold
from uxk.subsystems.lfs.miniature import Count
from uxk.subsystems.lfs.params import LfsParams

GP_PPM_MIN: Final = 10_000
"""As ``-o lfs.gp_ppm``: below it, every write moves dozens of blocks."""
VOLUMES_PER_BURST: Final = 8
"""Four changes at most in so many volumes' worth of writes: lowering the share may move a volume's blocks at once."""
LIFETIME_VOLUMES: Final = 16
"""A trial that nobody has confirmed after so many volumes' worth of writes is over."""


def most_gp_ppm(params: LfsParams) -> int:
    """The highest ``gp_ppm`` that volumes are made for; :class:`ConfigError` if that is below the initial one."""
    if 0 < params.gp_max_ppm < params.gp_ppm:
        raise ConfigError(f"lfs.gp_max_ppm = {params.gp_max_ppm}: expected 0, or gp_ppm = {params.gp_ppm} or more")
    return params.gp_max_ppm or params.gp_ppm


class Thresholds:
    """The sysctls of one volume and of its miniatures, which keep the same rule."""

    def __init__(self, kernel: Kernel, name: str, params: LfsParams, volumes: Sequence[Volume], epoch_ns: int) -> None:
        """``volumes``: the volume itself first.  ``epoch_ns``: an epoch in virtual time.  TreeError: EEXIST."""
        self._table = kernel.sysctl
        self._reg = volumes[0].reg
        self._volumes = volumes
        self._settle = self._settling = params.epochs_per_volume
        self._kpi: int | None = None
        for volume in volumes:
            set_threshold(volume, params.gp_ppm)
        self._gp = self._table.register(Sysctl(
            f"lfs/{name}/gp_ppm", params.gp_ppm, minimum=GP_PPM_MIN, maximum=most_gp_ppm(params),
            on_change=self._on_gp, help="garbage share above which a victim is cleaned, in millionths",
        ))  # fmt: skip
        least = params.logs + 2
        self._clean = self._table.register(Sysctl(
            f"lfs/{name}/clean_min", least, minimum=least, maximum=6 * params.logs + 8,
            help="clean segments below which hints are dropped",
        ))  # fmt: skip
        self.watch = kernel.actions.watch(self._gp.spec.name, lambda: self._kpi, config=_config(params, epoch_ns))

    @property
    def gp_ppm(self) -> int:
        """The garbage share in force."""
        return self._gp.value

    @property
    def clean_min(self) -> int:
        """The least number of clean segments; every log that fills up must find one (R109)."""
        return self._clean.value

    def epoch(self, written: Count) -> None:
        """The end of an epoch: what was written in it decides about a value on trial."""
        self._kpi = self._measure(written)
        self.watch.epoch()

    def close(self) -> None:
        """What is on trial is reverted, and the sysctls go."""
        self.watch.close()
        for entry in (self._gp, self._clean):
            self._table.unregister(entry.spec.name)

    def _measure(self, written: Count) -> int | None:
        """Write amplification times space amplification in millionths; None while the volume is not settled.

        After a change of the share, a volume first cleans nothing, or a lot at once; then segments of before are still
        about.  So garbage must have come near the threshold, and the volume have been written once since.
        """
        garbage, total, valid = (int(self._reg[register]) for register in (c.GARBAGE, c.TOTAL, c.VALID))
        if not self._settling:
            return written.wa_ppm * total // max(valid, 1)
        if garbage * 8 * PPM >= 7 * self.gp_ppm * total:
            self._settling -= 1
        return None

    def _on_gp(self, gp_ppm: int) -> None:
        for volume in self._volumes:
            set_threshold(volume, gp_ppm)
        self._settling = self._settle


def _config(params: LfsParams, epoch_ns: int) -> ActionConfig:
    """Means over a volume's worth of writes: single epochs of a small volume vary by eight per cent."""
    epochs = params.epochs_per_volume
    volume_ns = epochs * epoch_ns
    return ActionConfig(
        epochs=epochs, epochs_min=(epochs + 1) // 2, interval_ns=min(VOLUMES_PER_BURST * volume_ns, I64_MAX),
        lifetime_max_ns=min(LIFETIME_VOLUMES * volume_ns, I64_MAX),
    )  # fmt: skip
