"""eBPF programs in the kernel: who may load them, where they are attached, what they may call, what they cost."""
