"""``/dev/ml_lib``: kernel-ml-lib's BPF plane for programs that have files only (uxk proposal).

Read: ``struct ml_lib_user_space_notification``, one or more whole ones, oldest first.  Write: one
``struct ml_lib_bpf_cmd_ctx`` or ``struct ml_lib_user_space_request``; what is wrong with it is the write's errno.
After a request for a portion, reads give the answer before anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uxk import limits
from uxk.errors import UsageError
from uxk.kernel.mllib import MlLib
from uxk.kernel.ownfile import OwnFile
from uxk.uapi.mllibabi import NOTIFICATION

if TYPE_CHECKING:
    from uxk.core.mlevents import MlEvent
    from uxk.kernel.dispatcher import Dispatcher
    from uxk.kernel.machine import Machine
    from uxk.kernel.models import Models

PATH: Final = "/dev/ml_lib"
READ_MAX_EVENTS: Final = 1024
"""Events in one read, at most."""


class MlLibFile(OwnFile):
    """An open ``/dev/ml_lib``; begins at the oldest event held."""

    path = PATH

    def __init__(self, machine: Machine, models: Models, dispatcher: Dispatcher, client: str) -> None:
        super().__init__(dispatcher)
        self._machine = machine
        self._lib = MlLib(models)
        self._client = client
        self._ring = models.events
        self._reader = self._ring.reader()
        self._answer = b""

    @property
    def readable(self) -> bool:
        """Whether there is something to read."""
        return bool(self._answer) or self._reader.next_seq < self._ring.next_seq

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls ``wake`` at the next event."""
        return self._ring.subscribe(wake)

    async def read(self, size_bytes: int = limits.SHOW_MAX_BYTES, *, wait: bool = True) -> bytes:
        """As many notifications as there are and ``size_bytes`` hold.

        Waits for one, or with ``wait=False`` raises EAGAIN; EINVAL if there is no room for any.
        """
        self.check_open()
        if self._answer:
            data, self._answer = self._answer[: max(0, size_bytes)], self._answer[max(0, size_bytes) :]
            return data
        room = min(size_bytes // NOTIFICATION.size_bytes, READ_MAX_EVENTS)
        if room < 1:
            raise UsageError(f"{PATH}: read of {size_bytes} bytes, expected at least {NOTIFICATION.size_bytes}")
        await self.wait_readable(wait=wait)
        parts = list[bytes]()
        while len(parts) < room and (found := self._reader.read()) is not None:
            parts.append(_notification(*found, self._reader.dropped))
        return b"".join(parts)

    async def write(self, data: bytes) -> int:
        """One command, for one model; an answer to one before it that was not read is gone.

        ENOENT for an id that is no model's, EINVAL, or what the operation raises."""
        self.check_open()
        self._machine.refresh()
        self._machine.note("ml_lib", 0, data[: limits.SHOW_MAX_BYTES])
        self._answer = self._lib.dispatch(data)
        return len(data)


def _notification(seq: int, event: MlEvent, dropped: int) -> bytes:
    return NOTIFICATION.pack(
        type=event.type, model_id=event.model_id, old_value=event.old_value, new_value=event.new_value,
        error=event.error, timestamp=event.timestamp_ns, sequence=seq, dropped=dropped,
    )  # fmt: skip
