"""Conformance check of containment: what the module must not reach stays out of reach, and it serves on.

The module under examination is made to misuse every call of its context, one after the other; the kernel must
refuse each, and neither side may suffer.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from uxk.context import Context, Reply
from uxk.errors import UxkError
from uxk.kernel.catalog import ExtensionClass
from uxk.kernel.kernel import Kernel
from uxk.limits import I64_MAX
from uxk.testing.kernels import Ledger
from uxk.testing.subject import Subject, check, expect, last_words, patience_ns, session
from uxk.testing.traffic import ordinary
from uxk.uapi.entries import Request
from uxk.uapi.rights import Rights

NO_CAP: Final = 123_456_789
"""A capability that nobody holds."""
Misuse: TypeAlias = Callable[[Context], Reply | None]

REFUSED: Final[dict[str, Misuse]] = {
    "submit to an unknown capability": lambda ctx: ctx.submit(NO_CAP, 1, b"x"),
    "derive from an unknown capability": lambda ctx: ctx.derive(NO_CAP, ctx.name, Rights.ALL),
    "revoke an unknown capability": lambda ctx: ctx.revoke(NO_CAP),
    "free an unknown capability": lambda ctx: ctx.free(NO_CAP),
    "acquire an unknown lock": lambda ctx: ctx.acquire(NO_CAP),
    "release an unknown lock": lambda ctx: ctx.release(NO_CAP, 1),
    "publish an unknown snapshot": lambda ctx: ctx.publish(NO_CAP, b"x"),
    "pin an unknown snapshot": lambda ctx: ctx.pin(NO_CAP),
    "unpin an unknown snapshot": lambda ctx: ctx.unpin(NO_CAP, 1),
    "open a device that does not exist": lambda ctx: ctx.open_device("no-such-device"),
    "open what has no such kind": lambda ctx: ctx.open("no-such-kind", "x", Rights.ALL),
    "open with rights that do not exist": lambda ctx: ctx.open("lock", "x", 1 << 20),  # type: ignore[arg-type]
    "allocate nothing": lambda ctx: ctx.allocate(0),
    "allocate more than the budget": lambda ctx: ctx.allocate(I64_MAX),
    "read what does not exist": lambda ctx: ctx.read("/sys/no/such/attribute"),
    "write to what belongs to the kernel": lambda ctx: ctx.write("/sys/kernel/seed", "1"),
    "remove a device that does not exist": lambda ctx: ctx.remove_device("no-such-device"),
    "add a device with a bad name": lambda ctx: ctx.add_device("No Such/Name"),
    "add a char device with a bad name": lambda ctx: ctx.add_chardev("kmsg"),
    "hint to a site that does not exist": lambda ctx: ctx.hint("no-such-site", 1, 1, b"x"),
    "send what cannot be read": lambda ctx: ctx.submit(-1, 1, b"x"),
}
"""Calls that the kernel must answer with an error."""

DROPPED: Final[dict[str, Misuse]] = {
    "answer a request that nobody made": lambda ctx: ctx.complete(Request(I64_MAX), b"forged"),
    "answer with an impossible status": lambda ctx: ctx.complete(Request(I64_MAX - 1), status=-1),
    "poll mask of no device": lambda ctx: ctx.set_poll("no-such-device", readable=True),
    "ready again": lambda ctx: ctx.ready(),
    "an attribute with a bad name": lambda ctx: ctx.set_attribute("../escape", 1),
    "garbage as an answer": lambda ctx: ctx.write_raw(b"\xc1garbage"),
    "garbage as a command": lambda ctx: ctx.write_raw(b"\xdd\xff\xff\xff\xff", up=True),
    "a frame that claims too much": lambda ctx: ctx.write_raw(b"\x90", 1 << 40, up=True),
    "a frame that claims less than nothing": lambda ctx: ctx.write_raw(b"\x90", -1),
}
"""What the kernel must drop and count."""


@check
def check_misuse(examined: Subject) -> None:
    """Refuses every misuse of the context by this module, counts it, and lets the module serve on."""
    outcome: dict[str, int | None] = {}
    careless = Subject(_careless(examined.cls, outcome), examined.params)

    async def body(kernel: Kernel) -> None:
        await careless.load(kernel)
        ledger = Ledger(kernel, careless.name)
        await kernel.sleep_ns(len(REFUSED) + len(DROPPED) + 2)
        for what in REFUSED:
            expect(what in outcome, f"{what}: no answer; log: {last_words(kernel)}", "an error")
            expect(outcome[what] != 0, f"{what}: status 0", "an error")
        agent = careless.agent(kernel)
        faults = "gone" if agent is None else agent.account.faults
        expect(faults == 0, f"{faults} crashes; log: {last_words(kernel)}", "no crash")
        rejected = 0 if agent is None else agent.account.rejected
        expect(rejected >= len(REFUSED) + len(DROPPED), f"{rejected} rejects counted", "every misuse counted")
        ledger.submit(ordinary(1))
        await ledger.settle(patience_ns(careless.manifest))
        expect(not ledger.problems(), ledger.problems(), "an answer after the misuse")

    session(careless, body)


def _careless(cls: ExtensionClass, outcome: dict[str, int | None]) -> ExtensionClass:
    """A subclass that, beside what the module does, misuses its context once in every way."""

    def setup(self: Any, ctx: Context) -> None:
        cls.setup(self, ctx)
        for delay_ns, what in enumerate([*REFUSED, *DROPPED], 1):
            ctx.call_later_ns(delay_ns, lambda what: _attempt(ctx, what, outcome), what, daemon=True)

    return types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(setup=setup))


def _attempt(ctx: Context, what: str, outcome: dict[str, int | None]) -> None:
    try:
        reply = (REFUSED.get(what) or DROPPED[what])(ctx)
    except UxkError as exc:  # refused before it left: as good
        outcome[what] = exc.errno
        return
    if reply is not None:
        reply.then(lambda completion: outcome.__setitem__(what, completion.status))
