"""Devices and weights."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsevit.doctor import machine
from sparsevit.doctor.finding import State


def test_the_cpu_is_always_there_with_its_threads():
    first = machine.devices()[0]
    assert (first.name, first.state) == ("cpu", State.OK)
    assert "cores" in first.detail


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "_gpus_of_driver", lambda: ["NVIDIA H200"])
    found = machine.devices()[-1]
    assert (found.name, found.state) == ("gpu", State.WARNING)
    assert "NVIDIA H200" in found.detail
    assert "driver" in found.cure


def test_missing_weights(tmp_path):
    found = machine.weights(tmp_path)
    assert found.state is State.WRONG
    assert "no weights" in found.detail


def test_whole_weights(tmp_path):
    (tmp_path / "deep").mkdir()
    save_file({"a": np.zeros(500_000, np.float32)}, tmp_path / "deep" / "net.safetensors")
    found = machine.weights(tmp_path)
    assert (found.state, found.detail) == (State.OK, "net.safetensors 2.0 MB")


@pytest.mark.parametrize("size", [0, 7, 60, 1000])
def test_weights_cut_short_are_found(tmp_path, size):
    path = tmp_path / "net.safetensors"
    save_file({"a": np.zeros(500, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:size])
    found = machine.weights(tmp_path)
    assert found.state is State.WRONG
    assert str(path) in found.detail
