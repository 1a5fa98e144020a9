"""``uxk check`` and ``uxk new``: what they print, what they refuse, how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uxk.cli import main
from uxk.cli.new import generate
from uxk.errors import UsageError
from uxk.testing import CheckFailure, Subject, all_checks, subject
from uxk.testing.subject import check

NAMES = [check.__name__ for check in all_checks()]

FORGETFUL = """
from __future__ import annotations

import uxk


class Forgetful(uxk.Extension):
    '''Forgets the last request of every batch.'''

    manifest = uxk.Manifest(name="forgetful", version="1", license="MIT")

    def on_batch(self, ctx, requests):
        for request in requests[:-1]:
            ctx.complete(request)
"""


def test_check_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "null"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"ok    {name}" for name in NAMES), f"null: {len(NAMES)} passed, 0 failed"]


def test_check_of_a_file_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text(FORGETFUL, "utf-8")
    assert main(["check", str(path), "--only", "manifest", "--only", "check_full_queue"]) == 1
    out = capsys.readouterr().out
    assert "ok    check_manifest" in out
    assert "FAIL  check_full_queue: saw 3 requests past their deadline" in out
    assert out.endswith("1 passed, 1 failed\n")


def test_check_as_json_with_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "null", "--json", "-p", "size=1MiB", "-p", "latency_ns=5us", "--only", "idle"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"module": "null", "check": "check_idle", "passed": True, "seen": None, "expected": None}
    ]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "no-such-module"], 1, "no module or alias 'no-such-module'"),
        (["check", "null", "--only", "nothing"], 2, "no such check of this module; known: check_manifest"),
        (["check", "null", "-p", "size"], 2, "NAME=VALUE"),
        (["check", "missing.py"], 1, "no file 'missing.py'"),
        (["new", "gadget", "x"], 2, "invalid choice"),
        (["new", "driver", "Bad Name"], 1, "expected a-z"),
        (["new", "driver", "../x"], 1, "expected a-z"),
        (["new", "driver", "uxk_x"], 1, "without 'uxk_'"),
        (["new", "driver", "null"], 1, "a module of that name already"),
    ],
)
def test_refusals(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    assert message in capsys.readouterr().err


def test_check_refuses_a_bad_parameter_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "null", "-p", "sise=1"]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("unknown parameter 'sise'") == 1


def test_a_failure_is_told_without_the_groups_around_it() -> None:
    @check
    def check_grouped(_: Subject) -> None:
        raise ExceptionGroup("a", [ExceptionGroup("b", [ValueError("inner")])])

    with pytest.raises(CheckFailure, match="saw ValueError: inner; expected no error"):
        check_grouped(subject("null"))


def test_new_says_to_install_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "driver", "thing", "--dir", str(tmp_path)]) == 0
    _, _, steps = capsys.readouterr().out.partition("\nNext, in ")
    assert steps.splitlines()[1] == "  pip install -e '.[test]'"


def test_new_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "driver", "thing", "--dir", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["new", "extension", "thing", "--dir", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_new_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def full(path: Path, *args: str) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(path, *args)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        generate("driver", "thing", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "sequence", "exception", "9p", "echo-params", "final"])
@pytest.mark.parametrize("kind", ["driver", "extension"])
def test_names_that_python_or_the_template_have_taken(kind: str, name: str, tmp_path: Path) -> None:
    folder = generate(kind, name, tmp_path)
    module = folder / folder.name / "__init__.py"
    compile(module.read_text("utf-8"), str(module), "exec")
    assert main(["check", str(module), "--only", "manifest", "--only", "hostile_requests"]) == 0


def test_new_without_the_templates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="uxk_null cannot be found"):
        generate("driver", "thing", tmp_path)
