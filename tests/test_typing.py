"""The programs under tests/typing/ pass both type checkers at their strictest; nothing in them is run."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = "tests/typing"

# Both checkers complain of an "ignore" that nothing needs: so lines so marked are mistakes that they must catch.
CHECKERS = {
    "mypy": ("--strict", "--follow-imports=silent", PROGRAMS),
    "pyright": ("--warnings", "--pythonpath", sys.executable, "--project", PROGRAMS),
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_public_api_is_typed(checker: str) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed; `make lint` and .ci/run install it")
    done = subprocess.run([sys.executable, "-m", checker, *CHECKERS[checker]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
