"""The device of :mod:`bench.block_virtual` as one would write it in SimPy.

A process for each job, one for the controller, one for each command in service; the block layer's tags, the lanes and
the pipe are Resources, the submission queue is a Store, a completion an Event.  A read does what it does in the simple
latency model: it waits for its tag, is queued and fetched, occupies a lane for its latency, then the pipe that all data
share, takes 4 KiB out of memory, and is counted, with its latency.  It keeps no queues in shared memory, encodes
nothing, checks no bounds and hashes nothing: that is what the idiom does not do.
"""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from time import process_time_ns
from typing import Any, NamedTuple

import simpy


class Shape(NamedTuple):
    """Of the device and its load."""

    depth: int = 32
    lanes: int = 64
    read_ns: int = 80_000
    transfer_ns: int = 1_170
    """Of one block through the pipe."""
    block_bytes: int = 4096
    size_bytes: int = 64 << 20


class Command:
    """A read on its way."""

    __slots__ = ("data", "done", "offset", "submitted_ns")

    def __init__(self, offset: int, submitted_ns: int, done: simpy.Event) -> None:
        self.offset = offset
        self.submitted_ns = submitted_ns
        self.done = done
        self.data = b""


class Disk:
    """Block layer, queue and controller."""

    def __init__(self, env: simpy.Environment, shape: Shape) -> None:
        self.env = env
        self.shape = shape
        self.memory = bytearray(range(256)) * (shape.size_bytes >> 8)
        self.tags = simpy.Resource(env, shape.depth)
        self.submission = simpy.Store(env)
        self.lanes = simpy.Resource(env, shape.lanes)
        self.pipe = simpy.Resource(env)
        self.reads = 0
        self.read_bytes = 0
        self.latency: dict[int, int] = {}
        env.process(self.controller())

    def read(self, offset: int) -> Generator[simpy.Event, Any, bytes]:
        """One request through the block layer."""
        with self.tags.request() as tag:
            yield tag
            command = Command(offset, int(self.env.now), self.env.event())
            yield self.submission.put(command)
            yield command.done
        return command.data

    def controller(self) -> Generator[simpy.Event, Any, None]:
        """Fetches commands."""
        while True:
            command = yield self.submission.get()
            self.env.process(self.serve(command))

    def serve(self, command: Command) -> Generator[simpy.Event, Any, None]:
        """One command on its lane."""
        shape = self.shape
        with self.lanes.request() as lane:
            yield lane
            yield self.env.timeout(shape.read_ns)
            with self.pipe.request() as pipe:
                yield pipe
                yield self.env.timeout(shape.transfer_ns)
        command.data = bytes(memoryview(self.memory)[command.offset : command.offset + shape.block_bytes])
        self.reads += 1
        self.read_bytes += shape.block_bytes
        bucket = (int(self.env.now) - command.submitted_ns).bit_length()
        self.latency[bucket] = self.latency.get(bucket, 0) + 1
        command.done.succeed()


class LeanDisk(Disk):
    """Neither tags, nor a submission queue, nor a controller: the job itself occupies lane and pipe."""

    def read(self, offset: int) -> Generator[simpy.Event, Any, bytes]:
        """One request."""
        command = Command(offset, int(self.env.now), self.env.event())
        yield from self.serve(command)
        return command.data


def offsets_of(shape: Shape, count: int) -> list[int]:
    """Where so many reads go, and at least one for each job."""
    random = Random(1)
    blocks = shape.size_bytes // shape.block_bytes
    return [random.randrange(blocks) * shape.block_bytes for _ in range(max(count, shape.depth))]


def reads(kind: type[Disk], shape: Shape, count: int) -> tuple[int, int]:
    """``shape.depth`` jobs that read at random, one request each at a time, until ``count`` are answered."""
    env = simpy.Environment()
    disk = kind(env, shape)
    offsets = offsets_of(shape, count)

    def job(mine: list[int]) -> Generator[simpy.Event, Any, None]:
        for offset in mine:
            data = yield from disk.read(offset)
            assert len(data) == shape.block_bytes

    jobs = [env.process(job(offsets[number :: shape.depth])) for number in range(shape.depth)]
    began_ns = process_time_ns()
    env.run(simpy.AllOf(env, jobs))
    took_ns = process_time_ns() - began_ns
    assert disk.reads == sum(disk.latency.values()) == len(offsets)
    return len(offsets), took_ns
