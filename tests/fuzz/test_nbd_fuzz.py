"""The NBD fuzzer's corpus, and seeded variations of it, without the fuzzer: see ``nbd.py``."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

from uxk_nbd_server.tests.fuzz_target import seeds, session

VARIATIONS = 400


def load() -> ModuleType:
    """The fuzzer's program."""
    spec = importlib.util.spec_from_file_location("nbd_fuzzer", Path(__file__).with_name("nbd.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORPUS: list[bytes] = load().stored()


def test_corpus() -> None:
    assert len(CORPUS) > 50
    for data in CORPUS:
        session(data)


def test_seeds_reach_both_phases() -> None:
    states = {session(data)[0] for data in seeds()}
    assert states == {"transmission", "closed", "options"}


def test_variations() -> None:
    """Bytes changed, dropped, doubled and put together: a slice of what the fuzzer does."""
    dice = random.Random(11)
    inputs = [*CORPUS, *(data for data in seeds() if len(data) < 2000)]
    for _ in range(VARIATIONS):
        data = bytearray(dice.choice(inputs))
        for _ in range(dice.randrange(1, 8)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randrange(1, 9)]
                    data = data or bytearray(1)
                case 2:
                    data[at:at] = data[at : at + dice.randrange(1, 30)]
                case _:
                    other = dice.choice(inputs)
                    data[at:] = other[dice.randrange(len(other)) :]
                    data = data or bytearray(1)
        session(bytes(data))
