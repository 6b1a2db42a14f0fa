"""What all tests share: few threads, hypothesis without deadlines, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Tests time nothing; one thread each keeps small tensors fast and shared machines usable. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Without a GPU Triton's kernels are interpreted. Read when Triton is first imported, which importing torch does not do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Time says nothing on a busy machine. Derandomised, the same examples are drawn every time.
settings.register_profile("sparsevit", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sparsevit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images that training decodes are kept in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
