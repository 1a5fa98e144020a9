"""Objects that clang built: what they become, what is refused, and that damaged ones raise nothing but ``BpfError``."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.bpf import elf
from uxk.bpf.errors import BpfError
from uxk.bpf.program import Program
from uxk.bpf.proto import body
from uxk.cli import main

CLANG = shutil.which("clang")
needs_clang = pytest.mark.skipif(CLANG is None, reason="there is no clang")
HEAD = """
typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(n) __attribute__((section(n), used))
#define __uint(n, v) int (*n)[v]
#define __type(n, v) typeof(v) *n
static void *(*lookup)(void *, const void *) = (void *)1;
static long (*update)(void *, const void *, const void *, u64) = (void *)2;
static long (*output)(void *, void *, u64, u64) = (void *)130;
"""
WHOLE = """
struct { __uint(type, 2); __uint(max_entries, 4); __type(key, u32); __type(value, u64); } counts SEC(".maps");
struct pair { u32 a[3]; u32 b; };
struct { __uint(type, 1); __uint(max_entries, 9); __type(key, struct pair); __type(value, u64[2]); } seen SEC(".maps");
struct { __uint(type, 27); __uint(max_entries, 4096); } ring SEC(".maps");
struct { __uint(type, 6); __uint(max_entries, 2); __type(key, u32); __type(value, u64); } each SEC(".maps");
struct { __uint(type, 33); __uint(max_entries, 16); } arena SEC(".maps");
static const long weights[3] = {3, -2, 7};
long bias = 5;
long runs;
__attribute__((noinline)) static long scaled(const long *f, int n) { return f[n] * weights[n]; }
__attribute__((noinline)) static long dot(const long *f) { return scaled(f, 0) + scaled(f, 1) + scaled(f, 2); }
SEC("uxk/decide") long decide(const long *f, u64 n) {
    u32 k = 1; u64 *c = lookup(&counts, &k); if (c) *c += 1;
    u64 *d = lookup(&each, &k); if (d) *d += 1;
    struct pair p = {{1, 2, 3}, 4}; u64 v[2] = {f[0], 8}; update(&seen, &p, v, 0);
    u64 record = runs; output(&ring, &record, 8, 0);
    runs++;
    return dot(f) + bias + weights[f[0] & 1];
}
SEC("uxk/other") long other(const long *f, u64 n) { return f[1] + (long)n; }
SEC("uxk/arena") long far(const long *f, u64 n) { void *volatile a = &arena; return 0; }
"""


def compile_c(folder: Path, text: str, *flags: str) -> bytes:
    """An object.  The tests that use it are skipped where there is no clang."""
    source, built = folder / "a.c", folder / "a.o"
    source.write_text(HEAD + text)
    assert CLANG
    subprocess.run([CLANG, "-target", "bpf", "-O2", "-g", *flags, "-c", source, "-o", built], check=True, timeout=60)
    return built.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if CLANG is None:
        pytest.skip("there is no clang")
    return compile_c(tmp_path_factory.mktemp("c"), WHOLE, "-mcpu=v3")


def _fields(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def test_calls_maps_and_variables_are_linked(whole: bytes) -> None:
    loaded = elf.load(whole, "uxk/decide")
    assert (loaded.section, loaded.function) == ("uxk/decide", "decide")
    program = Program(loaded.code, body(24), maps=loaded.maps)
    maps: dict[str, Any] = {each.name: each for each in loaded.maps.values()}
    for run in (program.run, program.interpret):
        assert run(_fields(5, 1, 2)) == 5 * 3 - 2 + 7 * 2 + 5 - 2
    assert maps["counts"][1] == maps["each"][1] == maps[".bss"][0] == _fields(2)
    assert maps["seen"][struct.pack("<4I", 1, 2, 3, 4)] == _fields(5, 8)
    assert maps["ring"].drain() == [_fields(0), _fields(1)]
    assert maps[".data"][0] == _fields(5)
    assert maps[".rodata"].read_only
    maps[".data"][0] = _fields(1005)
    assert program.run(_fields(5, 1, 2)) == 1030


def test_a_program_is_chosen_by_section_or_function(whole: bytes) -> None:
    for name in ("uxk/other", "other"):
        loaded = elf.load(whole, name)
        assert Program(loaded.code, body(24), maps=loaded.maps).run(_fields(0, 9, 0)) == 33
        assert not loaded.maps, "what is not used is not there"
    assert [m.kind for m in elf.load(whole, "far").maps.values()] == ["arena"]
    with pytest.raises(BpfError, match="3 programs; expected a section or a function to be named"):
        elf.load(whole)
    with pytest.raises(BpfError, match=r"'decid' .did you mean 'decide'"):
        elf.load(whole, "decid")


@needs_clang
@pytest.mark.parametrize("cpu", ["v1", "v2", "v3"])
def test_every_cpu_and_optimisation(tmp_path: Path, cpu: str) -> None:
    for level in ("-O1", "-O2", "-Os"):
        loaded = elf.load(compile_c(tmp_path, WHOLE, f"-mcpu={cpu}", level), "decide")
        program = Program(loaded.code, body(24), maps=loaded.maps)
        assert program.run(_fields(4, 3, -2)) == program.interpret(_fields(4, 3, -2)) == 12 - 6 - 14 + 5 + 3


@needs_clang
def test_legacy_maps_and_a_license(tmp_path: Path) -> None:
    text = """
    struct bpf_map_def { u32 type, key_size, value_size, max_entries, map_flags; };
    struct bpf_map_def SEC("maps") first = {1, 4, 8, 3, 0};
    struct bpf_map_def SEC("maps") second = {2, 4, 16, 2, 0};
    char _license[] SEC("license") = "GPL";
    long decide(const long *f, u64 n) { u32 k = 1; u64 *v = lookup(&second, &k); return v ? v[1] + 1 : -1; }
    """
    loaded = elf.load(compile_c(tmp_path, text))
    (found,) = loaded.maps.values()
    assert (found.name, found.kind, found.value_bytes, found.max_entries) == ("second", "array", 16, 2)
    assert loaded.license == "GPL"
    assert Program(loaded.code, body(8), maps=loaded.maps).run(bytes(8)) == 1


@needs_clang
def test_functions_outside_of_the_object_are_kfuncs_or_missing(tmp_path: Path) -> None:
    text = (
        'extern long ask(long) __attribute__((section(".ksyms")));\nlong decide(const long *f) { return ask(f[0]); }\n'
    )
    data = compile_c(tmp_path, text)
    with pytest.raises(BpfError, match=r"calls 'ask', which is not in the object"):
        elf.load(data)
    assert bytes.fromhex("8520000007000000") in elf.load(data, kfuncs={"ask": 7}).code


MAP = 'struct { __uint(type, %s); __uint(max_entries, 4); __type(key, %s); __type(value, u64); } m SEC(".maps");\n'
LOOKS = "long decide(const long *f) { u32 k[4] = {}; return (long)!lookup(&m, k); }"
REFUSED = {
    "an unknown kind": (MAP % (7, "u32") + LOOKS, "map 'm': of kind 7; expected one of 1 .hash., 2 .array."),
    "keys of an array": (MAP % (2, "u64") + LOOKS, "keys of 8 bytes; an array's have 4"),
    "an attribute": ("struct { __uint(type, 2); __uint(numa, 3); } m SEC(\".maps\");" + LOOKS, "attribute 'numa' is"),
    "a huge map": ((MAP % (1, "u32")).replace(", 4)", ", 0x7fffffff)") + LOOKS, "at most 64 maps and 67108864 bytes"),
    "an array of maps": (
        "struct { __uint(type, 12); __type(key, u32); int *values[]; } m SEC(\".maps\");" + LOOKS,
        "attribute 'values' is not supported",
    ),
    "a pointer to a function": (
        "static long g(void *a) { return 1; } long decide(const long *f) { return (long)lookup(&g, 0); }",
        "takes the address of a function",
    ),
    "addresses in data": (
        "long a; long *p = &a; long decide(const long *f) { return *p; }", "holds addresses, which are not supported",
    ),
    "no such variable": ("extern long other; long decide(const long *f) { return other; }", "'other', which is not in"),
}  # fmt: skip


@needs_clang
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_clearly(tmp_path: Path, name: str) -> None:
    text, reason = REFUSED[name]
    data = compile_c(tmp_path, text)
    with pytest.raises(BpfError, match=reason):
        elf.load(data)


@needs_clang
def test_maps_need_their_types(tmp_path: Path) -> None:
    data = compile_c(tmp_path, MAP % (1, "u32") + LOOKS, "-g0")
    with pytest.raises(BpfError, match=r"\.BTF, which is missing; compile with -g"):
        elf.load(data)


@needs_clang
def test_constants_are_not_written(tmp_path: Path) -> None:
    text = "static const volatile long c = 4; long decide(const long *f) { *(volatile long *)&c = 3; return c; }"
    loaded = elf.load(compile_c(tmp_path, text))
    with pytest.raises(BpfError, match="read-only"):
        Program(loaded.code, body(8), maps=loaded.maps)


@needs_clang
def test_objects_for_others_are_refused(tmp_path: Path) -> None:
    assert CLANG
    (tmp_path / "a.c").write_text("int f(void) { return 1; }\n")
    subprocess.run([CLANG, "-c", tmp_path / "a.c", "-o", tmp_path / "a.o"], check=True, timeout=60)
    with pytest.raises(BpfError, match="expected what `clang -target bpf -c` builds"):
        elf.load((tmp_path / "a.o").read_bytes())


def _try(data: bytes, section: str) -> bool:
    """Loads and verifies; whatever is wrong is a ``BpfError``."""
    try:
        loaded = elf.load(data, section)
        Program(loaded.code, body(24)._replace(insns_max=5000), maps=loaded.maps)
    except BpfError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 1 << 14),
)
def test_damaged_objects_raise_nothing_else(whole: bytes, flips: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(whole)
    for at, value in flips:
        data[at % len(data)] = value
    _try(bytes(data[:cut]), "decide")


def test_every_byte_of_the_tables_may_be_anything(whole: bytes) -> None:
    """Headers of the file and of the sections, symbols, relocations and BTF: one byte of each after another."""
    import io

    from elftools.elf.elffile import ELFFile

    parsed, rng = ELFFile(io.BytesIO(whole)), Random(4)
    start = parsed["e_shoff"]
    places = [*range(64), *range(start, len(whole))]
    for section in parsed.iter_sections():
        if section.name in (".symtab", ".BTF", ".reluxk/decide", "uxk/decide"):
            places += range(section["sh_offset"], section["sh_offset"] + section["sh_size"])
    good = 0
    for at in rng.sample(places, 500):
        data = bytearray(whole)
        data[at] ^= rng.randrange(1, 256)
        good += _try(bytes(data), "decide")
    assert 0 < good < 500


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_object(data: bytes) -> None:
    for prefix in (b"", elf.MAGIC, elf.MAGIC + b"\x02\x01\x01" + bytes(9) + b"\x01\x00\xf7\x00"):
        with pytest.raises(BpfError):
            elf.load(prefix + data)


def test_command_line_takes_objects(whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.o"
    path.write_bytes(whole)
    assert main(["bpf", "run", str(path), "--section", "other", "-m", "0x" + _fields(0, 9, 0).hex()]) == 0
    assert capsys.readouterr().out == "33\n"
    assert main(["bpf", "verify", str(path), "--section", "decide", "-m", "24"]) == 0
    assert capsys.readouterr().out.startswith("safe: ")
    assert main(["bpf", "dis", str(path), "--section", "scaled"]) == 0
    assert "exit" in capsys.readouterr().out
    assert main(["bpf", "run", str(path), "-m", "24"]) == 1
    assert "3 programs" in capsys.readouterr().err
