"""XLA flags that compile fast, for the tests and the processes that they start."""

# The tests are mostly about compiling small programs, which takes some 0.6 times as long without LLVM's longest passes
# (seen for that of tests/run/multihost/test_join.py). Level 0 would take a third off again,
# but there XLA rounds a value differently where it computes it a second time, so that no value equals its maximum, and
# pooling loses gradients (jaxlib 0.12.0; without FMA instructions it does not, but compiles no faster).
# tests/experiments/test_soak.py and tests/test_train.py also run commands as optimised as a user's.
COMPILED_SOON = (
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a process of so many devices."""
    return f"{COMPILED_SOON} --xla_force_host_platform_device_count={devices}"
