"""Freed memory stays with a process that asked for it."""

import json
import os
import subprocess
import sys

import pytest

from geood.prediction.malloc import KEEP_FREED_MEMORY

GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
WORK = """
import json, resource, sys
from geood.prediction.malloc import keep_freed_memory

asked = sys.argv[1] == "ask"
said = keep_freed_memory() if asked else None
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(2**23)
before = faults()
for _ in range(20):
    np.ones(2**23)
print(json.dumps([said, faults() - before]))
"""


def faults(how, **environment):
    """What `keep_freed_memory` said, and page faults of twenty arrays of 64 MB, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, how],
        env={name: value for name, value in os.environ.items() if name not in KEEP_FREED_MEMORY} | environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


GAPS = """
import json, os
from pathlib import Path
from geood.prediction.malloc import give_back, keep_freed_memory

keep_freed_memory()
import numpy as np

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

parts = [np.ones(2**16) for _ in range(400)]
del parts[::2]
full = held()
below, above = give_back(full + 2**24), give_back(full - 2**24)
print(json.dumps([below, above, full, held()]))
"""


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_gaps_are_given_back_where_a_bound_is_near():
    done = subprocess.run([sys.executable, "-c", GAPS], stdout=subprocess.PIPE, check=True, text=True)
    below, above, before, after = json.loads(done.stdout)
    assert not below and above
    assert after < before - 0.8 * 200 * 2**19  # half of the arrays, each amid two that stay


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_memory_is_used_again():
    untold, told, started = faults("no"), faults("ask"), faults("no", **KEEP_FREED_MEMORY)
    assert told[0] is True
    assert untold[1] > 300  # else this C library keeps memory by itself, and the room is not needed
    assert told[1] < untold[1] / 10 and started[1] < untold[1] / 10


def test_the_command_line_asks_for_it():
    code = (
        "import sys, geood.cli.process as c; c.keep_freed_memory = lambda: print('asked'); sys.argv[1:] = ['--version']"
    )
    done = subprocess.run([sys.executable, "-c", f"{code}; c.main()"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("asked")
