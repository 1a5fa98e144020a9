"""Numbers shared by both engines: columns, registers, placements and selections."""

from __future__ import annotations

from typing import Final

# --- one volume's arrays -------------------------------------------------------------------------

# Columns of the page table: int64[pages, 4], and as many rows again for the second pool's statistics.
BLOCK: Final = 0
"""Physical block of the page, -1 if it was never written; in the second pool's rows the page's bucket."""
LAST: Final = 1
"""User clock of its last user write, -1 if there was none."""
A: Final = 2
"""The placement's own statistic."""
B: Final = 3
"""A second one."""

# Columns of the segment table: int64[segments, COLUMNS].
LIVE: Final = 0
"""Valid blocks."""
USED: Final = 1
"""Blocks appended; 0 if clean.  A segment that was sealed early has fewer than SIZE."""
CLASS: Final = 2
"""Log that it was opened for; -1 if clean."""
SEALED: Final = 3
"""User clock of its last append; -1 while it is open or clean."""
BORN: Final = 4
"""User clock when it was opened."""
SA: Final = 5
"""The selection's sum over its blocks."""
SB: Final = 6
"""The placement's sum over its valid blocks."""
STACK: Final = 7
"""Row k holds the k-th number on the stack of clean segments."""
SC: Final = 8
"""The placement's second one."""
POOL: Final = 9
"""Pool that it belongs to; that of its last life while it is clean."""
KEY: Final = 10
"""Scratch of the selection."""
COLUMNS: Final = 11

# Registers: int64[REGISTERS].  A volume of two pools has three times as many: the volume's own, then each pool's.
NOW: Final = 0
"""User blocks written: the clock of every age.  Pools have it too."""
MOVED: Final = 1
"""Blocks moved; a pool's: blocks of pages that were its own."""
GARBAGE: Final = 2
"""Invalid blocks in sealed segments; those in open ones count from the moment of sealing."""
TOTAL: Final = 3
"""Blocks appended and not yet reclaimed, valid or not."""
CLEAN: Final = 4
"""Clean segments."""
CLEANED: Final = 5
"""Segments cleaned so far."""
VALID: Final = 6
"""Pages that were ever written.  Pools have it too."""
STUCK: Final = 7
"""Times the trigger held and no sealed segment had enough garbage."""
LOW: Final = 8
"""Fewest clean segments seen."""
SIZE: Final = 9
"""Blocks per segment."""
GP_PPM: Final = 10
"""Garbage share above which a victim is cleaned."""
MOST: Final = 11
"""Most valid blocks that a victim may have."""
SEGMENTS: Final = 12
POOLS: Final = 13
"""1 or 2."""
SHARE: Final = 14
"""Pages in buckets below this are the second pool's; 0 .. 1024."""
FULL: Final = 15
"""1 if the last run ended early because clean segments ran out."""
PLACEMENT: Final = 16
SELECTION: Final = 17
LOGS: Final = 18
"""Open logs: classes 0 .. LOGS-1."""
BASIS: Final = 19
"""The placement that learns: PLACEMENT, or what a table falls back to."""
ARG: Final = 20
"""First of the policy's 12 parameters."""
ARGS: Final = 12
HEAD: Final = 32
"""First of 16: open segment of each class, -1 if there is none."""
STATE: Final = 48
"""First of the placement's own registers."""
STATES: Final = 144
INDEX: Final = 192
"""Number of the pool that the registers belong to."""
USER: Final = 193
"""User writes of pages that were the pool's own."""
RANDOM: Final = 194
"""State of the selection's random numbers."""
PAGES: Final = 195
"""Pages of the volume.  Pools have it too."""
WARM: Final = 196
"""1 if the second pool's placement learns from all pages, even while it has none."""
HINT_NEXT: Final = 200
"""Place in the queue of the victim to try next; this and the following are the volume's."""
HINT_COUNT: Final = 201
"""Victims in the queue."""
HINT_USED: Final = 202
"""Hinted victims that were cleaned."""
HINT_NOT_SEALED: Final = 203
"""Hinted victims refused: open, clean, or the other pool's."""
HINT_TOO_FULL: Final = 204
"""Hinted victims refused: more valid blocks than the hint or the frozen rule allows."""
HINT_COSTLY: Final = 205
"""Hinted victims refused: an eighth of a segment more to move than with the pool's own choice."""
HINT_RANGE: Final = 206
"""Hinted victims refused: no such segment."""
QUEUE: Final = 208
"""First of 2 * QUEUE_MAX: segment, most valid blocks."""
QUEUE_MAX: Final = 64
PROGRAM_AT: Final = 336
"""Address of the function that scores a row, 0: there is none; this and the following are a pool's."""
PROGRAM_PURE: Final = 337
"""1 if asking it changes nothing."""
PROGRAM_RUNS: Final = 338
"""Rows scored so far."""
PROGRAM_CHOSE: Final = 339
"""Victims that it has named."""
ROW: Final = 340
"""First of the 6 numbers that it sees of a segment: garbage, valid, age, fill, log, 0."""
ROW_WORDS: Final = 6
EXTENTS: Final = 384
"""ETI: first page of each extent, in order; then, from COUNTS, their counters."""
COUNTS: Final = 1_412
EXTENTS_MAX: Final = 1_024
REGISTERS: Final = 2_440

# --- policies ------------------------------------------------------------------------------------

NOSEP: Final = 0
SEPGC: Final = 1
DAC: Final = 2
SEPBIT: Final = 3
FADAC: Final = 4
MIDA: Final = 5
FK: Final = 6
FKG: Final = 7
SFS: Final = 8
MULTILOG: Final = 9
ETI: Final = 10
WARCIP: Final = 11
TABLE: Final = 12
RATE: Final = 13
F2FS: Final = 14
STREAM: Final = 15

GREEDY: Final = 0
CB_AGE: Final = 1
CB_SQRT: Final = 2
MDC: Final = 3
D_CHOICES: Final = 4
TIMESTAMP: Final = 5
ATGC: Final = 6
LEARNED: Final = 7
PROGRAM: Final = 8

FOREIGN: Final = 15
"""CLASS of a segment that was adopted from another placement."""
BUCKETS: Final = 1024
"""Buckets of pages; a pool has the first SHARE."""
