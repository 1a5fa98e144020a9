"""Every example runs and prints what stands beside it; ``UXK_UPDATE_EXAMPLES=1`` writes that anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".toml"))


def output_of(example: Path) -> str:
    """What a visitor sees, with the figures of host time taken out."""
    command = [str(example)] if example.suffix == ".py" else ["-m", "uxk", "run", str(example)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return re.sub(r"(?m)^host time .*$", "host time ...", done.stdout)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_prints_what_is_expected(example: Path) -> None:
    expected = example.with_suffix(".expected")
    output = output_of(example)
    if os.environ.get("UXK_UPDATE_EXAMPLES"):
        expected.write_text(output, "utf-8")
    assert output == expected.read_text("utf-8")


def test_the_document_shows_the_driver_as_it_is() -> None:
    driver = (ROOT / "examples/ramdisk.py").read_text("utf-8")
    assert f"```python file=ramdisk.py\n{driver}```\n" in (ROOT / "docs/block-driver.md").read_text("utf-8")
    assert driver.count("\n") <= 60, "60 lines are promised"


def test_the_document_shows_the_eleven_steps_as_they_are() -> None:
    expected = (ROOT / "examples/eleven_steps.expected").read_text("utf-8")
    assert f"```text\n{expected}```\n" in (ROOT / "docs/eleven-steps.md").read_text("utf-8")


def test_every_expectation_has_its_example() -> None:
    stems = {path.stem for path in EXAMPLES}
    assert {path.stem for path in (ROOT / "examples").glob("*.expected")} == stems
