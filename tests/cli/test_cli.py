"""The command line in this process: layouts, where options may stand, exit codes."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from uxk.cli import VERB_FILES, build_parser, hoist, main, verb_of
from uxk.cli.common import UsageExit, clean, error_text, only_error, param_texts
from uxk.cli.dmesg import level_mask
from uxk.cli.modinfo import modinfo_text
from uxk.cli.modules import lsmod_text
from uxk.cli.tree import long_line
from uxk.errors import ParamError
from uxk.uapi.control import TreeEntry
from uxk.uapi.info import ModuleInfo, ModuleRow, Parameter


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UXK_SOCKET", raising=False)


# --- layouts: golden, as kmod prints them ------------------------------------------------------------------


def test_lsmod_layout() -> None:
    rows = [
        ModuleRow("nvme", 61440, ("nvme_tcp", "nvme_loop"), "live", "1", "block"),
        ModuleRow("nvme_core_with_a_long_name", 123456789, (), "live", "1", "misc"),
        ModuleRow("a", 0, ("b",), "coming", "1", "misc"),
    ]
    assert lsmod_text(rows) == (
        "Module                  Size  Used by\n"
        "nvme                   61440  2 nvme_tcp,nvme_loop\n"
        "nvme_core_with_a_long_name 123456789  0\n"
        "a                          0  1 b"
    )


def test_modinfo_layout() -> None:
    info = ModuleInfo(
        filename="/lib/uxk_null.py", name="null", version="1.0", author="The authors", license="MIT",
        description="Reads give\x1b[31m zeros", kind="driver", driver_class="block", alias=("zero", "uxk:class=block"),
        depends=("core", "bus"), softdep="pre: log", capabilities=("kmsg:read",), placement="task",
        memory_bytes=1048576, memory_params=("size",), queue_depth=64, sandbox=("network", "read {cert}"),
        parameters=(
            Parameter("depth", "int", "8", "queue depth", "", True, ">= 1, <= 64"),
            Parameter("size", "int", "required", "", "bytes", False, ""),
            Parameter("label", "str", "", "what to call it", "", False, ""),
        ),
    )  # fmt: skip
    assert modinfo_text(info) == (
        "filename:       /lib/uxk_null.py\n"
        "version:        1.0\n"
        "license:        MIT\n"
        "description:    Reads give\\x1b[31m zeros\n"
        "author:         The authors\n"
        "alias:          zero\n"
        "alias:          uxk:class=block\n"
        "depends:        core,bus\n"
        "softdep:        pre: log\n"
        "name:           null\n"
        "kind:           driver\n"
        "class:          block\n"
        "capability:     kmsg:read\n"
        "placement:      task\n"
        "memory:         1048576 bytes + size\n"
        "queue_depth:    64\n"
        "sandbox:        network\n"
        "sandbox:        read {cert}\n"
        "parm:           depth:queue depth [>= 1, <= 64, default 8, writable] (int)\n"
        "parm:           size:[in bytes, required] (int)\n"
        "parm:           label:what to call it (str)"
    )


def test_ls_layout() -> None:
    assert long_line(TreeEntry("size", "file", 0o644, 4096)) == "-rw-r--r--  4096 size"
    assert long_line(TreeEntry("bus", "link", 0o777, 9, "../../bus")) == "lrwxrwxrwx     9 bus -> ../../bus"
    assert long_line(TreeEntry("sys", "dir", 0o755, 0)) == "drwxr-xr-x     0 sys"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", range(8)), ("err", [3]), ("err,warn", [3, 4]), ("3,4", [3, 4]), ("warn+", range(5)),
        ("+warn", range(4, 8)), ("emerg+", [0]), ("+debug,crit", [2, 7]), ("ERR", [3]),
    ],
)  # fmt: skip
def test_dmesg_levels(text: str, levels: list[int]) -> None:
    assert level_mask(text) == sum(1 << level for level in levels)


@pytest.mark.parametrize("text", ["loud", "8", "err,", ",", "++err", "-1"])
def test_levels_that_do_not_exist(text: str) -> None:
    with pytest.raises(UsageExit):
        level_mask(text)


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hoisted", "verb"),
    [
        ("lsmod", "lsmod", "lsmod"),
        ("lsmod -k S", "-k S lsmod", "lsmod"),
        ("modprobe a -k S b=1 --json", "-k S modprobe --json a b=1", "modprobe"),
        ("--kernel=S cat /a --json /b", "--kernel=S cat --json /a /b", "cat"),
        ("echo -kS -- -k /a --json", "-kS echo -- -k /a --json", "echo"),
        ("-h", "-h", ""),
        ("", "", ""),
        ("-k", "-k", ""),
        ("--version tree", "--version tree", "tree"),
    ],
)
def test_options_may_stand_anywhere(words: str, hoisted: str, verb: str) -> None:
    assert hoist(words.split()) == hoisted.split()
    assert verb_of(hoisted.split()) == verb


def test_every_verb_is_registered_by_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    for _, verbs in VERB_FILES:
        for verb in verbs:
            with pytest.raises(SystemExit) as stop:
                build_parser(verb).parse_args([verb, "--help"])
            assert stop.value.code == 0
            assert f"usage: uxk {verb}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for _, verbs in VERB_FILES for verb in verbs)


def test_parameters() -> None:
    assert param_texts(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}
    for bad in ("a", "=1"):
        with pytest.raises(UsageExit):
            param_texts([bad])
    with pytest.raises(ParamError, match="twice"):
        param_texts(["a=1", "a=2"])


@pytest.mark.parametrize("line", ["dmesg", "cat /a", "echo 1 /a", "rmmod a", "tree", "ls /", "modprobe -r a"])
def test_verbs_that_need_a_kernel_say_how_to_get_one(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.startswith(f"uxk: {line.split()[0]}: needs a running kernel")
    assert "uxk boot --socket" in seen.err and "-k" in seen.err


@pytest.mark.parametrize(
    "line",
    [
        "", "frobnicate", "cat", "lsmod --loud", "modprobe a b", "dmesg -l loud -k S", "-k", "boot -k S",
        "boot --clock wrong", "boot --seed x", "modprobe -r a b=1 -k S", "echo /a", "rmmod a --json",
    ],
)  # fmt: skip
def test_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and "uxk" in seen.err


def test_no_kernel_at_that_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lsmod", "-k", str(tmp_path / "absent")]) == 1
    path = tmp_path / "absent"
    assert capsys.readouterr().err == (
        f"uxk: lsmod: no kernel at {path}: No such file or directory "
        f"(start one with: uxk boot --socket {path}) [ENOENT]\n"
    )


def test_os_errors_are_told_once() -> None:
    assert error_text(PermissionError(13, "Permission denied", "/a")) == "/a: Permission denied [EACCES]"
    assert error_text(OSError(28, "No space left on device")) == "No space left on device [ENOSPC]"
    assert error_text(OSError("odd")) == "odd"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import uxk

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"uxk {uxk.__version__}\n"


def test_terminals_are_safe() -> None:
    assert clean("plain \u00e9") == "plain \u00e9"
    assert clean("a\nb\x1b[2J") == "a\\nb\\x1b[2J"


def test_the_one_error_in_a_group() -> None:
    inner = ValueError("x")
    assert only_error(ExceptionGroup("a", [ExceptionGroup("b", [inner])])) is inner
    two = ExceptionGroup("a", [inner, inner])
    assert only_error(two) is two


# --- without a kernel -----------------------------------------------------------------------------------------


def test_trial_load_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trial.py"
    file.write_text(
        "import uxk\nclass P(uxk.Params):\n    n: int = 1\n"
        "class T(uxk.Extension[P]):\n    manifest = uxk.Manifest(name='cli_trial', version='7', params=P)\n"
        "    def setup(self, ctx):\n        ctx.log(f'n is {self.params.n}')\n"
    )
    assert main(["insmod", str(file), "n=3"]) == 0
    seen = capsys.readouterr()
    assert "throw-away" in seen.err
    assert "cli_trial: n is 3" in seen.out and "loaded, version 7" in seen.out and "unloaded" in seen.out

    assert main(["insmod", str(file), "n=x"]) == 1
    assert "uxk: insmod: cli_trial: n='x'" in capsys.readouterr().err
    assert main(["insmod", str(tmp_path / "absent.py")]) == 1
    assert "[ENOENT]" in capsys.readouterr().err


def test_json_without_a_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trial.py"
    file.write_text("import uxk\nclass J(uxk.Extension):\n    manifest = uxk.Manifest(name='cli_json')\n")
    assert main(["insmod", str(file)]) == 0
    capsys.readouterr()
    from uxk.module import declared

    kept = declared["cli_json"]  # extension classes are held weakly
    assert main(["lsmod", "--json"]) == 0
    assert "cli_json" in {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["modinfo", "cli-json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["filename"] == str(file)
    assert kept.manifest.name == "cli_json"


def test_files_and_modules_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "told.py"
    file.write_text("import uxk\nclass J(uxk.Extension):\n    manifest = uxk.Manifest(name='cli_told')\n")
    assert main(["modinfo", "-F", "name", str(file)]) == 0
    assert capsys.readouterr().out == "cli_told\n"
    assert main(["modprobe", "rd.py"]) == 1
    assert "(a file? use insmod) [ENOENT]" in capsys.readouterr().err
    assert main(["insmod", "null"]) == 1
    assert "no file 'null' (a module? use modprobe) [ENOENT]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("import uxk\n\ndef f():\n    raise ValueError('x')\nf()\n", 4, "ValueError: x"),
        ("x = 1\nimport uxk_nowhere\n", 2, "ModuleNotFoundError: No module named 'uxk_nowhere'"),
        ("x = 1\n\ndef broken(:\n", 3, "SyntaxError: invalid syntax"),
        ("\nopen('/nowhere')\n", 2, "FileNotFoundError"),
    ],
)
def test_import_errors_name_the_line(
    text: str, line: int, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    assert main(["modinfo", str(file)]) == 1
    seen = capsys.readouterr().err
    assert seen.startswith(f"uxk: modinfo: {file}:{line}: {cause}") and seen.count("bad.py") == 1


def test_an_unreadable_file_keeps_its_errno(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "secret.py"
    file.write_text("")

    def refuse(loader: object, path: str) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(SourceFileLoader, "get_data", refuse)
    assert main(["modinfo", str(file)]) == 1
    assert capsys.readouterr().err == f"uxk: modinfo: '{file}': Permission denied [EACCES]\n"


def test_lsmod_complains_of_what_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = EntryPoint("cli_broken", "uxk_nowhere:Thing", "uxk.modules")
    monkeypatch.setattr("uxk.kernel.catalog._entry_points", lambda: {"cli_broken": broken})
    assert main(["lsmod"]) == 0
    assert "uxk: lsmod: module 'cli_broken': cannot import uxk_nowhere:Thing" in capsys.readouterr().err
