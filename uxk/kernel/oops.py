"""The report of an oops: what died, where, what it was doing, its traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from uxk.core.codec import completion_codec, down_codec, down_reply_codec, up_codec
from uxk.core.eventhash import LONG_BYTES
from uxk.limits import ENTRY_MAX_COUNT

if TYPE_CHECKING:
    from uxk.actor.actor import Crash
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.requests import Batch

LAST_EVENTS: Final = 8
"""Events of the instance shown in the report of an oops."""
_CODECS: Final = {"in": (down_codec, completion_codec), "replies": (down_reply_codec,), "up": (up_codec,)}
OOPS_LINES: Final = 64
"""Lines of a traceback in the log: its text is the extension's to choose, and must not wash the log out."""
_SHOWN: Final = 4
"""Of each kind: entries, commands, locks."""


def report(agent: KernelAgent, crash: Crash) -> None:
    """Logs what died, its last messages, what it was doing, whom it waits for, its traceback."""
    machine, name = agent.machine, agent.name
    log = machine.log
    log(
        "err", name, f"oops: {crash.kind} in {crash.where}: {crash.message}",
        incarnation=agent.incarnation, inflight=agent.account.inflight, commands=len(agent.commands),
    )  # fmt: skip
    for now_ns, which, _, frame in machine.hash.last(agent.id, LAST_EVENTS):
        if which in _CODECS:
            log("info", name, f"oops: last {which} at {now_ns} ns: {describe(which, frame)}")
    for line in dump(agent):
        log("info", name, f"oops: {line}")
    for edge in machine.waits.waiting_for(agent.node)[:OOPS_LINES]:
        log("info", name, f"oops: waits for {edge}")
    lines = crash.traceback.splitlines()
    if len(lines) > OOPS_LINES:  # the beginning says how it came there, the end what happened
        cut = len(lines) - OOPS_LINES
        lines = [*lines[: OOPS_LINES >> 1], f"... {cut} lines left out ...", *lines[-(OOPS_LINES >> 1) :]]
    for line in lines:
        log("info", name, f"oops: | {line}")


def dump(agent: KernelAgent) -> Iterator[str]:
    """What an instance was doing, a line for each thing that there is: rings, requests, commands, timer, locks."""
    queues, requests, machine = agent.queues, agent.requests, agent.machine
    for which, staged, ring in (
        ("sq", queues.staged, queues.sq), ("answers", queues.staged_answers, queues.answers),
    ):  # fmt: skip
        if staged:
            shown = [repr(each) for each in staged[:_SHOWN]]
            yield f"{which}: {len(staged)} of {ring.depth} not yet delivered: {_some(shown, len(staged))}"
    for what, book in (("in flight", requests.inflight), ("waiting", requests.backlog)):
        if book:
            yield f"{what}: {len(book)} requests, the oldest first: {_some(_requests(book, machine.now_ns), len(book))}"
    if requests.overdue:
        yield f"overdue: {len(requests.overdue)} requests were answered for it, and may still be worked on"
    if agent.commands:
        cids = [str(cid) for cid in sorted(agent.commands)[:_SHOWN]]
        yield f"outstanding: {len(agent.commands)} commands: {_some(cids, len(agent.commands))}"
    if agent.next_timer_ns is not None:
        yield f"timer: the next is due at {agent.next_timer_ns} ns"
    for name in machine.locks.names_of(agent.id)[:OOPS_LINES]:
        lock = machine.locks.get(name)
        grant = None if lock is None else lock.grant_of(agent.id)
        if grant is not None:
            yield f"lock {name}: held, token {grant.token}, until {grant.expires_ns} ns at the latest"


def _requests(book: dict[int, Batch], now_ns: int) -> list[str]:
    found = []
    for cid, batch in list(book.items())[:_SHOWN]:
        request = batch.request(cid)
        where = f"{request.offset}+{request.length}"
        found.append(f"{cid} (opcode {request.opcode}, {where}, for {now_ns - batch.submitted_ns} ns)")
    return found


def _some(shown: Sequence[str], count: int) -> str:
    """The first few of ``count``."""
    return ", ".join(shown) + (f", and {count - len(shown)} more" if count > len(shown) else "")


def describe(which: str, frame: bytes) -> str:
    """A frame in words, for people: its entries, or why it cannot be read."""
    for codec in _CODECS.get(which, ()):
        entries, _ = codec.decode(frame, ENTRY_MAX_COUNT)
        if entries:
            text = ", ".join(repr(entry) for entry in entries[:4])
            return text + (f", and {len(entries) - 4} more" if len(entries) > 4 else "")
    if len(frame) == LONG_BYTES:
        return f"a frame of {LONG_BYTES} bytes or more, too long to keep; it begins {frame[:32].hex()}"
    return f"{len(frame)} bytes that are no entries: {frame[:32].hex()}"
