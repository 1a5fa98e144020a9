"""``uxk boot`` in one process, the other verbs in others, with a demonstration module installed for them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DEMO = '''
from typing import Annotated
import uxk

class Params(uxk.Params):
    depth: Annotated[int, uxk.param(ge=1, le=64, help="queue depth", writable=True)] = 8
    label: str = ""
    size: Annotated[int, uxk.param(unit="bytes", help="capacity")] = 4096

class Base(uxk.Extension):
    """Others need it."""
    manifest = uxk.Manifest(name="cli_base")

class Demo(uxk.Extension[Params]):
    """Shows the command line."""
    manifest = uxk.Manifest(
        name="cli_demo", version="1.2", author="A. Author", license="MIT", params=Params,
        depends=("cli_base",), alias=("cli-alias",), binds=(uxk.Bind({"class": "block"}),),
    )
    def setup(self, ctx):
        ctx.log(f"depth {self.params.depth}", level=4)
'''


def _default_signals() -> None:
    """Whoever runs the tests in the background may have them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Shell:
    """Runs ``uxk`` as from a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "k.sock"
        path = os.pathsep.join((str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")))
        self.env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": ""}
        self.env.pop("UXK_SOCKET", None)

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Starts a command; the caller sees to its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "uxk", *words], env=self.env | env, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=_default_signals,
        )  # fmt: skip

    def run(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        with self.start(*words, **env) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def good(self, *words: str, **env: str) -> str:
        """The stdout of a command that must succeed and be silent on stderr."""
        code, out, err = self.run(*words, **env)
        assert (code, err) == (0, "")
        return out


class Booted(Shell):
    """With a kernel that runs in another process; verbs reach it through ``UXK_SOCKET``."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self.process = self.start("boot", "--socket", str(self.socket), *options)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.env["UXK_SOCKET"] = str(self.socket)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ends it; exit code and stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules ``cli_demo`` and ``cli_base`` as an installed package."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "uxk_cli_demo.py").write_text(DEMO)
    info = folder / "uxk_cli_demo-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uxk-cli-demo\nVersion: 1\n")
    names = "cli_demo = uxk_cli_demo:Demo\ncli_base = uxk_cli_demo:Base\n"
    (info / "entry_points.txt").write_text(f"[uxk.modules]\n{names}")
    return folder


@pytest.fixture
def shell(installed: Path) -> Shell:
    return Shell(installed)


@pytest.fixture
def booted(installed: Path) -> Iterator[Booted]:
    kernel = Booted(installed)
    try:
        assert kernel.line, kernel.process.communicate()
        yield kernel
    finally:
        if kernel.process.poll() is None:
            kernel.process.kill()
        kernel.process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_session(booted: Booted) -> None:
    """The verbs one after the other, as an administrator would use them."""
    assert booted.line == f"uxk: kernel booted, reach it with -k {booted.socket}\n"
    assert stat.S_IMODE(booted.socket.stat().st_mode) == 0o600
    assert booted.good("lsmod") == "Module                  Size  Used by\n"

    assert booted.good("modprobe", "cli-demo", "depth=16", "-k", str(booted.socket), "label=a b") == ""
    code, _, err = booted.run("modprobe", "cli_demo", "siez=3", "-k", str(booted.socket))
    assert (code, err) == (0, "# cli_demo: already loaded, parameters ignored\n")
    rows = json.loads(booted.good("lsmod", "--json"))
    assert [(row["name"], row["used_by"]) for row in rows] == [("cli_demo", []), ("cli_base", ["cli_demo"])]
    sizes = [f"{row['size_bytes']:>8}" for row in rows]
    assert booted.good("-k", str(booted.socket), "lsmod") == (
        "Module                  Size  Used by\n"
        f"cli_demo            {sizes[0]}  0\n"
        f"cli_base            {sizes[1]}  1 cli_demo\n"
    )

    depth = "/sys/module/cli_demo/parameters/depth"
    assert booted.good("cat", depth, "/sys/module/cli_demo/parameters/label") == "16\na b\n"
    assert booted.good("echo", "32", depth) == ""
    assert json.loads(booted.good("cat", "--json", depth)) == {depth: "32"}
    assert booted.good("ls", "/sys/module/cli_demo/parameters") == "depth\nlabel\nsize\n"
    assert booted.good("ls", "-l", depth) == "-rw-r--r--  4096 depth\n"
    assert booted.good("tree", "-v", "/sys/module/cli_demo/parameters") == (
        "/sys/module/cli_demo/parameters\n├── depth = 32\n├── label = a b\n└── size = 4096\n"
    )
    assert json.loads(booted.good("tree", "--json", "/sys/class"))["misc"]["cli_base0"]["link"].startswith("../")
    assert json.loads(booted.good("ls", "--json", "/sys/module"))[0]["name"] == "cli_base"

    logged = booted.good("dmesg", "-l", "warn")
    assert logged.startswith("[") and logged.endswith("] cli_demo: depth 16\n") and logged.count("\n") == 1
    (record,) = map(json.loads, booted.good("dmesg", "--level=warn", "--json").splitlines())
    assert (record["source"], record["level"], record["text"]) == ("cli_demo", "warning", "depth 16")

    assert booted.run("rmmod", "cli_base", "cli_nothing") == (
        1,
        "",
        "uxk: rmmod: cli_base is in use by: cli_demo [EBUSY]\n"  # noqa: ISC004
        "uxk: rmmod: 'cli_nothing' is not loaded [ENOENT]\n",
    )
    assert booted.good("modprobe", "-r", "cli_demo") == ""
    assert booted.good("lsmod").count("\n") == 1

    code, out, err = booted.run("cat", "/sys/absent", "/sys/kernel/seed")
    assert (code, out) == (1, "0\n") and err.startswith("uxk: cat: /sys/absent") and err.endswith("[ENOENT]\n")
    code, _, err = booted.run("echo", "1", "/sys/kernel/seed")
    assert code == 1 and "[EACCES]" in err
    code, _, err = booted.run("modprobe", "cli_demo", "depth=0")
    assert code == 1 and "depth='0'" in err and "[EINVAL]" in err

    assert booted.stop() == (0, "")
    assert not booted.socket.exists()


def test_modinfo_and_depmod_are_the_same_with_and_without_a_kernel(booted: Booted) -> None:
    for words in (("modinfo", "cli_demo"), ("modinfo", "cli_demo", "--json"), ("depmod",), ("depmod", "--json")):
        assert booted.good(*words) == booted.good(*words, UXK_SOCKET="")
    assert booted.good("modinfo", "-F", "parm", "cli_alias") == (
        "depth:queue depth [>= 1, <= 64, default 8, writable] (int)\n"
        "label: (str)\n"
        "size:capacity [in bytes, default 4096] (int)\n"
    )
    assert booted.good("modinfo", "cli_demo").startswith(
        f"filename:       {booted.folder}/uxk_cli_demo.py\nversion:        1.2\nlicense:        MIT\n"
    )
    assert "\ncli_demo: cli_base\n" in "\n" + booted.good("depmod")


def test_dmesg_follow_streams_until_the_kernel_shuts_down(booted: Booted) -> None:
    with booted.start("dmesg", "-w") as follower, booted.start("dmesg", "--follow", "--json") as second:
        assert "kernel: booted" in line_of(follower)
        while "listening" not in line_of(follower):
            pass
        booted.good("modprobe", "cli_base")
        assert "cli_base: device" in line_of(follower)
        while json.loads(line_of(second))["source"] != "cli_base":
            pass
        booted.stop()
        for process in (follower, second):
            _, err = process.communicate(timeout=120)
            assert (process.returncode, err) == (0, "")


def test_a_follower_that_goes_away_does_not_matter(booted: Booted) -> None:
    with booted.start("dmesg", "-w") as follower:
        line_of(follower)
        follower.kill()
    with booted.start("dmesg", "-w") as follower:
        line_of(follower)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=120) == 130
    assert booted.good("cat", "/sys/kernel/seed") == "0\n"


def test_a_reader_that_has_seen_enough(booted: Booted) -> None:
    """Like ``uxk dmesg -w | head -1``: no traceback."""
    with booted.start("dmesg", "-w") as follower:
        line_of(follower)
        assert follower.stdout is not None and follower.stderr is not None
        follower.stdout.close()
        for number in range(3):
            booted.good("modprobe", "cli_base", "-i", f"b{number}")
        assert follower.wait(timeout=120) == 1
        assert follower.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_shut_down_cleanly(booted: Booted, number: signal.Signals) -> None:
    assert booted.stop(number) == (0, "")
    assert not booted.socket.exists()


def test_a_second_signal_ends_a_kernel_that_hangs(booted: Booted) -> None:
    file = booted.folder / "hang.py"
    file.write_text(
        "import uxk\nclass H(uxk.Extension):\n    manifest = uxk.Manifest(name='hang')\n"
        "    def setup(self, ctx):\n        print('hanging', flush=True)\n        while True:\n            pass\n"
    )
    with booted.start("insmod", str(file)) as loader:
        assert line_of(booted.process) == "hanging\n"
        for _ in range(600):
            booted.process.send_signal(signal.SIGINT)
            try:
                booted.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        # The module is interrupted, or the kernel, or an interpreter that is done already.
        assert booted.process.returncode in (0, 130, -signal.SIGINT)
        assert loader.wait(timeout=120) == 1


def test_one_socket_one_kernel(booted: Booted) -> None:
    code, out, err = booted.run("boot", "--socket", str(booted.socket))
    assert (code, out) == (1, "") and err.endswith("a kernel listens there already [EADDRINUSE]\n")
    booted.process.kill()
    booted.process.wait()
    code, _, err = booted.run("lsmod")
    assert code == 1 and "[ECONNREFUSED]" in err
    again = Booted(booted.folder)
    assert again.line and again.stop() == (0, "")


def test_boot_options(installed: Path) -> None:
    conf = installed / "modprobe.d"
    conf.mkdir(exist_ok=True)
    (conf / "demo.conf").write_text("options cli_demo depth=3\n")
    options = ("--seed", "9", "--clock", "virtual", "--modprobe-d", str(conf), "--load", "cli_demo", "--json")
    booted = Booted(installed, options)
    assert json.loads(booted.line) == {"socket": str(booted.socket), "pid": booted.process.pid}
    paths = ("/sys/kernel/seed", "/sys/kernel/clock", "/sys/module/cli_demo/parameters/depth", "/sys/kernel/now_ns")
    assert booted.good("cat", *paths) == "9\nvirtual\n3\n0\n"
    assert booted.stop() == (0, "")


def test_boot_fails_if_a_module_does(shell: Shell) -> None:
    code, out, err = shell.run("boot", "--socket", str(shell.socket), "--load", "cli_nothing")
    assert (code, out) == (1, "") and "no module or alias 'cli_nothing'" in err and "Traceback" not in err
    assert not shell.socket.exists()


def test_the_arena_is_as_large_as_boot_is_told(shell: Shell) -> None:
    code, out, err = shell.run("boot", "--socket", str(shell.socket), "--arena", "64KiB", "--load", "cli_demo")
    assert (code, out) == (1, "") and "65536 of 65536 bytes are left to grant (the size of the arena is set" in err
    for text, why in (("5", "a positive multiple of 4096 bytes"), ("0", "multiple"), ("much", "for example '4GiB'")):
        code, _, err = shell.run("boot", "--arena", text)
        assert code == 2 and why in err, err


def test_without_a_kernel(shell: Shell) -> None:
    code, out, err = shell.run("lsmod")
    assert code == 0 and "can be loaded" in err and err.startswith("# ")
    assert "cli_demo             1048576  0" in out.splitlines()
    code, out, err = shell.run("modprobe", "cli_demo", "depth=2")
    assert code == 0 and "throw-away" in err
    assert "cli_demo: depth 2" in out and "cli_base: loaded" in out and "cli_demo: unloaded" in out


def test_help_and_version_import_no_kernel(shell: Shell) -> None:
    for word in ("--help", "--version", "lsmod -h"):
        code, _, err = shell.run(*word.split(), PYTHONPROFILEIMPORTTIME="1")
        assert code == 0
        imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
        assert "uxk.cli" in imported and not imported & {"trio", "numpy", "uxk.kernel", "river"}


def test_a_terminal_without_utf8(booted: Booted) -> None:
    out = booted.good("tree", "/sys/kernel", PYTHONIOENCODING="ascii")
    assert "\\u251c\\u2500\\u2500 clock" in out
