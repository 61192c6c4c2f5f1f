"""A small program that runs a command, and writes its start, seconds, exit code and peak memory as JSON.

Usage: python child.py FILE COMMAND ...

It stands between a benchmark and the measured program, because Linux counts the memory of the process that starts a
program as the program's own peak. A benchmark that holds the data set would be larger than the program.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    place, *command = sys.argv[1:]
    began = time.time()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    took = {
        "began": began,
        "seconds": time.time() - began,
        "code": os.waitstatus_to_exitcode(status),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    with open(place, "w") as file:  # noqa: PTH123 - pathlib would make this process larger
        json.dump(took, file)
