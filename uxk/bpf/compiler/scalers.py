"""What stands before a model in a pipeline of river's, as one affine step for each feature.

Each keeps river's order of operations, so that thresholds behind it are found in its own floating point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.schema import Schema
from uxk.bpf.compiler.trees import Axis, kinds

SCALERS: Final = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "AdaptiveStandardScaler")


def axes_of(steps: Iterable[Any], schema: Schema) -> dict[str, Axis]:
    """What the steps make of each feature; empty without a scaler.  ``CompileError`` for any other step."""
    axes: dict[str, Axis] = {}
    for step in steps:
        kind = next((each for each in SCALERS if each in kinds(step)), "")
        if not kind:
            raise CompileError(
                f"a {type(step).__name__} before the model; what can be worked in is one of {', '.join(SCALERS)}: let "
                "the agent publish other features as whole numbers"
            )
        if axes:
            raise CompileError("two scalers before the model; one can be worked in")
        for name in schema.names:
            offset, divisor = _figures(step, kind, name)
            if not (math.isfinite(offset) and math.isfinite(divisor)):
                raise CompileError(
                    f"the scaler's figures of {name!r} are {offset} and {divisor}; expected finite numbers"
                )
            axes[name] = Axis(float(offset), float(divisor), plain=False)
    return axes


def _figures(step: Any, kind: str, name: str) -> tuple[float, float]:
    """What is taken off a feature, and what it is divided by: 0 if the result is always 0."""
    if kind == "StandardScaler":
        return _standard(step, name)
    if kind == "MinMaxScaler":
        if name not in step.min:
            return 0.0, 0.0
        low = step.min[name].get()
        return low, step.max[name].get() - low
    if kind == "MaxAbsScaler":
        return 0.0, step.abs_max[name].get() if name in step.abs_max else 0.0
    if kind == "RobustScaler":
        median = step.median[name].get() if step.with_centering and name in step.median else 0.0
        spread = (step.iqr[name].get() if name in step.iqr else 0.0) if step.with_scaling else 1.0
        return median or 0.0, spread or 0.0
    variance = step.vars[name].get() if name in step.vars else 0.0
    return step.means[name].get() if name in step.means else 0.0, variance**0.5 if variance > 0 else 0.0


def _standard(step: Any, name: str) -> tuple[float, float]:
    if step.window_size is None:
        mean, variance = step.means.get(name, 0.0), step.vars.get(name, 0.0)
    else:
        mean = step.means[name].get() if name in step.means else 0.0
        variance = step.vars[name].get() if name in step.vars else 0.0
    deviation = variance if not math.isfinite(variance) else variance**0.5 if variance > 0 else 0.0
    return mean, deviation if step.with_std else 1.0
