"""The user-space side: runs one extension, speaks frames.  Knows nothing of the kernel but the protocol."""
