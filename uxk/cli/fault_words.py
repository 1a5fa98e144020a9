"""``uxk fault add``: which attribute of a module its words are for, and the text that is written there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uxk.cli.common import UsageExit

PLAN: Final = "/sys/kernel/faults"
CONTROL: Final = "control"
"""The attribute that slows parts of a medium down, a change on a line."""
HEALTHY: Final = 1_000_000
"""Factor 1 as that attribute has it, in millionths."""
_FACTOR_MAX: Final = 1000

SHORT: Final[dict[str, tuple[str, str, str]]] = {
    "media-error": ("LBA[-LBA]", "lba", "opcode=read action=status status=media-error dnr=1"),
    "write-error": ("LBA[-LBA]", "lba", "opcode=write action=status status=write-fault dnr=1"),
    "latency": ("TIME", "delay_ns", "action=delay"),
    "power-loss": ("", "", "count=1 action=powerloss"),
}
"""Words that stand for a rule: their argument, the rule's key for it, and the rest of the rule."""
SWITCHES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "link": ("link", ("down", "up")), "namespace": ("namespaces", ("add", "rm")),
}  # fmt: skip
"""Words that write another attribute of the module, and what may follow."""

SLOW: Final[dict[str, tuple[str, str]]] = {
    "slow-die": ("slow_die", "DIE FACTOR"), "slow-channel": ("slow_channel", "CHANNEL FACTOR"),
}  # fmt: skip
"""Words of :data:`CONTROL` with the number of a part and how many times as long it takes."""
LEVELS: Final = ("0", "1", "2", "off")
"""Of throttling, as if the device were hot; ``off``: as hot as it is."""


def written(module: str, words: Sequence[str]) -> tuple[str, str]:
    """The attribute of the module (or :data:`PLAN`) that the words are for, and the text for it.  Raises UsageExit."""
    first, rest = words[0], list(words[1:])
    if first in SWITCHES:
        attribute, verbs = SWITCHES[first]
        if not rest or rest[0] not in verbs or len(rest) != (2 if first == "namespace" else 1):
            what = "add SIZE or namespace rm NSID" if first == "namespace" else "down or link up"
            raise UsageExit(f"{' '.join(words)!r}: expected {first} {what}")
        return attribute, " ".join(rest)
    if first in SLOW:
        return CONTROL, _slowed(first, rest)
    if first == "throttle":
        if len(rest) != 1 or rest[0] not in LEVELS:
            raise UsageExit(f"{' '.join(words)!r}: expected throttle {'|'.join(LEVELS)}")
        return CONTROL, f"throttle {rest[0]}"
    if first in SHORT:
        return "faults", "add " + _expanded(first, rest)
    if any(word.startswith("kind=") for word in words):
        return PLAN, f"add module={module} {' '.join(words)}"
    if "=" not in first:
        from uxk.core.suggest import did_you_mean

        known = [*SHORT, *SLOW, "throttle", *SWITCHES]
        raise UsageExit(f"{first!r}: expected KEY=VALUE or one of {', '.join(known)}{did_you_mean(first, known)}")
    return "faults", "add " + " ".join(words)


def _slowed(word: str, rest: Sequence[str]) -> str:
    """``slow-die 3 1.5`` as ``slow_die 3 1500000``."""
    text, arguments = SLOW[word]
    if len(rest) == 2 and rest[0].isdecimal():
        whole, _, part = rest[1].partition(".")
        if whole.isdecimal() and (part.isdecimal() or not part) and len(whole) <= 4 and len(part) <= 6:
            factor_ppm = int(whole) * HEALTHY + int(part.ljust(6, "0"))
            if HEALTHY <= factor_ppm <= _FACTOR_MAX * HEALTHY:
                return f"{text} {rest[0]} {factor_ppm}"
    raise UsageExit(f"{' '.join([word, *rest])!r}: expected {word} {arguments}, a number and 1 to {_FACTOR_MAX}")


def control_row(line: str) -> tuple[str, str, str]:
    """A line of :data:`CONTROL`: a name for it, the words that ``fault add`` takes, and what undoes it."""
    text, *rest = line.split()
    word = next((word for word, (its, _) in SLOW.items() if its == text), text)
    if word in SLOW and len(rest) == 2 and rest[1].isdecimal():
        whole, part = divmod(int(rest[1]), HEALTHY)
        shown = f"{whole}.{part:06}".rstrip("0").rstrip(".")
        return f"{word}-{rest[0]}", f"{word} {rest[0]} {shown}", f"{text} {rest[0]} {HEALTHY}"
    return word, " ".join([word, *rest]), f"{text} off"


def _expanded(word: str, rest: list[str]) -> str:
    """A rule from a short form; what follows it may replace parts."""
    argument, key, text = SHORT[word]
    tokens = dict(part.split("=", 1) for part in text.split())
    if argument:
        if not rest or "=" in rest[0]:
            raise UsageExit(f"{word}: expected {argument}")
        if argument == "TIME" and rest[0].isdecimal():
            raise UsageExit(f"{word} {rest[0]}: expected {argument} with its unit, for example {rest[0]}ms")
        tokens[key] = rest.pop(0)
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageExit(f"{part!r}: expected KEY=VALUE behind {word}")
        tokens[name] = value
    return " ".join(f"{name}={value}" for name, value in tokens.items())
