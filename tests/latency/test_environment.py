from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from sparsevit.latency.environment import UNKNOWN, conditions, difference, environment
from sparsevit.latency.nvml import gpu
from sparsevit.latency.target import Target


def test_it_says_what_a_latency_depends_on_and_nothing_personal() -> None:
    facts = environment(Target("cpu", 2))
    assert facts["threads"] == "2"
    assert facts["torch"] == torch.__version__
    assert set(facts) == {"device", "cores", "threads", "torch", "python"}
    assert all(facts.values())
    assert platform.node() not in facts.values()


def test_a_gpu_is_known_by_what_was_set_and_not_by_its_state(gpu_machine: Any) -> None:
    target = Target("cuda:0", engine="graph")
    facts = environment(target)
    assert facts["device"] == "NVIDIA H200"
    assert facts["driver"] == "580.1"
    assert facts["power_limit"] == "700 W"
    assert facts["clocks"] == "sm 1830 MHz, memory 3201 MHz"
    assert facts["matmul"] == torch.get_float32_matmul_precision()
    assert "matmul" not in environment(Target("cuda:0", dtype="bfloat16"))
    now = conditions(target)
    assert now["clocks"] == "sm 1980 MHz, memory 3201 MHz"
    assert now["clocks_max"] == "sm 1980 MHz, memory 3201 MHz"
    assert now["temperature"] == "41"
    gpu_machine.clock = 345
    assert environment(target) == facts
    assert conditions(target)["clocks"] == "sm 345 MHz, memory 3201 MHz"
    gpu_machine.power_limit_mw = 500_000
    assert difference(facts, environment(target)) == "power_limit 700 W then, 500 W now"


def test_a_gpu_is_found_by_its_identity_as_torch_may_number_it_otherwise(gpu_machine: Any) -> None:
    with gpu("cuda:0"):
        assert gpu_machine.asked == ["GPU-0e11"]


def test_what_nvml_does_not_say_is_unknown(gpu_machine: Any) -> None:
    gpu_machine.silent = True
    facts = environment(Target("cuda:0"))
    assert (facts["driver"], facts["power_limit"], facts["clocks"]) == (UNKNOWN,) * 3
    assert "clocks" not in conditions(Target("cuda:0"))
    gpu_machine.absent = True
    assert environment(Target("cuda:0")) == facts
    assert "clocks" not in conditions(Target("cuda:0"))


def test_differences_name_both_sides() -> None:
    then = {"torch": "2.11", "driver": "570", "gone": "x"}
    assert difference(then, then) == ""
    now = {"torch": "2.12", "driver": "570", "new": "y"}
    assert difference(then, now) == ("torch 2.11 then, 2.12 now; new unknown then, y now; gone x then, unknown now")


def test_conditions_of_a_cpu_are_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.234, 5.0, 6.0))
    assert conditions(Target("cpu")) == {"load": "1.23"}


@pytest.mark.gpu
def test_a_real_gpu_says_more_than_unknown() -> None:
    facts = environment(Target("cuda:0"))
    assert all(facts.values())
    assert facts["driver"] != UNKNOWN
    assert facts["power_limit"].endswith(" W")
    assert "sm " in conditions(Target("cuda:0"))["clocks"]
