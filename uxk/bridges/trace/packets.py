"""Tracks, slices, instants, counters and flows as packets of a Perfetto trace; virtual time is trace time.

Built with the trace builder of the package ``perfetto`` (extra ``trace``).  Identities are numbers in the order of
their making, so that equal calls give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any, Final

from uxk.errors import UsageError
from uxk.limits import I64_MAX

PACKETS_MAX_DEFAULT: Final = 4_000_000
"""Events of one trace; about 100 bytes each.  What comes then is counted."""
_CHUNK_PACKETS: Final = 256
"""Packets written together."""
_SEQUENCE: Final = 1
_TEXT_MAX_CHARS: Final = 512


class TraceWriter:
    """Writes packets to a binary file as they come.  UsageError without the extra ``trace``."""

    def __init__(self, file: IO[bytes], packets_max: int = PACKETS_MAX_DEFAULT) -> None:
        try:
            from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
            from perfetto.trace_builder.proto_builder import TraceProtoBuilder
        except ModuleNotFoundError:
            raise UsageError("traces need perfetto: pip install 'uxk[trace]'") from None
        self._file = file
        self._new: Any = TraceProtoBuilder
        self._builder: Any = TraceProtoBuilder()
        self._pending = 0
        self._types: Any = pb.TrackEvent
        self._explicit = pb.TrackDescriptor.EXPLICIT
        self._packets_max = packets_max
        self._last_uuid = 0
        self.written = 0
        """Events, without descriptions of tracks."""
        self.left_out = 0
        packet = self._packet()
        packet.sequence_flags = pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        packet.first_packet_on_sequence = True

    def flush(self) -> None:
        """Writes what is pending.  Traces one behind the other are one trace: that is how packets are framed."""
        builder, self._builder, self._pending = self._builder, self._new(), 0
        self._file.write(builder.serialize())

    # --- tracks ---

    def process(self, pid: int, name: str) -> int:
        """A group of tracks, shown as a process; returns its identity."""
        track = self._describe(name="")
        track.track_descriptor.process.pid = pid
        track.track_descriptor.process.process_name = name[:_TEXT_MAX_CHARS]
        track.track_descriptor.child_ordering = self._explicit
        return self._last_uuid

    def track(self, parent: int, name: str, rank: int = 0) -> int:
        """A track for slices and instants.  Tracks of one name under one parent are shown as one."""
        self._describe(parent, name, rank)
        return self._last_uuid

    def counter(self, parent: int, name: str, unit: str = "", rank: int = 0) -> int:
        """A track for numbers."""
        track = self._describe(parent, name, rank)
        track.track_descriptor.counter.unit_name = unit
        return self._last_uuid

    def _describe(self, parent: int = 0, name: str = "", rank: int = 0) -> Any:
        packet = self._packet()
        self._last_uuid += 1
        packet.track_descriptor.uuid = self._last_uuid
        if parent:
            packet.track_descriptor.parent_uuid = parent
        if name:
            packet.track_descriptor.name = name[:_TEXT_MAX_CHARS]
        if rank:
            packet.track_descriptor.sibling_order_rank = rank
        return packet

    # --- events ---

    def begin(self, track: int, now_ns: int, name: str, flows: Iterable[int] = (), **notes: int | str) -> bool:
        """A slice begins; False if the trace is full: then it must not end."""
        return self._event(self._types.TYPE_SLICE_BEGIN, track, now_ns, name, flows, (), notes)

    def end(self, track: int, now_ns: int, **notes: int | str) -> None:
        """The innermost slice of a track ends, even in a trace that is full."""
        self._event(self._types.TYPE_SLICE_END, track, now_ns, "", (), (), notes, always=True)

    def instant(
        self, track: int, now_ns: int, name: str, flows: Iterable[int] = (), ends: Iterable[int] = (),
        **notes: int | str,
    ) -> None:  # fmt: skip
        """Something happens; ``flows`` are arrows that begin or go on here, ``ends`` those that end."""
        self._event(self._types.TYPE_INSTANT, track, now_ns, name, flows, ends, notes)

    def tell(self, track: int, now_ns: int, name: str) -> None:
        """As :meth:`instant`, even in a trace that is full."""
        self._event(self._types.TYPE_INSTANT, track, now_ns, name, (), (), {}, always=True)

    def count(self, track: int, now_ns: int, value: int) -> None:
        """A counter's value from now on."""
        if self._full():
            return
        packet = self._packet(now_ns)
        packet.track_event.type = self._types.TYPE_COUNTER
        packet.track_event.track_uuid = track
        packet.track_event.counter_value = value

    def _event(
        self, kind: int, track: int, now_ns: int, name: str, flows: Iterable[int], ends: Iterable[int],
        notes: Mapping[str, int | str], *, always: bool = False,
    ) -> bool:  # fmt: skip
        if not always and self._full():
            return False
        packet = self._packet(now_ns)
        event = packet.track_event
        event.type = kind
        event.track_uuid = track
        if name:
            event.name = name[:_TEXT_MAX_CHARS]
        event.flow_ids.extend(flows)
        event.terminating_flow_ids.extend(ends)
        for key, value in notes.items():
            note = event.debug_annotations.add(name=key)
            if isinstance(value, int) and -I64_MAX <= value <= I64_MAX:
                note.int_value = value
            else:
                note.string_value = str(value)[:_TEXT_MAX_CHARS]
        return True

    def _full(self) -> bool:
        if self.written >= self._packets_max:
            self.left_out += 1
            return True
        self.written += 1
        return False

    def _packet(self, now_ns: int | None = None) -> Any:
        if self._pending >= _CHUNK_PACKETS:
            self.flush()
        self._pending += 1
        packet = self._builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if now_ns is not None:
            packet.timestamp = now_ns
        return packet
