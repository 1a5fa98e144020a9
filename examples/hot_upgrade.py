"""A driver is replaced under load, twice: by a better build, and by one with a bug, which is taken back.

    python examples/hot_upgrade.py

The store keeps its words in its own memory, not in the kernel's: they live on because each build writes them down
(``checkpoint``) and the next one takes them over (``restore``), or converts them first (``convert``) if its format
is another one. Clients notice nothing but a moment's waiting.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

import uxk

MS = 1_000_000


class Store(uxk.Extension):
    """Answers ``word=meaning`` with nothing and ``word`` with its meaning, each after 10 microseconds."""

    manifest = uxk.Manifest(name="store", version="1.0", license="Apache-2.0", fate="reissue")

    def setup(self, ctx: uxk.Context) -> None:
        self.words: dict[str, str] = {}

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(10_000, lambda _: self.answer(ctx, requests))

    def answer(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            word, equals, meaning = request.payload.decode().partition("=")
            if equals:
                self.words[word] = meaning
            ctx.complete(request, self.words.get(word, "").encode())

    def checkpoint(self) -> bytes:
        return msgspec.json.encode(self.words)

    def restore(self, data: bytes) -> None:
        self.words = msgspec.json.decode(data)


class CountingStore(Store):
    """Version 2 counts how often a word is asked for; so its state is another one."""

    manifest = uxk.Manifest(name="store", version="2.0", license="Apache-2.0", fate="reissue", state_version=2)

    def setup(self, ctx: uxk.Context) -> None:
        super().setup(ctx)
        self.counts: dict[str, int] = {}

    def answer(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            word = request.payload.decode()
            self.counts[word] = self.counts.get(word, 0) + 1
        super().answer(ctx, requests)
        ctx.set_attribute("asked", sum(self.counts.values()))

    def checkpoint(self) -> bytes:
        return msgspec.json.encode([self.words, self.counts])

    def convert(self, version: int, data: bytes) -> bytes:
        return b"[%s,{}]" % data

    def restore(self, data: bytes) -> None:
        self.words, self.counts = msgspec.json.decode(data)


class HastyStore(CountingStore):
    """Version 2.1 has a bug that only load brings to light."""

    manifest = msgspec.structs.replace(CountingStore.manifest, version="2.1")

    def answer(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, self.words[request.payload.decode()].encode())


async def main() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        store = await kernel.insmod(Store)
        await store.submit(b"hello=a greeting")
        answers: dict[bytes, int] = {}

        def on_answers(completions: list[uxk.Completion]) -> None:
            for completion in completions:
                answers[completion.payload] = answers.get(completion.payload, 0) + 1
            if kernel.now_ns < 40 * MS:
                port.submit_batch([uxk.Request(0, payload=b"hello") for _ in completions])

        port = store.open_port(on_answers)
        port.submit_batch([uxk.Request(0, payload=b"hello") for _ in range(4)])
        await kernel.sleep_ns(MS)
        await kernel.upgrade("store", CountingStore)
        kernel.call_at_ns(20 * MS, lambda _: store.open_port(list.clear).submit(uxk.Request(0, payload=b"adieu")))
        try:
            await kernel.upgrade("store", HastyStore)
        except uxk.UpgradeError as exc:
            print(exc)
        await kernel.run()
        for record in kernel.kmsg.records(source="store"):
            if " -> " in record.text and "bytes of state" not in record.text:
                print(record.text)
        asked = kernel.sysfs.read("/sys/module/store/attributes/asked").strip()
        print(f"version {store.manifest.version} was asked {asked} times; answers: {answers}")
        account = store.account
        print(f"{account.requests} requests, {account.completed} answered, {account.failed} failed")


if __name__ == "__main__":
    trio.run(main)
