"""A driver that dies with fate ``fail``: what the queue still has is answered at once, to the last request."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import pytest

import uxk
from uxk.uapi.blk import IoFlag
from uxk.uapi.entries import Op, Request

RESTART = uxk.RestartPolicy(mode="permanent", backoff_ns=1000, max_restarts=100)


def wanted(kind: str, count: int) -> list[Request]:
    flags = {"fua": int(IoFlag.FUA), "preflush": int(IoFlag.PREFLUSH)}.get(kind, 0)
    op = {"read": Op.READ, "flush": Op.FLUSH}.get(kind, Op.WRITE)
    if op == Op.FLUSH:
        return [Request(0, op) for _ in range(count)]
    data = b"x" * 512 if op == Op.WRITE else b""
    return [Request(0, op, data, n * 1024, 512, flags=flags) for n in range(count)]


@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
@pytest.mark.parametrize("kind", ["read", "write", "fua", "preflush", "flush"])
@pytest.mark.parametrize("fate", ["fail", "requeue", "reissue"])
async def test_every_request_is_answered_when_the_driver_dies(lab: Any, fate: str, kind: str, scheduler: str) -> None:
    async with lab(depth=8, manifest={"fate": fate, "restart": RESTART}) as it:
        it.set("scheduler", scheduler)
        await it.run()
        it.medium.swallow = lambda request: True
        client, cids = it.client(), []
        for request in wanted(kind, 200):
            cids += client.submit(request)
        await it.kernel.sleep_ns(10)
        it.medium.swallow = lambda request: False
        agent = it.kernel.agents["blkram"]
        it.crash()
        await it.kernel.sleep_ns(0)
        if fate == "fail":
            assert set(client.answers) == set(cids), "at once: nothing else would set them going again"
            assert set(client.status(cids)) <= {errno.EIO, errno.ENODEV}
        await it.run()
        assert set(client.answers) == set(cids)
        assert agent.state.name == "LIVE"
        if fate == "reissue":
            assert Counter(client.status(cids)) == {0: 200}
        again = client.submit(*wanted(kind, 2))
        await it.run()
        assert client.status(again) == [0, 0]
        it.check_empty()


async def test_who_sends_the_next_request_with_each_answer_does_not_hang(lab: Any) -> None:
    async with lab(depth=4, manifest={"fate": "fail", "restart": RESTART}) as it:
        it.medium.latency_ns = 100
        client, sent, refused = it.client(), list[int](), 0

        def send() -> None:
            nonlocal refused
            while len(sent) < 300 and len(sent) - len(client.answers) < 40:
                try:
                    sent.extend(client.submit(Request(0, Op.READ, b"", len(sent) * 1024, 512)))
                except uxk.RequestError:
                    refused += 1
                    it.kernel.call_at_ns(it.kernel.now_ns + 5000, lambda _: send())
                    return

        client.on_answer = send
        send()
        await it.kernel.sleep_ns(250)
        it.crash()
        await it.run()
        assert refused
        assert len(client.answers) == len(sent) == 300
        it.check_empty()


async def test_what_would_be_a_million_pieces_is_refused_in_one(lab: Any) -> None:
    async with lab(capacity_bytes=1 << 20, max_discard_bytes=4096, manifest={"fate": "fail"}) as it:
        device = it.disk.device
        properties = {k: v for k, v in device.properties.items() if k not in ("class", "module", "name")}
        it.kernel.devices.add(device.agent, "blkram0", {**properties, "capacity_bytes": str(1 << 40)})
        it.medium.swallow = lambda request: True
        client = it.client()
        cids = client.submit(Request(0, Op.DISCARD, b"", 0, (1 << 32) - 4096))
        await it.kernel.sleep_ns(10)
        it.crash()
        await it.kernel.sleep_ns(0)
        assert client.status(cids) == [errno.EIO]
        assert it.disk.intake._numbers < 100
