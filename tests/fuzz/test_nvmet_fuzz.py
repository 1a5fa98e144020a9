"""The corpus of the NVMe/TCP fuzzer, and mutations of it, as a test."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "nvmet_corpus").iterdir())
MUTANTS = 12


def load() -> ModuleType:
    """The fuzzer's program."""
    spec = importlib.util.spec_from_file_location("nvmet_stream", HERE / "nvmet_stream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzzer = load()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    data = path.read_bytes()
    fuzzer.play(data)
    chance = random.Random(len(data))
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(mutant) + 1)
            mutant[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        fuzzer.play(bytes(mutant))


def test_noise() -> None:
    chance = random.Random(1)
    for _ in range(100):
        fuzzer.play(chance.randbytes(chance.randrange(300)))
