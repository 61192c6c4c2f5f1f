"""The command that counts the bytes of a training step compiled for an H100: see `gpu/traffic.py`.

Command:   python -m experiments.benchmarks.gpu_traffic
"""

import tyro

from experiments.benchmarks.gpu.traffic import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.gpu_traffic")
