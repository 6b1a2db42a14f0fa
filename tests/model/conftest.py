"""A small backbone with weights that make every part matter, and a reference implementation to hold it against."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sparsevit.model import SparseSwin

Make = Callable[..., SparseSwin]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("swin_reference", Path(__file__).with_name("swin_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make() -> Make:
    def build(seed: int = 0, **arguments: Any) -> SparseSwin:
        settings: dict[str, Any] = {
            "embed_dims": 8,
            "depths": (2, 2, 4, 2),
            "num_heads": (1, 2, 2, 4),
            "window_size": 4,
        } | arguments
        torch.manual_seed(seed)
        model = SparseSwin(**settings)
        with torch.no_grad():
            for parameter in model.parameters():  # biases, norms and bias tables too, unlike at initialisation
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model.eval()

    return build
