"""What an author subclasses: :class:`Extension`.

Callbacks are plain methods, called by the kernel's dispatcher with batches (the fast path); override
``async def run`` as well, or instead, to wait for the world as a real Trio task.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic
from weakref import WeakValueDictionary

from uxk.context import Context
from uxk.errors import UsageError
from uxk.uapi.entries import Event, Request
from uxk.uapi.manifest import Manifest, Params

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    P = TypeVar("P", bound=Params, default=Params)
else:
    from typing import TypeVar

    P = TypeVar("P", bound=Params)

declared: WeakValueDictionary[str, type[Extension[Any]]] = WeakValueDictionary()
"""Extension classes defined in this process by module name; ``modprobe`` finds them first, the newest wins."""
versions: WeakValueDictionary[tuple[str, str], type[Extension[Any]]] = WeakValueDictionary()
"""The same by name and version, for upgrades."""


class Extension(Generic[P]):
    """Base class of every extension.

    A subclass has a :class:`~uxk.uapi.manifest.Manifest` as class attribute ``manifest`` and overrides what it
    needs.  Write ``class Echo(uxk.Extension[EchoParams])`` to have ``self.params`` typed.  An exception in any
    callback is contained: the instance dies, the kernel logs an oops, and the restart policy decides.
    """

    manifest: ClassVar[Manifest]
    params: P
    _handed_over = False
    """Whether it has the state of the instance before it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        manifest = cls.__dict__.get("manifest")
        if isinstance(manifest, Manifest) and isinstance(manifest.name, str):  # the rest is checked when it loads
            name = manifest.name.replace("-", "_")
            declared[name] = cls
            if isinstance(manifest.version, str):
                versions[name, manifest.version] = cls

    def setup(self, ctx: Context) -> None:
        """Called once, before anything else; the module is ready when it returns (unless ``ready="explicit"``)."""

    def _begin(self, ctx: Context) -> None:
        """For base classes: called after ``setup``, whether or not an author's override calls the base's."""

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Requests in the order of their submission; complete each, now or later, in any order."""
        for request in requests:
            ctx.fail(request, errno.EOPNOTSUPP)

    def on_event(self, ctx: Context, event: Event) -> None:
        """News: ``store`` and ``param`` (written attributes), ``device_add``, ``device_remove``, ``kmsg``, ..."""

    def on_stop(self, ctx: Context, reason: str) -> None:
        """The instance is going; the last completions may be given here."""

    def checkpoint(self) -> bytes:
        """What the instance after this one needs to go on; called when nothing is in flight.

        In a format of its own, which the manifest's ``state_version`` numbers.  Overriding this is what has a hot
        upgrade or restart hand state over; what must outlive a crash lies in kept memory.
        """
        return b""

    def convert(self, version: int, data: bytes) -> bytes:
        """The checkpoint of another ``state_version`` as one of this version; an error ends the upgrade."""
        own = self.manifest.state_version
        raise UsageError(f"{self.manifest.name}: state version {version}, expected {own}: it has no convert()")

    def restore(self, data: bytes) -> None:
        """Continues from what ``checkpoint`` gave; called after ``setup``, before any request."""

    async def run(self, ctx: Context) -> None:
        """A Trio task beside the callbacks, cancelled at the end.  Returning early is no failure."""


def overrides(extension: Extension[Any], method: str) -> bool:
    """Whether the extension's class defines ``method`` itself."""
    return getattr(type(extension), method) is not getattr(Extension, method)
