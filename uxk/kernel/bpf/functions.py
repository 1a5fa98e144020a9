"""What programs may call in this kernel: Linux's helpers, and kernel-ml-lib's kfuncs on models (GEN2).

Every program has its own stream of random numbers, by its name.  A reference that a run has looked up is given back
when the run ends, however it ends.  What starts or stops a model is for programs at an agent's events, never for one
that is on the way of a decision or of a request.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from uxk.bpf.helpers import Function, with_kernel
from uxk.bpf.insn import M64
from uxk.bpf.interp import Machine as Runs
from uxk.bpf.proto import Arg, Proto, Ret
from uxk.kernel.machine import Machine
from uxk.kernel.mllib import MlLib, ModelReference
from uxk.limits import U32_MAX

KFUNCS: Final[Mapping[str, int]] = {
    name: number for number, name in enumerate((
        "bpf_ml_model_lookup", "bpf_ml_model_release", "bpf_ml_model_get_state", "bpf_ml_model_get_mode",
        "bpf_ml_model_get_id", "bpf_ml_model_start", "bpf_ml_model_stop", "bpf_ml_model_prepare_dataset",
        "bpf_ml_model_discard_dataset",
    ), 1)
}  # fmt: skip
"""Numbers that bytecode calls them by (``call kfunc N``)."""
COMMANDS: Final = frozenset(name for name in KFUNCS if name.endswith(("start", "stop", "_dataset")))
"""Those that change a model."""
_OBJECT_BASE: Final = 1 << 61
"""Where addresses of objects begin; programs can neither read nor change what is there."""

MayControl = Callable[[str], bool]
"""Whether the program's owner may command the model of that name."""


class References:
    """The models that a program's run has looked up."""

    def __init__(self, lib: MlLib) -> None:
        self._lib = lib
        self._held: dict[int, ModelReference] = {}

    def lookup(self, _: Runs, number: int, *__: int) -> int:
        """The address of a reference, or 0."""
        found = self._lib.bpf_ml_model_lookup(number)
        if found is None:
            return 0
        address = next(a for a in range(_OBJECT_BASE, _OBJECT_BASE + len(self._held) + 1) if a not in self._held)
        self._held[address] = found
        return address

    def release(self, _: Runs, address: int, *__: int) -> int:
        """Gives one back."""
        self._lib.bpf_ml_model_release(self._held.pop(address))
        return 0

    def get(self, address: int) -> ModelReference:
        """What an address stands for."""
        return self._held[address]

    def end(self) -> None:
        """A run is over: what it still holds, because it was stopped, is given back."""
        while self._held:
            self._lib.bpf_ml_model_release(self._held.popitem()[1])


def helpers(machine: Machine, name: str) -> dict[int, Function]:
    """The allow-list of helpers: maps, the clock, random numbers of the stream ``bpf/NAME``."""

    def random() -> int:  # nobody's stream is made before it is wanted
        return int(machine.streams.stream(f"bpf/{name}").integers(U32_MAX, dtype=np.uint32, endpoint=True))

    return with_kernel(lambda: machine.now_ns, random)


def kfuncs(
    machine: Machine, lib: MlLib, references: References, *, commands: bool, may_control: MayControl
) -> dict[int, Function]:
    """The allow-list of kfuncs; with ``commands`` those that change a model, too.

    A command is carried out when the present step of the kernel is over, for it may be about the same model: 0 says
    that it will be, -EACCES that it may not.  What becomes of it, if it fails, is a line in the log.
    """
    found = {
        KFUNCS["bpf_ml_model_lookup"]: Function(
            Proto("bpf_ml_model_lookup", (Arg.NUMBER,), Ret.OBJECT_OR_NULL), references.lookup
        ),
        KFUNCS["bpf_ml_model_release"]: Function(
            Proto("bpf_ml_model_release", (Arg.OBJECT,), releases=True), references.release
        ),
    }

    def question(name: str) -> Callable[..., int]:
        return lambda _, address, *__: getattr(lib, name)(references.get(address)) & M64

    def command(name: str) -> Callable[..., int]:
        def later(reference: ModelReference) -> None:
            status = getattr(lib, name)(reference)
            if status:
                machine.log("warning", "bpf", f"{name} of model {reference.model.name}: {status}")

        def run(_: Runs, address: int, *__: int) -> int:
            model = references.get(address).model
            if not may_control(model.name):
                return -errno.EACCES & M64
            machine.call_at(machine.now_ns, later, ModelReference(model))
            return 0

        return run

    for name, number in KFUNCS.items():
        if number not in found and (commands or name not in COMMANDS):
            run = command(name) if name in COMMANDS else question(name)
            found[number] = Function(Proto(name, (Arg.OBJECT,)), run)
    return found
