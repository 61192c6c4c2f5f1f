"""XLA flags that compile fast, for the tests and the processes that they start."""

# The tests are mostly about compiling small programs. At level 0 and without LLVM's longest passes this takes some 0.4
# times as long, and XLA computes some values twice and rounds them differently, as it may at any level.
# tests/run/test_killed.py runs the command with a user's flags.
COMPILED_SOON = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a process of so many devices."""
    return f"{COMPILED_SOON} --xla_force_host_platform_device_count={devices}"
