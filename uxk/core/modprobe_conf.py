"""``modprobe.d/*.conf`` as modprobe.d(5) describes it (kmod: libkmod/libkmod-config.c).

Understood: ``options``, ``alias``, ``blacklist``, ``softdep``.  ``install`` and ``remove`` are
refused: uxk runs no commands.  Unlike kmod, which skips what it cannot read, every bad line is an
error with file and line.

Quotes: as in the kernel's ``next_arg``, they may surround a value (``name="a b"``) or a whole word
(``"name=a b"``).  An option without ``=`` stands for a switched-on boolean and is stored as
``"Y"``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from uxk import limits
from uxk.core.manifest import canonical, name_problem
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.uapi.manifest import Softdep

LINES_MAX: Final = 1 << 16
"""Lines of one file."""

_OPTION: Final = re.compile(
    r'"(?P<q>[A-Za-z_][\w-]*)(?P<qe>=(?P<qv>[^"]*))?"'
    r'|(?P<n>[A-Za-z_][\w-]*)(?P<e>=(?:"(?P<v>[^"]*)"|(?P<p>[^"\s]*)))?',
    re.ASCII,
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_REFUSED: Final = {
    "install": "uxk runs no commands",
    "remove": "uxk runs no commands",
    "weakdep": "it concerns initramfs images only, and uxk has none",
}


class ModprobeConfig(msgspec.Struct, frozen=True):
    """What the administrator configured; module names are canonical (``_`` for ``-``)."""

    options: dict[str, dict[str, str]] = {}
    """Module to parameter to text."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(pattern, module), the later-read last; a pattern occurs once."""
    blacklist: tuple[str, ...] = ()
    softdeps: dict[str, Softdep] = {}


def parse(text: str, where: str) -> ModprobeConfig:
    """Configuration in ``text``.

    Raises :class:`ConfigError` with ``where`` (its file) and line.
    """
    merger = _Merger()
    for number, line in _logical_lines(text, where):
        place = f"{where}:{number}"
        if _CONTROL.search(line):
            raise ConfigError(f"{place}: control character in {line[:80]!r}")
        verb, rest = _first_word(line)
        if verb and not verb.startswith("#"):
            reader = _READERS.get(verb)
            if reader is None:
                raise ConfigError(f"{place}: {_unknown(verb)}")
            merger.add(reader(rest, place))
    return merger.config()


def load_dir(path: str | Path) -> ModprobeConfig:
    """Merges every ``*.conf`` of a directory in the order of their names; later ones win.

    Raises :class:`ConfigError` if the directory or a file cannot be read, or is no UTF-8 text.
    """
    merger = _Merger()
    place = Path(path)
    try:
        for place in sorted(p for p in Path(path).iterdir() if p.suffix == ".conf"):
            with place.open("rb") as stream:
                content = stream.read(limits.FRAME_MAX_BYTES + 1)
            if len(content) > limits.FRAME_MAX_BYTES:
                raise ConfigError(f"{place}: larger than {limits.FRAME_MAX_BYTES} bytes")
            merger.add(parse(content.decode(), str(place)))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: no UTF-8 text: {error}") from None
    except OSError as error:
        number = error.errno or errno.EIO
        raise ConfigError(f"{place}: cannot be read: {error.strerror}", errno=number) from None
    return merger.config()


def merge(earlier: ModprobeConfig, later: ModprobeConfig) -> ModprobeConfig:
    """Both; where they differ about an option or a pattern, ``later`` wins.  Softdeps add up."""
    merger = _Merger()
    merger.add(earlier)
    merger.add(later)
    return merger.config()


def parse_options(text: str, where: str) -> dict[str, str]:
    """``name=value`` words as text by parameter name; a repeated name's last value counts.

    Raises :class:`ConfigError` with ``where`` and the word.
    """
    options: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _OPTION.match(text, position)
        if match is None or text[match.end() : match.end() + 1] not in ("", " ", "\t"):
            word = text[position:].split(" ")[0]
            raise ConfigError(f'{where}: {word[:80]!r} is not NAME=VALUE or NAME="A VALUE"')
        name = canonical(match["q"] or match["n"])
        value = match["qv"] if match["q"] else match["v"] if match["v"] is not None else match["p"]
        options[name] = "Y" if match["qe"] is None and match["e"] is None else value
        position = match.end()
        while text[position : position + 1] in (" ", "\t"):
            position += 1
    return options


class _Merger:
    """Collects configurations in linear time; dicts keep order and drop duplicates."""

    __slots__ = ("_aliases", "_blacklist", "_options", "_softdeps")

    def __init__(self) -> None:
        self._options: dict[str, dict[str, str]] = {}
        self._aliases: dict[str, str] = {}
        self._blacklist: dict[str, None] = {}
        self._softdeps: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def add(self, config: ModprobeConfig) -> None:
        for module, values in config.options.items():
            self._options.setdefault(module, {}).update(values)
        for pattern, module in config.aliases:
            self._aliases.pop(pattern, None)
            self._aliases[pattern] = module
        self._blacklist.update(dict.fromkeys(config.blacklist))
        for module, soft in config.softdeps.items():
            pre, post = self._softdeps.setdefault(module, ({}, {}))
            pre.update(dict.fromkeys(soft.pre))
            post.update(dict.fromkeys(soft.post))

    def config(self) -> ModprobeConfig:
        softdeps = {name: Softdep(tuple(a), tuple(b)) for name, (a, b) in self._softdeps.items()}
        aliases = tuple(self._aliases.items())
        return ModprobeConfig(self._options, aliases, tuple(self._blacklist), softdeps)


def _first_word(text: str) -> tuple[str, str]:
    """The first word and the rest, without the blanks around them."""
    word, *rest = re.split(r"[ \t]+", text.strip(" \t"), maxsplit=1)
    return word, rest[0] if rest else ""


def _logical_lines(text: str, where: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; a backslash at the end joins the next one, even in a comment, as in kmod."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        raise ConfigError(f"{where}: {len(lines)} lines; at most {LINES_MAX}")
    joined: list[str] = []
    first = 1
    for number, raw in enumerate(lines, 1):
        line = raw.removesuffix("\r")
        if line.endswith("\\") and number < len(lines):
            joined.append(line[:-1])
            continue
        yield first, "".join((*joined, line))
        joined.clear()
        first = number + 1


def _unknown(verb: str) -> str:
    if verb in _REFUSED:
        return f"{verb!r} is not supported: {_REFUSED[verb]}"
    known = ", ".join(_READERS)
    return f"unknown word {verb[:80]!r}{did_you_mean(verb, _READERS)}; expected one of {known}"


def _module(word: str, place: str) -> str:
    problem = name_problem(word)
    if problem:
        raise ConfigError(f"{place}: module {problem}")
    return canonical(word)


def _options(rest: str, place: str) -> ModprobeConfig:
    module, words = _first_word(rest)
    name = _module(module, place)
    options = parse_options(words, place)
    if not options:
        raise ConfigError(f"{place}: 'options {module}' needs NAME=VALUE")
    return ModprobeConfig(options={name: options})


def _alias(rest: str, place: str) -> ModprobeConfig:
    words = rest.split()
    if len(words) != 2:
        raise ConfigError(f"{place}: 'alias {rest[:80]}': expected PATTERN MODULE")
    return ModprobeConfig(aliases=((words[0], _module(words[1], place)),))


def _blacklist(rest: str, place: str) -> ModprobeConfig:
    words = rest.split()
    if len(words) != 1:
        raise ConfigError(f"{place}: 'blacklist {rest[:80]}': expected one MODULE")
    return ModprobeConfig(blacklist=(_module(words[0], place),))


def _softdep(rest: str, place: str) -> ModprobeConfig:
    module, *words = rest.split() or [""]
    name = _module(module, place)
    lists: dict[str, list[str]] = {"pre:": [], "post:": []}
    current: list[str] | None = None
    for word in words:
        if word in lists:
            current = lists[word]
        elif current is None:
            raise ConfigError(f"{place}: {word[:80]!r}: expected 'pre:' or 'post:' before it")
        else:
            current.append(_module(word, place))
    if not lists["pre:"] and not lists["post:"]:
        raise ConfigError(f"{place}: 'softdep {module}' needs 'pre: MODULE' or 'post: MODULE'")
    return ModprobeConfig(softdeps={name: Softdep(tuple(lists["pre:"]), tuple(lists["post:"]))})


_READERS: Final[Mapping[str, Callable[[str, str], ModprobeConfig]]] = {
    "options": _options,
    "alias": _alias,
    "blacklist": _blacklist,
    "softdep": _softdep,
}
