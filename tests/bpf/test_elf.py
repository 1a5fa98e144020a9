"""Objects that clang built: what they become, what is refused, and that damaged ones raise nothing but ``BpfError``."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linux_objects import by_bpftool

from uxk.bpf import btf, elf, objects
from uxk.bpf.errors import BpfError
from uxk.bpf.export import export
from uxk.bpf.insn import s32
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


BESIDE = """
struct xdp_md { u32 data, data_end; };
SEC("xdp") int entry(struct xdp_md *context)
{
    const unsigned char *data = (void *)(long)context->data;
    u64 fields[3];

    if (data + sizeof(fields) > (unsigned char *)(long)context->data_end)
        return 2;
    __builtin_memcpy(fields, data, sizeof(fields));
    return judged((const long *)fields, sizeof(fields));
}
char _license[] SEC("license") = "GPL";
"""


@needs_clang
@pytest.mark.parametrize("flags", [("-O2", "-mcpu=v1"), ("-Os", "-mcpu=v2"), ("-O2", "-mcpu=v3"), ("-O1", "-mcpu=v3")])
def test_linux_decides_the_same_on_what_clang_built(
    linux: ModuleType, folder: Path, tmp_path: Path, flags: tuple[str, str]
) -> None:
    """The object as it is, linked by libbpf, beside what uxk makes of the function in it, and its export."""
    text = WHOLE[: WHOLE.index('SEC("uxk/other")')].replace(
        'SEC("uxk/decide") long decide', "__attribute__((noinline)) static long judged"
    )
    text = text.replace('struct { __uint(type, 33); __uint(max_entries, 16); } arena SEC(".maps");', "")
    data = compile_c(tmp_path, text + BESIDE, *flags)
    there = by_bpftool(linux, folder, data)
    loaded, again = elf.load(data, "judged"), elf.load(data, "judged")
    program = Program(loaded.code, body(24), maps=loaded.maps)
    exported = by_bpftool(linux, folder, export(Program(again.code, body(24), maps=again.maps)))
    rng = Random("beside")
    for _ in range(2_000):
        fields = [rng.choice((rng.randrange(-9, 9), rng.randrange(-(1 << 63), 1 << 63))) for _ in range(3)]
        memory = _fields(*fields)
        expected = s32(program.run(memory))
        assert linux.run_packet(there, memory) == linux.run_packet(exported, memory) == expected
    for descriptor in (there, exported):
        os.close(descriptor)


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


# --- objects made to do harm ---


def _put(data: bytes, *edits: tuple[int, str, int]) -> bytes:
    """With numbers at places; ``edits``: place, format, number."""
    out = bytearray(data)
    for at, form, number in edits:
        struct.pack_into(f"<{form}", out, at, number)
    return bytes(out)


def _headers(data: bytes) -> dict[str, int]:
    """Where the headers of the sections are, by name."""
    import io

    from elftools.elf.elffile import ELFFile

    parsed = ELFFile(io.BytesIO(data))
    return {each.name: parsed["e_shoff"] + 64 * number for number, each in enumerate(parsed.iter_sections())}


SHOFF, ENTSIZE, SHNUM, SHSTRNDX = 40, 58, 60, 62
NAME, KIND, OFFSET, SIZE, LINK, INFO, ENTRY = 0, 4, 24, 32, 40, 44, 56
"""Fields of the file's header, and of a section's."""
HARM: dict[str, tuple[str, list[tuple[int, str, int]], str]] = {
    "big-endian": ("", [(5, "B", 2)], "expected what"),
    "32 bits": ("", [(4, "B", 1)], "expected what|not an ELF file"),
    "no sections": ("", [(SHNUM, "H", 0)], "no section or function"),
    "too many sections": ("", [(SHNUM, "H", 0xFEFF)], "65279 sections; at most 4096"),
    "sections beyond the file": ("", [(SHNUM, "H", 4096)], r"sections at \d+..\d+, 64 bytes each; expected"),
    "sections far away": ("", [(SHOFF, "Q", 1 << 62)], r"not an ELF file|sections at"),
    "narrow headers": ("", [(ENTSIZE, "H", 8)], "8 bytes each; expected 64|not an ELF file"),
    "no width": ("", [(ENTSIZE, "H", 0)], "0 bytes each; expected 64|not an ELF file"),
    "names out of themselves": ("", [(SHSTRNDX, "H", 0xFFFF)], "not an ELF file|refers to section ''"),
    "a negative offset": (".text", [(OFFSET, "Q", (1 << 64) - 8)], "not an ELF file|has 0 of its"),
    "a huge section": (".text", [(SIZE, "Q", 1 << 62)], "bytes; at most 16777216"),
    "a section beyond the file": (".text", [(SIZE, "Q", 1 << 23)], r"has \d+ of its 8388608 bytes"),
    "symbols named by symbols": (".symtab", [(LINK, "I", 0)], "not an ELF file|no section or function|a name"),
    "symbols of themselves": (".symtab", [(LINK, "I", 7)], "not an ELF file|no section or function|a name"),
    "long symbols": (".symtab", [(ENTRY, "Q", 12)], "bytes of entries of 12; expected at most 65536 of 24"),
    "too many symbols": (".symtab", [(SIZE, "Q", 24 << 36)], "expected at most 65536 of 24"),
    "relocations of all": (".reluxk/decide", [(SIZE, "Q", 1 << 40)], "expected at most 65536 of 16"),
    "no relocations": (".reluxk/decide", [(KIND, "I", 1)], "where no function begins|by number; expected a"),
    "relocations of another": (".reluxk/decide", [(INFO, "I", 2)], "where no function begins|by number|a relocation"),
    "two tables": (".BTF", [(KIND, "I", 2)], "two symbol tables"),
    "no types": (".BTF", [(KIND, "I", 3)], "which is missing; compile with -g"),
    "others' types": (".BTF", [(OFFSET, "Q", 0)], r"\.BTF: begins with 0x457f"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(whole: bytes, name: str) -> None:
    section, edits, reason = HARM[name]
    start = _headers(whole)[section] if section else 0
    with pytest.raises(BpfError, match=reason):
        elf.load(_put(whole, *((start + at, form, number) for at, form, number in edits)), "decide")


def test_truncated_anywhere(whole: bytes) -> None:
    for size_bytes in range(0, len(whole), 61):
        with pytest.raises(BpfError):
            elf.load(whole[:size_bytes], "decide")


def test_tables_on_top_of_each_other_take_no_longer() -> None:
    """Thousands of sections that share their bytes: relocations, names, and bytes are counted over all of them."""
    text = objects.Section(".text", bytes.fromhex("b7000000010000009500000000000000"), 6)
    function = objects.Symbol("decide", ".text", objects.FUNC, 0, 16, True)
    for kind, size_bytes, reason in (
        (objects.REL, 1 << 20, "more than 262144 relocations"),
        (objects.PROGBITS, 1 << 20, "sections of more than 33554432 bytes together"),
        (5, 1 << 20, ""),  # hash tables: pyelftools would read each
        (objects.STRTAB, 1 << 20, ""),
    ):
        big = objects.Section("big", bytes(range(1, 256)) * (size_bytes // 255 + 1))
        data = bytearray(objects.write([text, big], [function]))
        (table,) = struct.unpack_from("<Q", data, SHOFF)
        start = _headers(bytes(data))["big"]
        (at,) = struct.unpack_from("<Q", data, start + OFFSET)
        del data[table + 64 * 7 :]
        header = bytearray(data[table : table + 64])
        for number in range(3000):
            struct.pack_into("<IIQQQQIIQQ", header, 0, 0, kind, 0, 0, at, size_bytes, 4, 1 + number % 2, 8, 16)
            data += header
        count = (len(data) - table) // 64
        hostile = _put(bytes(data), (SHNUM, "H", count))
        if not reason:
            assert elf.load(hostile).function == "decide"
            continue
        with pytest.raises(BpfError, match=reason):
            elf.load(hostile)


def test_names_without_an_end() -> None:
    """A name that runs to the end of the file, or is as long as all may be."""
    text = objects.Section(".text", bytes.fromhex("b7000000010000009500000000000000"), 6)
    for tail in (b"x" * (3 << 20), b"x" * 1025):
        function = objects.Symbol(tail.decode(), ".text", objects.FUNC, 0, 16, True)
        with pytest.raises(BpfError, match=r"a name of \d+ bytes; at most 1024"):
            elf.load(objects.write([text], [function]))


def _btf(types: bytes, names: bytes = b"\0.maps\0m\0type\0") -> bytes:
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


def test_types_that_multiply() -> None:
    """A definition of thousands of attributes, for thousands of maps; names without an end; types of themselves."""
    kind = struct.Struct("<III").pack
    variable = kind(7, 14 << 24, 1) + bytes(4)
    section = kind(1, 15 << 24 | 60000, 0) + kind(2, 0, 8) * 60000
    for definition, names, reason in (
        (kind(0, 4 << 24 | 65535, 8) + kind(9, 1, 0) * 65535, None, "65535 attributes; at most 64"),
        (kind(0, 4 << 24, 8), None, "is there twice"),
        (kind(0, 8 << 24, 1), None, "is one of itself, or more than 32 deep"),
        (kind(0, 4 << 24, 8), b"\0.maps\0" + b"m" * (1 << 20), "does not end within 128 bytes"),
        (kind(0, 4 << 24, 8), b"\0.maps\0\xff\0type\0", "is there twice"),
    ):
        with pytest.raises(BpfError, match=reason):
            btf.definitions(_btf(definition + variable + section, *[names] * (names is not None)))


CORE = """
struct s { int a; int b; } __attribute__((preserve_access_index));
SEC("uxk/decide") long decide(struct s *f, u64 n) { return f->b; }
SEC("uxk/plain") long plain(const long *f, u64 n) { return f[0] + 1; }
__attribute__((noinline)) long exists(struct s *f) { return __builtin_preserve_field_info(f->b, 2); }
SEC("uxk/calls") long calls(struct s *f, u64 n) { return exists(f) + 3; }
"""


@needs_clang
def test_what_wants_a_kernels_types_is_refused(tmp_path: Path) -> None:
    data = compile_c(tmp_path, CORE)
    assert len(elf.load(data, "plain").code) == 24, "others in the same object are let be"
    for name, where in (("decide", r"decide\+0"), ("calls", r"exists\+0")):
        with pytest.raises(BpfError, match=rf"{where}: wants a kernel's types .CO-RE, preserve_access_index."):
            elf.load(data, name)
    start = _headers(data)[".BTF.ext"]
    (at, size_bytes) = struct.unpack_from("<QQ", data, start + OFFSET)
    rng = Random(7)
    for _ in range(300):
        place = rng.choice((rng.randrange(32), rng.randrange(size_bytes)))
        _try(_put(data, (at + place, "B", rng.randrange(256))), "plain")


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
