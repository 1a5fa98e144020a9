"""What an attach point of a running kernel asks of a program, and a proof of that made here."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from uxk.cli.bpf_words import ROOT, entries
from uxk.cli.common import UsageExit, instead
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.bpf.maps import Map
    from uxk.bpf.proto import Spec
    from uxk.bridges.control_client import ControlClient

_KINDS: Final = ("site", "queue", "agent")


async def spec_of(kernel: ControlClient, at: str) -> Spec:
    """What ``site/NAME``, ``queue/DEVICE`` or ``agent/INSTANCE`` asks for.  UsageError (ENODEV) if there is none."""
    from uxk.kernel.bpf import events, queue

    kind, slash, name = at.partition("/")
    if not slash or kind not in _KINDS:
        raise UsageExit(f"prog verify: {at!r}: expected site/NAME, queue/DEVICE or agent/INSTANCE")
    if kind == "site":
        return await _site(kernel, name)
    if kind == "queue":
        classes = [entry.name for entry in await kernel.listdir("/sys/class")]
        known = [entry.name for each in classes for entry in await kernel.listdir(f"/sys/class/{each}")]
    else:
        known = [row.name for row in await kernel.lsmod()]
    if name not in known:
        what = "device" if kind == "queue" else "instance"
        raise UsageError(f"{at}: no {what} {name!r}{instead(name, known)}", errno=errno.ENODEV)
    return queue.SPEC if kind == "queue" else events.SPEC


async def _site(kernel: ControlClient, name: str) -> Spec:
    from uxk.bpf.compiler.schema import Feature, Schema

    known = await entries(kernel, "site")
    if name not in known:
        raise UsageError(f"no decision site {name!r} takes programs{instead(name, known)}", errno=errno.ENODEV)
    schema = await kernel.read(f"{ROOT}/site/{name}/schema")
    low, high = map(int, (await kernel.read(f"{ROOT}/site/{name}/verdict")).split())
    features = [Feature(each, int(least), int(most)) for each, least, most, *_ in map(str.split, schema.splitlines())]
    return Schema(features).spec((low, high), trusted=True)


def prove(code: bytes, maps: Mapping[int, Map], spec: Spec, at: str) -> dict[str, Any]:
    """Facts of the proof, as the kernel makes it for an agent's program.  Raises ``VerifierError``."""
    from uxk.bpf.helpers import protos, with_kernel
    from uxk.bpf.maps import ArenaMap
    from uxk.bpf.verifier import verify
    from uxk.kernel.bpf import charge, functions, registry

    nothing = cast("Any", None)  # prototypes are looked at only
    calls = functions.kfuncs(
        nothing, nothing, functions.References(nothing), commands=at.startswith("agent/"), may_control=lambda _: False
    )
    proof = verify(code, spec._replace(
        maps={number: each.shape for number, each in maps.items()}, helpers=protos(with_kernel(lambda: 0, lambda: 0)),
        kfuncs=protos(calls), arena=any(isinstance(each, ArenaMap) for each in maps.values()),
        insns_max=registry.FOLLOWED_MAX,
    ))  # fmt: skip
    longest = charge.longest(proof)
    return {
        "instructions": len(proof.insns), "followed": proof.looked_at, "longest": longest,
        "cost_ns": charge.cost_ns(longest),
    }  # fmt: skip
