"""Memory that a step frees stays with the process, unless the user chose otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from serl_fast.engine.memory import CHOSEN_BY_USER

# Page faults of twenty allocations of 48 MB: a page is 4 KB to 2 MB. Those before are not counted: glibc may take a few
# places until the blocks that it aligns fit into freed ones.
FAULTS = """
import resource, torch
from serl_fast.agents.sac import sac
from serl_fast.engine import Engine

if {engine}:
    states = dict(state=torch.zeros(4, 3))
    batch = dict(observations=states, next_observations=states, actions=torch.zeros(4, 2), rewards=torch.zeros(4))
    Engine(sac(3, 2)).update(batch | dict(discounts=torch.ones(4)))
for call in range(40):
    if call == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, engine: bool, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    asked = [sys.executable, "-c", FAULTS.format(engine=engine)]
    done = subprocess.run(asked, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
def test_an_engine_on_the_cpu_keeps_what_it_frees() -> None:
    given_back = faults(engine=False)
    assert given_back > 200  # what there is to save
    assert faults(engine=True) < given_back / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
def test_a_users_own_variables_of_glibc_stay_in_force() -> None:
    assert faults(engine=True, MALLOC_MMAP_THRESHOLD_="1048576") > 200
