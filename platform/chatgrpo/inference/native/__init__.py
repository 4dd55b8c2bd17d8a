"""Kernels in C++ for float32 on CPUs, built once by the machine's own compiler."""
