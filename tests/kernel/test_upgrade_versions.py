"""What an upgrade may be to: files, packages, versions that can be found; what comes to nothing leaves nothing."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.errors import ModuleError, NoSuchModule, UpgradeError
from uxk.kernel.versions import is_path, versions_in
from uxk.module import declared, versions
from uxk.uapi.manifest import Placement

FILE = """
import uxk

class Shelf(uxk.Extension):
    manifest = uxk.Manifest(name="shelf", version="VERSION")

    def setup(self, ctx):
        FAILS

    def on_batch(self, ctx, requests):
        for request in requests:
            ctx.complete(request, b"VERSION")
"""
PACKAGE = {
    "__init__.py": "from .driver import Shelf as Shelf\n",
    "answers.py": "ANSWER = b'VERSION'\n",
    "deep/__init__.py": "",
    "deep/more.py": "from ..answers import ANSWER\n",
    "driver.py": """
import uxk
from .deep.more import ANSWER

class Shelf(uxk.Extension):
    manifest = uxk.Manifest(name="shelf", version="VERSION")

    def on_batch(self, ctx, requests):
        from . import answers  # as late as can be
        for request in requests:
            ctx.complete(request, answers.ANSWER)
""",
}


def write(path: Path, version: str, fails: str = "pass") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILE.replace("VERSION", version).replace("FAILS", fails))
    return path


def package(folder: Path, version: str) -> Path:
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("VERSION", version))
    return folder


async def answer(module: uxk.Module) -> str:
    return (await module.submit()).payload.decode()


@pytest.fixture(autouse=True)
def alone() -> None:
    """Without what other tests have defined."""
    for key in [key for key in versions if key[0] == "shelf"]:
        del versions[key]
    declared.pop("shelf", None)


def ours() -> set[str]:
    return {name for name in sys.modules if name.startswith("uxk_insmod_shelf")}


@pytest.mark.parametrize("placement", ["task", "process"])
async def test_packages(placement: Placement, tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(write(tmp_path / "shelf.py", "1"), placement=placement)
        for number, version in enumerate(("2", "3")):
            await kernel.upgrade("shelf", f"{package(tmp_path / str(number) / 'shelf', version)}/")
            assert await answer(module) == version == kernel.modinfo("shelf").version
        await kernel.upgrade("shelf", "2")
        assert await answer(module) == "2", "each has its own modules"


async def test_nothing_is_left_of_what_came_to_nothing(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(write(tmp_path / "shelf.py", "1"))
        before, cls = ours(), kernel.agents["shelf"].extension_class
        with pytest.raises(UpgradeError, match="rolled back: 2: ValueError in setup"):
            await kernel.upgrade("shelf", write(tmp_path / "new/shelf.py", "2", "raise ValueError"))
        with pytest.raises(ModuleError, match="SyntaxError"):
            await kernel.upgrade("shelf", write(tmp_path / "bad/shelf.py", "2", "+"))
        with pytest.raises(uxk.ParamError):
            await kernel.upgrade("shelf", write(tmp_path / "new/shelf.py", "3"), none=1)
        broken = package(tmp_path / "broken", "4")
        (broken / "answers.py").write_text("ANSWER = 1 // 0")
        with pytest.raises(ModuleError, match=r"answers.py:1: ZeroDivisionError"):
            await kernel.upgrade("shelf", broken)
        (tmp_path / "empty").mkdir()
        with pytest.raises(NoSuchModule, match=r"no file '.*empty/__init__.py'"):
            await kernel.upgrade("shelf", tmp_path / "empty")
        assert ours() == before and not any(name.startswith("uxk_insmod_broken") for name in sys.modules)
        assert declared["shelf"] is cls and versions["shelf", "1"] is cls and ("shelf", "2") not in versions
        assert await answer(module) == "1"


async def test_a_new_build_is_not_found_before_it_is_confirmed(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(write(tmp_path / "shelf.py", "1"))
        seen: list[str] = []
        kernel.call_at_ns(1_000_000, lambda _: seen.append(kernel.modinfo("shelf").version))
        await kernel.upgrade("shelf", write(tmp_path / "new/shelf.py", "2"))
        assert seen == ["1"] and kernel.modinfo("shelf").version == "2"


async def test_versions_beside_the_modprobe_d_files(tmp_path: Path) -> None:
    folder = tmp_path / "modprobe.d"
    write(folder / "shelf2.py", "2")
    write(folder / "old.py", "0.9")
    package(folder / "shelf_package", "3")
    (folder / "lies.py").write_text(FILE.replace("VERSION", "5").replace("FAILS", "pass").replace(
        'version="5"', 'version="5" if True else "4"'))  # fmt: skip
    (folder / "broken.py").write_text("class (")
    (folder / "shelf.conf").write_text("options other size=1\n")
    async with uxk.Kernel(modprobe_d=folder) as kernel:
        module = await kernel.insmod(write(tmp_path / "shelf.py", "1"))
        with pytest.raises(NoSuchModule) as error:
            await kernel.upgrade("shelf", "4")
        for what in ("no version '4' of shelf", "0.9 (", "1 (it runs)", "shelf2.py)", "3 (", "shelf_package)"):
            assert what in str(error.value)
        for version in ("2", "3", "0.9", "3"):
            await kernel.upgrade("shelf", version)
            assert await answer(module) == version


async def test_versions_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version is installed over the one that runs: the interpreter has the old one still."""
    package(tmp_path / "shelf_installed", "1")
    point = importlib.metadata.EntryPoint("shelf", "shelf_installed:Shelf", "uxk.modules")
    real = importlib.metadata.entry_points

    def found(**wanted: Any) -> Any:
        return [*real(**wanted), point]

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(point.load())
        package(tmp_path / "shelf_installed", "2")
        await kernel.upgrade("shelf", "2")
        assert await answer(module) == "2"
        await kernel.upgrade("shelf", "1")
        assert await answer(module) == "1"


async def test_versions_that_are_built() -> None:
    class Constants(uxk.Params):
        grade: int = 1

    class Plain(uxk.Extension):
        manifest = uxk.Manifest(name="shelf", version="plain")

    def bake(constants: Constants) -> type[uxk.Extension]:
        return type("Baked", (Plain,), {"manifest": uxk.Manifest(name="shelf", version=f"grade-{constants.grade}")})

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Plain)
        with pytest.raises(NoSuchModule, match="no version 'grade-1' of shelf"):
            await kernel.upgrade("shelf", "grade-1")
        kernel.builds.offer("shelf", bake, Constants)
        await kernel.upgrade("shelf", "grade-1")
        assert kernel.agents["shelf"].manifest.version == "grade-1"


def test_what_a_text_says(tmp_path: Path) -> None:
    file = tmp_path / "many.py"
    file.write_text(
        "m = Manifest(name='a-b', version='1')\nuxk.Manifest(name='a_b')\nManifest(name='c', version='2')\n"
        "Manifest(name='a_b', version=V)\nOther(name='a_b', version='3')\nManifest(name=NAME)\n"
    )
    assert sorted(versions_in(file, "a_b")) == ["0", "1"] and versions_in(file, "c") == ["2"]
    toml = tmp_path / "a.toml"
    toml.write_text('name = "a-b"\nversion = "7"\nexec = ["true"]\n')
    assert versions_in(toml, "a_b") == ["7"] and versions_in(toml, "c") == []
    assert versions_in(tmp_path, "a_b") == [] and versions_in(tmp_path / "none.py", "a_b") == []
    assert [is_path(to) for to in ("1.0", "x.py", "./x", "d/", "2.toml")] == [False, True, True, True, True]
