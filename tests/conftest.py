"""What all tests share: few threads, hypothesis without deadlines, GPU tests only where there is a GPU, and a server of
PostgreSQL for those that ask for one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tests time nothing; one thread each keeps small tensors fast and shared machines usable. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# A shell starts what runs in the background deaf to Ctrl-C, which tests send to themselves and to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU Triton's kernels are interpreted. Read when Triton is first imported, which importing torch does not do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Time says nothing on a busy machine. Derandomised, the same examples are drawn every time.
settings.register_profile("sparsevit", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sparsevit")


def pytest_configure(config: pytest.Config) -> None:
    """yapf, which mmcv imports, writes its grammar to a file when it is first imported after it was installed. Workers
    that start together would read what another has half written, so the process that starts them imports it first.
    """
    if not hasattr(config, "workerinput") and importlib.util.find_spec("yapf") is not None:
        importlib.import_module("yapf")


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A server of the tests' own, which `stop` and `start` may restart."""
    path = Path(__file__).parents[1] / "benchmarks" / "private_postgres.py"
    spec = importlib.util.spec_from_file_location("private_postgres", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    why = module.missing()
    if why is not None:
        pytest.skip(why)
    with module.private_postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Any) -> str:
    """The URL of a new database."""
    url: str = postgres_server.database(f"test-{uuid.uuid4()}")
    return url
