"""How XLA compiles in the tests, and in the processes that they start: soon."""

# The tests are mostly about compiling small programs, which takes 0.6 times as long without LLVM's longest passes. At
# level 0 it takes no less, and some gradients come out wrong (jaxlib 0.12.0).
COMPILED_SOON = (
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a process of so many devices."""
    return f"{COMPILED_SOON} --xla_force_host_platform_device_count={devices}"
