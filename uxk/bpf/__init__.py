"""eBPF for uxk: instruction set, assembler, verifier, machine, maps, arena.

Knows nothing of a kernel: helpers are injected.
"""
