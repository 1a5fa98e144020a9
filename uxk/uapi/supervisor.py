"""What a supervisor is told: whom it looks after, how, and how much it puts up with."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from uxk.limits import I64_MAX, NAME_MAX_BYTES

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("one_for_one", "one_for_all", "rest_for_one")
RESTARTS_MAX: Final = 1024
"""Restarts that one supervisor can be told to put up with: it remembers the time of each."""
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES)]
Span: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX, extra={"unit": "ns"})]


class SupervisorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One supervisor: its children in the order of their start, and how much it puts up with.

    The n-th restart in a row waits ``backoff_ns * 2**(n-1)``, at most ``backoff_max_ns``.
    """

    name: Name
    strategy: Strategy = "one_for_one"
    """one_for_one restarts the child that died, rest_for_one it and those after it, one_for_all all of them."""
    children: Annotated[tuple[Name, ...], Meta(max_length=1024)] = ()
    """Instances.  Supervisors are children of their ``parent``, after its instances, in the order of their making."""
    max_restarts: Annotated[int, Meta(ge=0, le=RESTARTS_MAX)] = 3
    period_ns: Span = 5_000_000_000
    backoff_ns: Span = 1_000_000
    backoff_max_ns: Span = 1_000_000_000
    parent: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""
