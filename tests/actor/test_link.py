"""A link between two ends in one process: nothing blocks, what does not fit is kept, descriptors arrive once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from uxk.actor import link as links
from uxk.actor import wire
from uxk.actor.link import Gone, Link

Ends = tuple["Link[wire.FromChild]", "Link[wire.FromKernel]"]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    kernel: Link[wire.FromChild] = Link(ours, wire.FromChild)
    child: Link[wire.FromKernel] = Link(theirs, wire.FromKernel)
    yield kernel, child
    kernel.close()
    child.close()


def test_messages_arrive_in_order(ends: Ends) -> None:
    kernel, child = ends
    for number in range(100):
        kernel.send(wire.Turn(number, [b"x" * number], []))
    heard = [message for _ in range(3) for message in child.receive()]
    assert [message.now_ns for message in heard if isinstance(message, wire.Turn)] == list(range(100))
    assert child.receive() == []


def test_messages_can_be_taken_a_few_at_a_time(ends: Ends) -> None:
    kernel, child = ends
    for number in range(100):
        kernel.send(wire.Turn(number, [b"x"], []))
    pieces = [child.receive(7)]
    while child.more:
        assert child.wait(0)  # though nothing lies in the socket
        pieces.append(child.receive(7) if len(pieces) % 2 else child.spin_receive())
    assert [len(piece) for piece in pieces] == [7, 7, 86]
    assert [each.now_ns for piece in pieces for each in piece if isinstance(each, wire.Turn)] == list(range(100))
    assert child.receive(7) == []


def test_what_the_peer_does_not_read_is_kept_and_counts_as_stalled(ends: Ends) -> None:
    kernel, child = ends
    sent = 0
    while not kernel.stalled:
        kernel.send(wire.Turn(sent, [bytes(10_000)], []))
        sent += 1
    assert kernel.pending_bytes > links.BACKLOG_MAX_BYTES
    heard: list[wire.FromKernel] = []
    while len(heard) < sent:
        heard += child.receive()
        kernel.flush()
    assert not kernel.stalled and kernel.flush() and kernel.pending_bytes == 0
    assert [message.now_ns for message in heard if isinstance(message, wire.Turn)] == list(range(sent))


def test_a_descriptor_goes_along_and_is_closed_on_this_side(ends: Ends) -> None:
    kernel, child = ends
    read_end, write_end = os.pipe()
    kernel.send(wire.Turn(1, [bytes(300_000)], []))  # more than the socket takes: the descriptor waits its turn
    kernel.send(wire.Mapped(7, 10, 0, False), write_end)
    messages: list[wire.FromKernel] = []
    descriptors: list[int] = []
    while len(messages) < 2:
        kernel.flush()
        more, came = child.receive_with()
        messages += more
        descriptors += came
    assert isinstance(messages[1], wire.Mapped) and len(descriptors) == 1
    os.write(descriptors[0], b"through")
    os.close(descriptors[0])
    assert os.read(read_end, 100) == b"through"
    assert os.read(read_end, 100) == b""  # no end for writing is left open
    os.close(read_end)


def test_descriptors_nobody_asked_for_are_dropped_with_the_bytes_kept(ends: Ends) -> None:
    kernel, child = ends
    read_end, write_end = os.pipe()
    child.send(wire.Dirty(), write_end)
    assert kernel.receive() == [wire.Dirty()]
    assert os.read(read_end, 100) == b""
    os.close(read_end)


def test_a_peer_that_hangs_up_is_gone(ends: Ends) -> None:
    kernel, child = ends
    child.send(wire.Dirty())
    child.close()
    assert kernel.receive() == [wire.Dirty()]
    with pytest.raises(Gone):
        kernel.receive()
    with pytest.raises(Gone):
        kernel.spin_receive()
    with pytest.raises(Gone):
        kernel.send(wire.Stop("x"))


def test_waiting_ends_with_a_message_or_in_time(ends: Ends) -> None:
    kernel, child = ends
    assert not kernel.wait(0)
    child.send_all(wire.Dirty())
    assert kernel.wait(0) and kernel.wait_for_messages() == [wire.Dirty()]


def test_spinning_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    spin = links.Spin()
    spin.allowed = True
    for _ in range(8):
        assert spin.worth()
        spin.miss()
        if not spin.worth():
            break
    tried = [spin.worth() for _ in range(200)]
    assert 0 < sum(tried) < 10
    spin.hit()
    assert spin.worth()
    spin.allowed = False
    assert not any(spin.worth() for _ in range(200))
