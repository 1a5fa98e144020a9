"""A mail server's spool: messages delivered to Maildirs, read, expunged, and some archived to mbox files.

Delivery is durable as mail servers do it: the message is written in ``tmp``, synced, renamed to ``new``, and the
folder is synced.  Each mailbox has an index that is appended to and rewritten when it has grown.  Mailboxes differ in
traffic (Zipf) and in how long messages are kept; those of an archive are rewritten without what was deleted.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
from collections import deque
from pathlib import Path
from typing import Final

INDEX_MAX_BYTES: Final = 32_768
LOG_ENTRY_BYTES: Final = 96
ARCHIVE_ONE_IN: Final = 20
ARCHIVE_MAX_BYTES: Final = 700_000


class Mailbox:
    """One Maildir with its index and archive."""

    def __init__(self, path: Path, kept: int) -> None:
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(parents=True)
        self.path = path
        self.kept = kept
        self.fresh: deque[str] = deque()
        self.seen: deque[str] = deque()
        self.index_bytes = 0

    def deliver(self, name: str, body: bytes) -> None:
        """A new message."""
        write(self.path / "tmp" / name, body)
        (self.path / "tmp" / name).rename(self.path / "new" / name)
        sync_folder(self.path / "new")
        self.fresh.append(name)
        self.log(name)

    def read(self, draw: random.Random) -> None:
        """The owner looks: new messages become seen, old ones go."""
        while self.fresh:
            name = self.fresh.popleft()
            (self.path / "new" / name).rename(self.path / "cur" / f"{name}:2,S")
            self.seen.append(f"{name}:2,S")
        while len(self.seen) > self.kept:
            # Mostly the oldest, sometimes any other.
            place = 0 if draw.random() < 0.7 else draw.randrange(len(self.seen))
            name = self.seen[place]
            del self.seen[place]
            if draw.randrange(ARCHIVE_ONE_IN) == 0:
                self.archive((self.path / "cur" / name).read_bytes())
            (self.path / "cur" / name).unlink()
            self.log(name)
        sync_folder(self.path / "cur")

    def log(self, name: str) -> None:
        """An entry in the index, which is rewritten when it has grown too long."""
        if self.index_bytes > INDEX_MAX_BYTES:
            entries = "".join(f"{entry:<{LOG_ENTRY_BYTES - 1}}\n" for entry in (*self.fresh, *self.seen))
            write(self.path / "index.tmp", entries.encode())
            (self.path / "index.tmp").rename(self.path / "index")
            self.index_bytes = 0
        with (self.path / "index").open("ab") as file:
            file.write(f"{name:<{LOG_ENTRY_BYTES - 1}}\n".encode())
        self.index_bytes += LOG_ENTRY_BYTES

    def archive(self, body: bytes) -> None:
        """Appends to an mbox; one that is too long loses its older half."""
        path = self.path / "archive.mbox"
        with path.open("ab") as file:
            file.write(b"From someone\n" + body)
            os.fsync(file.fileno())
        if path.stat().st_size > ARCHIVE_MAX_BYTES:
            text = path.read_bytes()
            write(self.path / "archive.tmp", text[len(text) // 2 :])
            (self.path / "archive.tmp").rename(path)


def write(path: Path, body: bytes) -> None:
    """A whole file, durable."""
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes the names in it durable."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def main() -> None:
    """Delivers and reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mailboxes", type=int, default=200)
    parser.add_argument("--messages", type=int, default=70_000)
    parser.add_argument("--kept", type=int, default=45, help="messages that a mailbox keeps, on average")
    parser.add_argument("--skew", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    noise = draw.randbytes(1 << 21)
    boxes = [
        Mailbox(Path("spool", f"user{i:04}"), max(5, int(args.kept * draw.uniform(0.2, 1.8))))
        for i in range(args.mailboxes)
    ]
    weights = list(itertools.accumulate((rank + 1) ** -args.skew for rank in range(args.mailboxes)))
    for number in range(args.messages):
        size = min(1 << 20, int(draw.lognormvariate(9.0, 1.2)))  # median 8 KiB, some of hundreds
        start = draw.randrange(len(noise) - size)
        box = draw.choices(boxes, cum_weights=weights)[0]
        box.deliver(f"{number:08}.M{draw.randrange(10**6):06}.host", noise[start : start + size])
        if draw.random() < 0.2:
            draw.choices(boxes, cum_weights=weights)[0].read(draw)


if __name__ == "__main__":
    main()
