"""What a manifest's sandbox becomes with the parameters of an instance, and what may not stand in one."""

from __future__ import annotations

import pytest

from uxk.core.confine import PATHS_MAX, allowed, sandbox_texts
from uxk.core.manifest import manifest_problems
from uxk.uapi.manifest import Manifest, Params, Sandbox


class DiskParams(Params):
    backing: str = "ram"
    unix: str = ""
    size: int = 1


def manifest(**sandbox: object) -> Manifest:
    return Manifest(name="disk", params=DiskParams, sandbox=Sandbox(**sandbox))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "given", "path"),
    [
        ("/srv/data", {}, "/srv/data"),
        ("{unix}", {"unix": "/run/a.sock"}, "/run/a.sock"),
        ("{unix}", {"unix": "a.sock"}, "/home/me/a.sock"),
        ("{unix}/..", {"unix": "run/a.sock"}, "/home/me/run"),
        ("{unix}", {}, None),
        ("{unix}/..", {}, None),
        ("{backing:file}", {"backing": "file:/dev/sdb"}, "/dev/sdb"),
        ("{backing:file}", {"backing": "sparse:/dev/sdb"}, None),
        ("{backing:file}", {"backing": "ram"}, None),
        ("{backing:file}", {"backing": "file:"}, None),
        ("/var/lib/{unix}/x", {"unix": "../../etc"}, "/etc/x"),  # the parameter is the administrator's word
        ("{unix}", {"unix": "a\0b"}, None),
    ],
)
def test_paths_follow_the_parameters(template: str, given: dict[str, str], path: str | None) -> None:
    paths = () if path is None else (path,)
    found = allowed(manifest(read=(template,), write=(template,), network=True), DiskParams(**given), "/home/me")
    assert found == Sandbox(read=paths, write=paths, network=True)


@pytest.mark.parametrize(
    ("sandbox", "problem"),
    [
        ({"read": ("data",)}, "sandbox.read: 'data': expected an absolute path, or a parameter in braces"),
        ({"write": ("/a\0b",)}, r"sandbox.write: '/a\x00b': expected an absolute path, or a parameter in braces"),
        ({"read": ("{unis}",)}, "sandbox.read: '{unis}': 'unis' is no parameter (did you mean 'unix'?"),
        ({"write": ("{backing:file}", "{back:file}")}, "sandbox.write: '{back:file}': 'back' is no parameter"),
        ({"read": ("/x",) * (PATHS_MAX + 1)}, f"sandbox.read: {PATHS_MAX + 1} entries; at most {PATHS_MAX}"),
        ({"memory_bytes": 0}, f"sandbox.memory_bytes is 0, expected 1 to {2**63 - 1}"),
        ({"files": 1}, "sandbox.files is 1, expected 16 to 1024"),
        ({"files": 1 << 20}, "sandbox.files is 1048576, expected 16 to 1024"),
        ({"network": 1}, "sandbox: Expected `bool`, got `int` - at `$.network`"),
    ],
)
def test_what_cannot_be_is_said(sandbox: dict[str, object], problem: str) -> None:
    assert [found[: len(problem)] for found in manifest_problems(manifest(**sandbox))] == [problem]


def test_what_is_asked_for_is_shown() -> None:
    asked = Sandbox(network=True, read=("{unix}", "/etc/disk"), files=99)
    assert list(sandbox_texts(asked)) == ["files 99", "network", "read {unix}", "read /etc/disk"]
    assert list(sandbox_texts(Sandbox())) == []


def test_what_asks_for_nothing_is_fine() -> None:
    assert manifest_problems(manifest()) == []
