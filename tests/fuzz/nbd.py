"""Fuzzes the NBD server's protocol with atheris: ``python tests/fuzz/nbd.py [--seconds N]``.

Needs the package atheris.  Begins with the seeds and ``nbd_corpus.txt``; inputs that reach new code are kept in the
folder ``--corpus``, from which ``--distil`` makes the file anew.  A finding ends the run and is written to a file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("nbd_corpus.txt")
INPUT_MAX_BYTES = 4096
DISTILLED_MAX_BYTES = 600
"""Of one input in the file: the replay in CI should read, and run, in no time."""


def stored() -> list[bytes]:
    """The inputs in the file, one of hex digits on each line."""
    return [bytes.fromhex(line) for line in CORPUS.read_text("ascii").split()] if CORPUS.exists() else []


def main() -> None:
    """Runs libFuzzer, which never returns."""
    parser = argparse.ArgumentParser(description="Fuzzes the NBD server's protocol.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "uxk-nbd-corpus")
    parser.add_argument("--distil", action="store_true", help="write the file anew from the folder")
    args = parser.parse_args()
    if args.distil:
        inputs = sorted({path.read_bytes() for path in args.corpus.iterdir()} | set(stored()))
        CORPUS.write_text("".join(f"{data.hex()}\n" for data in inputs if len(data) <= DISTILLED_MAX_BYTES), "ascii")
        return
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["uxk_nbd_server"]):
        target: Any = import_module("uxk_nbd_server.tests.fuzz_target")
    args.corpus.mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds() + stored()):
        (args.corpus / f"given-{number}").write_bytes(data)
    atheris.Setup(
        [sys.argv[0], str(args.corpus), f"-max_total_time={args.seconds}", f"-seed={args.seed}",
         f"-max_len={INPUT_MAX_BYTES}", "-print_final_stats=1"],
        target.session,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
