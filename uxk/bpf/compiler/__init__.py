"""The model compiler: what was learnt with floating point becomes integer bytecode that a kernel can verify.

A model is first reduced to its *decision form* (:mod:`~uxk.bpf.compiler.forms`), whose meaning is exact in integers;
code is made from that and nothing else.  :func:`uxk.bpf.compiler.compile.compile_model` is the way in.
"""
