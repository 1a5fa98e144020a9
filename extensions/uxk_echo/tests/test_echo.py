"""What echo does."""

from __future__ import annotations

import pytest

import uxk
from uxk.testing import boot

POLLIN = 1
SERVED = "/sys/module/echo/attributes/served"


async def test_answers_with_the_payload() -> None:
    async with boot() as kernel:
        echo = await kernel.modprobe("echo", greeting="good day")
        payloads = [b"", b"abc", bytes(1000)]
        replies = await echo.submit_batch([uxk.Request(0, uxk.Op.CALL, payload) for payload in payloads])
        assert [reply.payload for reply in replies] == payloads
        await kernel.run()
        assert kernel.sysfs.read(SERVED) == "3"
        assert "good day, echo here" in [record.text for record in kernel.kmsg.records(source="echo")]


async def test_limit_is_a_parameter_that_can_be_written() -> None:
    async with boot() as kernel:
        echo = await kernel.modprobe("echo", limit="1KiB")
        assert (await echo.submit(bytes(1025), check=False)).status == 90  # EMSGSIZE
        kernel.sysfs.write("/sys/module/echo/parameters/limit", "2KiB")
        assert (await echo.submit(bytes(1025))).payload == bytes(1025)
        with pytest.raises(OSError, match="expected int"):
            kernel.sysfs.write("/sys/module/echo/parameters/limit", "-1")


async def test_the_count_can_be_set() -> None:
    async with boot() as kernel:
        echo = await kernel.modprobe("echo")
        await kernel.run()
        for text, expected in (("41", "41"), ("rubbish", "41"), ("\u00b2", "41"), ("7\n", "7")):
            kernel.sysfs.write(SERVED, text)
            await kernel.run()
            assert kernel.sysfs.read(SERVED) == expected
        await echo.submit(b"one more")
        assert kernel.sysfs.read(SERVED) == "8"


async def test_char_device() -> None:
    async with boot() as kernel:
        await kernel.modprobe("echo")
        await kernel.run()
        async with await kernel.open("/dev/echo") as file:
            assert await file.read() == b""
            assert await file.write(b"hello") == 5
            assert await file.poll(POLLIN) == POLLIN
            assert await file.read(2) == b"he"
            assert await file.read() == b"llo"
            with pytest.raises(uxk.RequestError, match="EMSGSIZE"):
                await file.write(bytes((64 << 10) + 1))
            with pytest.raises(uxk.UsageError, match="no ioctl"):
                await file.ioctl("spin")


async def test_last_words() -> None:
    async with boot() as kernel:
        echo = await kernel.modprobe("echo")
        await echo.submit(b"abc")
        await kernel.rmmod("echo")
        texts = [record.text for record in kernel.kmsg.records(source="echo")]
        assert "served 1 requests; rmmod" in texts


async def test_two_instances() -> None:
    async with boot() as kernel:
        await kernel.modprobe("echo")
        other = await kernel.modprobe("echo", instance="echo-two")
        await other.submit(b"abc")
        await kernel.run()
        assert kernel.sysfs.read("/sys/module/echo_two/attributes/served") == "1"
        assert kernel.sysfs.read(SERVED) == "0"
        async with await kernel.open("/dev/echo_two") as file:
            assert await file.write(b"x") == 1
