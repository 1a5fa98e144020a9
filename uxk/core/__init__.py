"""Sans-IO state machines of the kernel: pure, bounded, integers only."""
