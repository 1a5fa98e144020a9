"""What an agent may tell the flash's collector: a policy that stands, and lines to collect once.

The payload is msgpack.  Nothing of it is believed: the policy is one of those below, its parameters are held to their
ranges, and a line is looked at again when it would be collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from uxk_nvme.medium.ftl.victims import SELECTORS, Candidates, Selector

PPM: Final = 1_000_000
VICTIMS_MAX: Final = 64
"""Lines in one hint."""
NAME_MAX: Final = 64


class GcHint(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The payload of a hint for a site ``*.gc`` of flash; whatever is left out stays the default's choice."""

    policy: str = ""
    """One of :data:`POLICIES`."""
    args: tuple[int, ...] = ()
    """The policy's parameters; those left out have their usual values."""
    victims: tuple[int, ...] = ()
    """Lines to collect next, in this order, once."""
    generations: tuple[int, ...] = ()
    """Of these lines, in the same order: a line that has been erased since is left alone.  Empty: whichever."""
    max_valid_units: int = 0
    """A line with more valid units than this is left alone; 0: no bound but the device's own."""


_DECODER: Final = msgspec.msgpack.Decoder(GcHint)
encode_hint: Final = msgspec.msgpack.Encoder().encode
"""A :class:`GcHint` as the payload of a hint."""


class Unfit(Exception):
    """A hint that cannot be followed; the text is the reason that its sender is told."""


def decode_hint(payload: bytes) -> GcHint:
    """The hint.  :class:`Unfit` (``malformed``) if the bytes are none or it breaks a bound."""
    try:
        hint = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unfit("malformed") from None
    lengths = len(hint.victims) <= VICTIMS_MAX and len(hint.generations) in (0, len(hint.victims))
    if not lengths or len(hint.policy) > NAME_MAX or not (hint.policy or hint.victims):
        raise Unfit("malformed")
    return hint


# --- the policies ---


def cost_benefit(power: int) -> Selector:
    """Most of (1 - u) / 2u, times age to the ``power`` (Kawaguchi et al., USENIX 1995, have 1)."""

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        full, valid, age = seen.line_units, seen.valid, seen.age
        return max(range(len(valid)), key=lambda i: (full - valid[i]) * (age[i] + 1) ** power * PPM // (valid[i] or 1))

    return choose


def d_choices(picks: int) -> Selector:
    """The best of so many at random (Li, Lee and Lui, SIGMETRICS 2013)."""

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        return min((draw() % len(seen.valid) for _ in range(picks)), key=seen.valid.__getitem__)

    return choose


def windowed(lines: int) -> Selector:
    """Greedy among so many of the lines that were closed first (windowed greedy; Hu et al., SYSTOR 2009)."""

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        return min(range(min(lines, len(seen.valid))), key=seen.valid.__getitem__)

    return choose


def age_weighted(weight_ppm: int) -> Selector:
    """Most garbage, as a share of the line, plus ``weight_ppm`` / 10^6 times age, as a share of the oldest's (ours).

    With a weight below zero the young come first.
    """

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        full, valid, age = seen.line_units, seen.valid, seen.age
        oldest = max(age) or 1
        return max(
            range(len(valid)), key=lambda i: (full - valid[i]) * PPM // full + weight_ppm * age[i] // oldest
        )  # fmt: skip

    return choose


def wear_aware(weight_units: int) -> Selector:
    """Greedy, but an erase count above the lowest costs as much as ``weight_units`` for each cycle (ours)."""

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        least = min(seen.erases)
        return min(
            range(len(seen.valid)), key=lambda i: seen.valid[i] + (seen.erases[i] - least) * weight_units
        )  # fmt: skip

    return choose


class Policy(NamedTuple):
    """A rule with one parameter: its range and its usual value."""

    make: Callable[[int], Selector]
    least: int
    most: int
    usual: int


POLICIES: Final[Mapping[str, Policy | Selector]] = MappingProxyType({
    **{name: SELECTORS[name] for name in ("greedy", "fifo", "random")},
    "cost-benefit": Policy(cost_benefit, 0, 4, 1),
    "d-choices": Policy(d_choices, 1, 64, 8),
    "windowed": Policy(windowed, 1, 1 << 20, 32),
    "age-weighted": Policy(age_weighted, -4 * PPM, 4 * PPM, PPM // 4),
    "wear-aware": Policy(wear_aware, 0, 1 << 20, 1),
})  # fmt: skip


def selector_for(name: str, args: tuple[int, ...] = ()) -> Selector:
    """The rule by name, with its parameters.  :class:`Unfit`: ``unknown_policy`` or ``out_of_range``."""
    policy = POLICIES.get(name)
    if policy is None:
        raise Unfit("unknown_policy")
    if isinstance(policy, Policy):
        value = args[0] if args else policy.usual
        if len(args) > 1 or not policy.least <= value <= policy.most:
            raise Unfit("out_of_range")
        return policy.make(value)
    if args:
        raise Unfit("out_of_range")
    return policy
