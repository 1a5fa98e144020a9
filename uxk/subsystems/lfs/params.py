"""Settings of one log-structured volume, as ``[subsystems.lfs]`` and ``-o lfs.NAME=VALUE`` set them."""

from __future__ import annotations

from typing import Annotated

from uxk.uapi.manifest import Params, param


class LfsParams(Params):
    """A volume, its frozen rule, its default policy, and what its agents see."""

    segment_blocks: Annotated[int, param(ge=8, le=65_536, help="blocks of a segment")] = 512
    gp_ppm: Annotated[int, param(ge=10_000, le=900_000, help="garbage share above which a victim is cleaned")] = 150_000
    gp_max_ppm: Annotated[
        int, param(ge=0, le=500_000, help="segments are made for a share of up to this; 0: gp_ppm")
    ] = 0
    logs: Annotated[int, param(ge=1, le=16, help="open logs of a policy")] = 6
    default: Annotated[str, param(help="the kernel's own policy, placement/selection")] = "sepbit/cb-age"
    epochs_per_volume: Annotated[
        int, param(ge=1, le=4_096, help="epochs in as many writes as the volume has pages")
    ] = 8
    sample_ratio: Annotated[int, param(ge=1, le=1_024, help="one page in so many is in the sample, or more")] = 16
    write_ns: Annotated[int, param(ge=1, le=1_000_000_000, unit="ns", help="virtual time of one user write")] = 20_000
    silence_epochs: Annotated[int, param(ge=0, le=65_536, help="an agent silent for so long is an alarm; 0: never")] = (
        32
    )
    learning_share_ppm: Annotated[
        int, param(ge=0, le=500_000, help="share of extents that follow hints while learning")
    ] = 125_000
    shadow_heats: Annotated[int, param(ge=1, le=4_096, help="heats that a model judges before its program decides")] = (
        64
    )
    audit_epochs: Annotated[
        int, param(ge=0, le=65_536, help="epochs between audits of a program that decides; 0: none")
    ] = 8
    modes: Annotated[
        str, param(pattern="auto|emergency|learning|collaboration|recommendation", help="mode_override")
    ] = "auto"
