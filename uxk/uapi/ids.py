"""Identifiers as distinct types, so that a command id is never passed where a capability is meant."""

from __future__ import annotations

from typing import NewType

InstanceId = NewType("InstanceId", int)
"""Number of a loaded instance; never reused within a boot.  0 is the kernel itself."""
CommandId = NewType("CommandId", int)
"""Chosen by a submitter, echoed by the completion."""
CapId = NewType("CapId", int)
"""Names a capability of its holder; useless to anybody else."""
PortId = NewType("PortId", int)
"""A client's connection to a device."""
LockToken = NewType("LockToken", int)
"""Fencing token of a granted lock: grows with every grant."""
VersionNumber = NewType("VersionNumber", int)
"""Version of a snapshot."""

KERNEL_ID = InstanceId(0)
