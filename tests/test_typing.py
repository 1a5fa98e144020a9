"""The programs under tests/typing/ pass both type checkers at their strictest; nothing in them is run."""

from __future__ import annotations

import subprocess
import sys
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
    done = subprocess.run([sys.executable, "-m", checker, *CHECKERS[checker]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
