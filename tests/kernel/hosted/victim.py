"""A driver that does to its own process what a request tells it to."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

import uxk

SOCKET = 3


class Victim(uxk.Extension):
    manifest = uxk.Manifest(
        name="victim", restart=uxk.RestartPolicy(max_restarts=100),
        watchdog=uxk.Watchdog(request_timeout_ns=1_000_000_000, timeouts_max=1),
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, self.obey(ctx, request.payload.decode()))

    def obey(self, ctx: uxk.Context, word: str) -> bytes:
        match word.split():
            case ["raise"]:
                raise ValueError("as asked")
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["exit", status]:
                print("one line", file=sys.stderr)
                print("the last line", file=sys.stderr, flush=True)
                os._exit(int(status))
            case ["say", text]:
                os.write(SOCKET, bytes.fromhex(text))
                time.sleep(1000)
            case ["hang"]:
                time.sleep(1000)
            case ["fault"]:
                ctypes.string_at(0)
            case ["hang up"] | ["hang", "up"]:
                os.close(SOCKET)
                time.sleep(1000)
            case ["print", count]:
                print("x" * int(count), flush=True)
            case ["answer", count]:
                return bytes(int(count))
            case ["map", cap]:
                ctx.map(int(cap))
            case ["pid"]:
                return b"%d" % os.getpid()
            case ["parent"]:
                return b"%d" % os.getppid()
            case ["ignore", "signals"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case _:
                pass
        return word.encode()

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        ctx.log(f"goodbye: {reason}")
