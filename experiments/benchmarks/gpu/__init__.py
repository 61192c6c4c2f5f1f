"""The benchmarks that measure, or compile for, an NVIDIA GPU."""
