"""The kernel log in files: syslog or JSON lines, with rotation, read back, and replayed as a dataset (R13)."""
