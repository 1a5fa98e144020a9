"""The bounds that several files or users of the kernel need, each with its reason.

A bound that only one file knows stands at that file's head, with its reason.  A structure without a bound is a
defect.
"""

from __future__ import annotations

from typing import Final

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
I64_MAX: Final = (1 << 63) - 1

NAME_MAX_BYTES: Final = 55
"""Longest module, device or lock name (Linux: MODULE_NAME_LEN is 64 minus a pointer, 56 with its NUL)."""

QUEUE_DEPTH_MIN: Final = 2
QUEUE_DEPTH_MAX: Final = 1 << 16
"""NVMe: a queue has 2 to 65,536 entries (NVMe base specification, CAP.MQES)."""
QUEUE_DEPTH_DEFAULT: Final = 64

FRAME_MAX_BYTES: Final = 1 << 20
"""Largest encoded batch: a peer cannot make the kernel copy or decode more than this at once."""
ENTRY_MAX_COUNT: Final = QUEUE_DEPTH_MAX
"""Largest number of entries in one frame: never more than the deepest queue holds."""
PAYLOAD_MAX_BYTES: Final = 256 << 10
"""Largest payload inside an entry; larger data travel by reference through the arena."""

ARENA_BYTES_DEFAULT: Final = 1 << 30
"""Memory that one kernel can grant to its extensions altogether; reserved, not touched, until used."""
MEMORY_BYTES_DEFAULT: Final = 1 << 20
"""Arena budget of a manifest that names none."""
ARENA_PAGE_BYTES: Final = 4096
"""Granularity of arena grants: a protection boundary of real hardware."""

SHOW_MAX_BYTES: Final = 4096
"""One attribute shows or stores at most a page (Linux: Documentation/filesystems/sysfs.rst)."""
PATH_MAX_BYTES: Final = 4096
"""Longest path (Linux: PATH_MAX)."""

KMSG_RECORDS_DEFAULT: Final = 8192
KMSG_TEXT_MAX_BYTES: Final = 1024
"""Longest kmsg line (Linux: PRINTKRB_RECORD_MAX, 1024)."""
KMSG_FIELDS_MAX: Final = 16
"""Structured fields per record, so that a record stays of bounded size."""
LOG_BURST_DEFAULT: Final = 64
LOG_INTERVAL_NS_DEFAULT: Final = 5_000_000_000
"""Log lines per interval and instance (Linux: ratelimit, 10 in 5 s; more here, for lab use)."""

CAPS_PER_HOLDER_MAX: Final = 1024
CAP_DEPTH_MAX: Final = 32
"""Derivation chain: bounds the work of a revocation."""

LOCK_WAITERS_MAX: Final = 1024
TASKS_MAX: Final = 16
"""A waiting task and its ancestors, as they are told; one that has more counts as the whole extension."""
SNAPSHOT_VERSIONS_MAX: Final = 64
"""Old versions that readers may pin before a publish is refused: bounds memory under a slow reader."""

TIMERS_PER_ACTOR_MAX: Final = 1 << 16
DEVICES_PER_INSTANCE_MAX: Final = 64
POLL_WAITERS_MAX: Final = 1024
OPEN_FILES_MAX: Final = 1024
"""Open char-device files per kernel (Linux: default RLIMIT_NOFILE)."""

DISPATCH_TURNS_PER_CHECKPOINT: Final = 256
"""Turns the dispatcher runs before it lets Trio's other tasks in."""
TURNS_PER_INSTANT_MAX: Final = 1_000_000
"""Turns without virtual time moving on before the kernel calls it a livelock."""

READY_TIMEOUT_NS_DEFAULT: Final = 5_000_000_000
REQUEST_TIMEOUT_NS_DEFAULT: Final = 30_000_000_000
"""Deadline of a request handed to a driver (Linux: 30 s, SD_TIMEOUT in drivers/scsi/sd.h and the default
of ``q->rq_timeout`` in block/blk-mq.c)."""
HOST_ANSWER_NS_DEFAULT: Final = 10_000_000_000
"""Host time that an extension in a process of its own may think while the kernel holds its clock for it."""
HOST_START_NS_DEFAULT: Final = 60_000_000_000
"""Host time from the start of a process to the end of ``setup``: heavy libraries take seconds, or more under load."""
HOST_MEMORY_BYTES_DEFAULT: Final = 1 << 30
"""Private memory of a host process beyond the runtime's: models and numerical libraries take hundreds of megabytes."""
HOST_FILES_DEFAULT: Final = 256
HOST_REGIONS_MAX: Final = 256
"""Regions of the arena that one host process may have mapped: the kernel holds a descriptor for each."""
HOST_FILES_MIN: Final = 16
"""Open descriptors of a host process; Trio alone needs a handful."""
STATE_MAX_BYTES: Final = FRAME_MAX_BYTES
"""Largest state that an instance may hand over to the next one in a hot upgrade: larger things stay in the arena."""
LEASE_NS_DEFAULT: Final = 1_000_000_000
HINTS_PER_SECOND_DEFAULT: Final = 1000
PPM: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
