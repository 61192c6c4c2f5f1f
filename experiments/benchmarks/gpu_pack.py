"""The command that packs wheels and CIFAR-10 records for `experiments.benchmarks.gpu`.

It is apart from `gpu/pack.py` because the GPU machine, which unpacks them, has no tyro yet.

Command:   python -m experiments.benchmarks.gpu_pack --data-dir DATA_DIR --out build/gpu
"""

import tyro

from experiments.benchmarks.gpu.pack import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.gpu_pack")
