"""The schedule of sparsities: a function of seed and iteration, wherever it is asked."""

from __future__ import annotations

import os
import random
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from sparsevit import SparsitySpace
from sparsevit.adaptation import SparsitySchedule

ASK = (
    "from sparsevit import SparsitySpace;from sparsevit.adaptation import SparsitySchedule;"
    "schedule = SparsitySchedule(SparsitySpace(), seed=7);print(*(schedule(i) for i in range(8)), sep='\\n')"
)


def test_every_process_draws_the_same() -> None:
    answers = set()
    for hash_seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "RANK": hash_seed}
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
        answers.add(done.stdout)
    schedule = SparsitySchedule(SparsitySpace(), seed=7)
    assert answers == {"".join(f"{schedule(i)}\n" for i in range(8))}


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_neither_order_nor_global_state_matters(seed: int, order: list[int]) -> None:
    schedule = SparsitySchedule(SparsitySpace(), seed)
    straight = [schedule(i) for i in range(6)]
    random.seed(seed)
    shuffled = {i: schedule(i) for i in order}
    assert [shuffled[i] for i in range(6)] == straight


def test_iterations_and_seeds_differ_and_all_of_the_grid_is_reached() -> None:
    space = SparsitySpace()
    drawn = [SparsitySchedule(space, seed=0)(i) for i in range(300)]
    assert all(sparsity in space for sparsity in drawn)
    assert len(set(drawn)) > 290  # of 120,285; equal ones are chance
    for stage in range(4):
        assert {value for sparsity in drawn for value in sparsity.stages[stage]} == set(space.grid)
    assert drawn != [SparsitySchedule(space, seed=1)(i) for i in range(300)]
