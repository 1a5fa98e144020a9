"""A dataset's states and its extraction in portions, without the bytes.

kernel-ml-lib names the states and the fields ``portion_offset`` and ``portion_size``, and never sets the EXTRACTED
ones; the protocol is a proposal: portions are read in order and without gaps, an earlier one may be read again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from uxk.errors import UsageError
from uxk.uapi.ml import DatasetState


class Step(Enum):
    """What happens to a dataset."""

    PREPARE = "prepare"
    """It was filled anew."""
    PORTION = "portion"
    """A part of it was read, and more is left."""
    LAST = "last portion"
    DISCARD = "discard"
    FAIL = "fail"
    """Filling it did not work."""
    CORRUPT = "corrupt"
    """Its bytes are not what they were."""


_D, _S = DatasetState, Step
_ALWAYS: Final = {_S.PREPARE: _D.CLEAN, _S.FAIL: _D.EXTRACTION_FAILURE, _S.DISCARD: _D.OBSOLETE}
_READ: Final = {
    **_ALWAYS, _S.PORTION: _D.EXTRACTED_PARTIALLY, _S.LAST: _D.EXTRACTED_COMPLETELY, _S.CORRUPT: _D.CORRUPTED,
}  # fmt: skip

TABLE: Final[Mapping[DatasetState, Mapping[Step, DatasetState]]] = MappingProxyType({
    _D.UNKNOWN: {},
    _D.ALLOCATED: _ALWAYS,
    _D.CLEAN: _READ,
    _D.EXTRACTED_PARTIALLY: _READ,
    _D.EXTRACTED_COMPLETELY: {**_READ, _S.PORTION: _D.EXTRACTED_COMPLETELY},
    _D.OBSOLETE: _ALWAYS,
    _D.EXTRACTION_FAILURE: _ALWAYS,
    _D.CORRUPTED: _ALWAYS,
})  # fmt: skip
"""Every legal step; a dataset is freed from any state, after which it is UNKNOWN."""

READABLE: Final = frozenset({_D.CLEAN, _D.EXTRACTED_PARTIALLY, _D.EXTRACTED_COMPLETELY})
"""What may be read as it is; anything else is extracted first."""


class Portion(NamedTuple):
    """A range of a dataset's bytes."""

    offset: int
    size: int


class Extraction:
    """State of one dataset.  ``size`` bytes are in it; portions are counted from its first byte."""

    __slots__ = ("extracted", "name", "on_step", "size", "state")

    def __init__(
        self, name: str, on_step: Callable[[DatasetState, DatasetState], object] = lambda before, after: None
    ) -> None:
        self.name = name
        self.on_step = on_step
        """Hears of every change of the state, and of every new generation."""
        self.state = DatasetState.ALLOCATED
        self.size = 0
        self.extracted = 0
        """Bytes from the start that were read."""

    def step(self, step: Step) -> DatasetState:
        """Moves on.  :class:`UsageError` (EINVAL) for what the table has not."""
        after = TABLE[self.state].get(step)
        if after is None:
            legal = ", ".join(each.value for each in TABLE[self.state]) or "nothing"
            raise UsageError(f"dataset {self.name}: {step.value} in state {self.state.name}; legal here: {legal}")
        before, self.state = self.state, after
        if after is not before or step is Step.PREPARE:
            self.on_step(before, after)
        return after

    def prepared(self, size: int) -> None:
        """It has been filled with ``size`` bytes."""
        self.step(Step.PREPARE)
        self.size, self.extracted = size, 0

    def portion(self, offset: int, size: int) -> Portion:
        """Notes that a portion is read, and returns it; size 0 means the rest.

        EINVAL for a gap or a range outside; ENODATA if the state allows no reading.
        """
        if self.state not in READABLE:
            raise UsageError(f"dataset {self.name}: state {self.state.name}: nothing to read", errno=errno.ENODATA)
        size = size or max(0, self.size - offset)
        if offset > self.extracted or offset + size > self.size:
            raise UsageError(
                f"dataset {self.name}: portion {offset}+{size}: {self.extracted} of {self.size} bytes are extracted; "
                "expected portions in order, inside it"
            )
        self.extracted = max(self.extracted, offset + size)
        self.step(Step.LAST if self.extracted == self.size else Step.PORTION)
        return Portion(offset, size)

    def free(self) -> None:
        """There is no dataset any more."""
        self.state = DatasetState.UNKNOWN
        self.size = self.extracted = 0
