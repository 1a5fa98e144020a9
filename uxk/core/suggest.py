"""Suggestions for misspelt words, in integers: edit distance with transpositions.

The distance is Levenshtein's plus swapped neighbours (optimal string alignment; Damerau, "A
technique for computer detection and correction of spelling errors", CACM 7(3), 1964).
"""

from __future__ import annotations

from collections.abc import Iterable

from uxk import limits


def distance(a: str, b: str, limit: int) -> int:
    """Edits (insert, delete, replace, swap) from ``a`` to ``b``; ``limit + 1`` if more."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        if min(row) > limit and min(above) > limit:  # a swap reaches back two rows
            return limit + 1
        before = above
    return min(row[-1], limit + 1)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` with the nearest candidate, or ``""`` if none is near.

    Case, ``-`` and ``_`` do not count.  Near means at most one edit in three letters; ties go to
    the alphabetically first.  Words longer than any name are not looked at.
    """
    if not word or len(word) > limits.NAME_MAX_BYTES:
        return ""
    limit = max(1, len(word) // 3)
    nearest: tuple[int, str] | None = None
    for candidate in sorted(set(candidates)):
        edits = distance(_fold(word), _fold(candidate), limit)
        if edits < len(word) and edits <= limit and candidate != word:
            nearest = (edits, candidate)
            limit = edits - 1
            if limit < 0:
                break
    return "" if nearest is None else f" (did you mean {nearest[1]!r}?)"


def _fold(text: str) -> str:
    return text.casefold().replace("-", "_")
