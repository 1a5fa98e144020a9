"""The wheel holds every module, nothing else, and works where nothing but the wheel is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULE_FOLDERS = ("drivers", "extensions")


def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def entry_points() -> dict[str, str]:
    """Module name to ``package:class``, as pyproject.toml declares them."""
    declared: dict[str, str] = pyproject()["project"]["entry-points"]["uxk.modules"]
    return declared


def module_packages() -> list[str]:
    """The packages under drivers/ and extensions/, as paths from the root."""
    found = [path for folder in MODULE_FOLDERS for path in (ROOT / folder).glob("*/__init__.py")]
    return sorted(path.parent.relative_to(ROOT).as_posix() for path in found)


def test_folders_packages_and_entry_points_agree() -> None:
    packages = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["uxk", *module_packages()]), "folders and [tool.hatch...wheel] packages differ"

    modules = [value.split(":")[0] for value in entry_points().values()]
    assert sorted(modules) == sorted(Path(package).name for package in module_packages()), "entry points differ"
    for package in module_packages():
        assert Path(package).name.startswith("uxk_"), f"{package}: a module's package is called uxk_<name>"


def test_typed_markers_and_licence() -> None:
    for package in ("uxk", *module_packages()):
        assert (ROOT / package / "py.typed").is_file(), f"{package}/py.typed is missing"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command without this checkout on its path and returns what it prints."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_contents(wheel: Path) -> None:
    """Every source file, stub marker and licence, and no test."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {"uxk": ROOT / "uxk"} | {Path(p).name: ROOT / p for p in module_packages()}
    wanted = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in expected.items()
        for path in (*folder.rglob("*.py"), *folder.rglob("py.typed"))
    }
    tests = {name for name in wanted if "/tests/" in name}
    assert wanted - tests <= names, f"not in the wheel: {sorted(wanted - tests - names)}"
    assert not tests & names, f"tests in the wheel: {sorted(tests & names)}"
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(expected), "the wheel installs other top-level names"
    assert any(name.endswith("/licenses/LICENSE") for name in names)


NAMES_IN_MANIFESTS = """
from importlib.metadata import entry_points
print(*sorted(point.load().manifest.name for point in entry_points(group="uxk.modules")))
"""


def empty_environment(folder: Path) -> Path:
    """A virtual environment with our dependencies but not our project; returns its bin folder.

    The dependencies are those of the running interpreter, through a .pth file: installing them anew takes minutes.
    A .pth file inside that folder, such as an editable install's, is not read from there.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    binaries = folder / "bin"
    site = run(binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    ours = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (Path(site) / "dependencies.pth").write_text("\n".join(ours) + "\n", "utf-8")
    return binaries


def test_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    run(*build, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    check_contents(wheel)

    binaries = empty_environment(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--no-compile", wheel, cwd=tmp_path)

    away = tmp_path / "elsewhere"
    away.mkdir()
    origin = run(binaries / "python", "-c", "import uxk; print(uxk.__file__)", cwd=away).strip()
    assert Path(origin).is_relative_to(tmp_path / "venv"), "uxk was imported from outside the wheel"
    named = run(binaries / "python", "-c", NAMES_IN_MANIFESTS, cwd=away).split()
    assert named == sorted(entry_points()), "an entry point is called otherwise than its manifest"
    # A module's row begins with its name.
    listed = {line.split()[0] for line in run(binaries / "uxk", "lsmod", cwd=away).splitlines() if line.split()}
    assert set(named) <= listed, f"`uxk lsmod` lists {sorted(listed)}"
