"""What a check examines, how it fails, and the kernel session that checks share."""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import trio

from uxk.core.kmsg import FACILITY_KERNEL
from uxk.core.manifest import canonical
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.errors import UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.catalog import Catalog, ExtensionClass
from uxk.kernel.kernel import Kernel
from uxk.kernel.module import Module
from uxk.limits import NS_PER_S
from uxk.testing.kernels import boot, residue, unload_all
from uxk.uapi.manifest import Manifest

T = TypeVar("T")

_DESCRIPTORS: Final = Path("/proc/self/fd")


@dataclass(frozen=True)
class Subject:
    """A module under examination: its class, and parameters it is to be loaded with."""

    cls: ExtensionClass
    params: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The module's real name."""
        return canonical(self.cls.manifest.name)

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return self.cls.manifest

    async def load(self, kernel: Kernel, **params: object) -> Module:
        """Loads it, and what it depends on, with the subject's parameters overridden by ``params``."""
        values: dict[str, Any] = {**self.params, **params}
        return await kernel.modprobe(self.name, **values)

    def agent(self, kernel: Kernel) -> KernelAgent | None:
        """The kernel's side of the instance, or None when it is not loaded."""
        return kernel.agents.get(self.name)


def subject(what: str | ExtensionClass | Subject, params: Mapping[str, object] | None = None) -> Subject:
    """The subject that a module's name or class stands for.  Raises :class:`NoSuchModule`."""
    if isinstance(what, Subject):
        return what
    cls = Catalog(ModprobeConfig()).get(what) if isinstance(what, str) else what
    return Subject(cls, dict(params or {}))


# --- failing --------------------------------------------------------------------------------------------


class CheckFailure(UxkError):
    """A module breaks a rule: which module, which check, what was seen and what was expected."""

    def __init__(self, module: str, check: str, seen: str, expected: str) -> None:
        super().__init__(f"{module}: {check}: saw {seen}; expected {expected}")
        self.module = module
        self.check = check
        self.seen = seen
        self.expected = expected


class Broken(Exception):
    """What :func:`expect` raises inside a check; the check's wrapper adds the names."""

    def __init__(self, seen: str, expected: str) -> None:
        super().__init__(seen, expected)
        self.seen = seen
        self.expected = expected


def broken(seen: object, expected: str) -> NoReturn:
    """Fails the present check."""
    raise Broken(str(seen), expected)


def expect(good: object, seen: object, expected: str) -> None:
    """Fails the present check unless ``good``."""
    if not good:
        broken(seen, expected)


@contextmanager
def about(what: str) -> Iterator[None]:
    """Says of what a failure inside the block is."""
    try:
        yield
    except Broken as exc:
        broken(f"{what}: {exc.seen}", exc.expected)


Check: TypeAlias = Callable[[Subject], None]
"""A check: returns if the subject obeys, raises :class:`CheckFailure` if not.  Call it outside of Trio."""


def check(function: Check) -> Check:
    """Makes a check of a function: whatever goes wrong inside becomes a :class:`CheckFailure`."""
    name = function.__name__

    @wraps(function)
    def wrapped(examined: Subject) -> None:
        module = getattr(getattr(examined.cls, "manifest", None), "name", examined.cls.__qualname__)
        try:
            function(examined)
        except Broken as exc:
            raise CheckFailure(module, name, exc.seen, exc.expected) from None
        except Exception as exc:
            error = _only_error(exc)
            if isinstance(error, Broken):
                raise CheckFailure(module, name, error.seen, error.expected) from None
            raise CheckFailure(module, name, f"{type(error).__name__}: {error}", "no error") from exc

    return wrapped


def _only_error(error: Exception) -> Exception:
    """The one error in a group, however deep Trio's nurseries have wrapped it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# --- sessions -------------------------------------------------------------------------------------------


def session(examined: Subject, body: Callable[[Kernel], Awaitable[T]], *, seed: int = 7, unload: bool = True) -> T:
    """Runs ``body(kernel)`` on a kernel of its own, then unloads everything and looks for what is left.

    Without ``unload``, the kernel's shutdown has to deal with what is loaded.  The log must be free of bugs of
    the kernel's in any case.
    """

    async def main() -> T:
        async with boot(seed=seed) as kernel:
            kernel.catalog.add(examined.cls)
            result = await body(kernel)
            if unload:
                await unload_all(kernel)
                expect_no_residue(kernel)
        expect_no_bugs(kernel)
        expect_no_residue(kernel)
        return result

    return trio.run(main)


def expect_no_residue(kernel: Kernel, since: Mapping[str, int] | None = None) -> None:
    """Everything is taken back."""
    left = residue(kernel, since)
    expect(not left, f"left over: {left}", "nothing left over")


def expect_no_bugs(kernel: Kernel) -> None:
    """The kernel has no complaint about itself."""
    own = [record for record in kernel.kmsg.records() if record.facility == FACILITY_KERNEL]
    lines = [record.text for record in own if "bug" in record.fields or record.text.startswith("BUG")]
    expect(not lines, f"in the log: {lines[:3]}", "no BUG line")


def expect_healthy(examined: Subject, kernel: Kernel) -> None:
    """It is loaded, has not crashed, missed no deadline, and has broken no rule of the queues."""
    agent = examined.agent(kernel)
    if agent is None:
        broken(f"not loaded any more; log: {last_words(kernel)}", "a live module")
    account = agent.account
    expect(not account.timeouts, f"{account.timeouts} requests past their deadline", "every request answered in time")
    expect(not account.faults, f"{account.faults} crashes; log: {last_words(kernel)}", "no crash")
    wrong = {reason: count for reason, count in account.rejects.items() if reason in PROTOCOL_REASONS}
    expect(not wrong, f"refused entries: {wrong}", "only well-formed completions of requests in flight")


PROTOCOL_REASONS: Final = frozenset({
    "oversized", "malformed_frame", "malformed_entry", "too_many", "unknown_cid", "stale_cid", "duplicate_cid",
    "cq_full", "sq_full", "forged_pong", "ready_twice",
})  # fmt: skip
"""Reasons of an account's rejects that a correct module never causes; others may be honest refusals."""


def last_words(kernel: Kernel) -> list[str]:
    """The latest complaints in the log."""
    return [record.text for record in kernel.kmsg.records(max_level=4)][-3:]


def patience_ns(manifest: Manifest) -> int:
    """How long a check waits for answers: every deadline and restart fits in."""
    restart = manifest.restart.backoff_max_ns + manifest.ready_timeout_ns
    return 2 * (manifest.watchdog.request_timeout_ns + restart) + NS_PER_S


def process_usage(cls: ExtensionClass) -> dict[str, int]:
    """What the module holds of the process: instances of its class that are alive, open file descriptors."""
    gc.collect()
    alive = sum(1 for thing in gc.get_objects() if type(thing) is cls)
    descriptors = len(os.listdir(_DESCRIPTORS)) if _DESCRIPTORS.is_dir() else 0
    return {"instances": alive, "file_descriptors": descriptors}
