"""XLA flags that compile fast, for the tests and the processes that they start."""

# Most of the tests' time goes into compiling small programs. Without LLVM's longest passes it takes some 0.6 times as
# long (seen for the program of tests/run/multihost/test_join.py), and two thirds of that at level 0. There, XLA may
# round a value differently where it computes it a second time, which the package must not rely on anyway.
# tests/experiments/test_soak.py and tests/test_train.py also run commands as optimised as a user's.
COMPILED_SOON = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a process of so many devices."""
    return f"{COMPILED_SOON} --xla_force_host_platform_device_count={devices}"
