"""A driver that shares its process, and does to it what a request tells it to.

``UXK_TEST_HOST`` names the process; with none it has one of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import time
from collections.abc import Sequence

import uxk


class Lodger(uxk.Extension):
    manifest = uxk.Manifest(
        name="lodger", host=os.environ.get("UXK_TEST_HOST", "house"),
        restart=uxk.RestartPolicy(max_restarts=100), sandbox=uxk.Sandbox(memory_bytes=64 << 20, files=40),
        watchdog=uxk.Watchdog(request_timeout_ns=1_000_000_000, timeouts_max=1),
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, self.obey(request.payload.decode()))

    def obey(self, word: str) -> bytes:
        match word.split():
            case ["raise"]:
                raise ValueError("as asked")
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["exit", status]:
                print("the last line", flush=True)
                os._exit(int(status))
            case ["fault"]:
                ctypes.string_at(0)
            case ["hang"]:
                time.sleep(1000)
            case ["shout", text]:  # into every connection, the neighbours' and the kernel's own
                for descriptor in sockets():
                    with contextlib.suppress(OSError):
                        os.write(descriptor, bytes.fromhex(text))
                time.sleep(1000)
            case ["close"]:
                for descriptor in sockets():
                    os.close(descriptor)
                time.sleep(1000)
            case ["close_door"]:  # where the kernel lets others in
                os.close(3)
            case ["limit"]:
                return b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            case ["raise_limit"]:
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
                except (ValueError, OSError):
                    return b"denied"
            case ["pid"]:
                return b"%d" % os.getpid()
            case ["ignore"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case _:
                pass
        return word.encode()


def sockets() -> list[int]:
    """Descriptors of connections."""
    found = []
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.append(descriptor)
    return found
