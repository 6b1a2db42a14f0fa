"""The whole diagnosis, with what it looks at replaced."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from sparsevit.doctor import Finding, State, can_search, diagnose, machine, packages


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which all is well."""

    def ok(name: str) -> Finding:
        return Finding(name, State.OK, "")

    monkeypatch.setattr(packages, "requirements", lambda: [Requirement("packaging")])
    monkeypatch.setattr(packages, "mmcv", lambda: ok("mmcv"))
    monkeypatch.setattr(packages, "imports", lambda: [ok("operators")])
    monkeypatch.setattr(machine, "devices", lambda: [ok("cpu")])
    monkeypatch.setattr(machine, "weights", lambda package: ok("supernet" if (package / "doctor").is_dir() else "lost"))
    return monkeypatch


def test_all_is_looked_at_in_the_order_in_which_to_cure_it(fine):
    findings = diagnose()
    assert [one.name for one in findings] == ["python", "packaging", "mmcv", "operators", "cpu", "supernet"]
    assert can_search(findings)


def test_a_wrong_version_stops_the_search_and_is_not_blamed_twice(fine):
    fine.setattr(packages, "requirements", lambda: [Requirement("packaging<1")])
    findings = diagnose()
    assert [one.name for one in findings if one.state is State.WRONG] == ["packaging"]
    assert "operators" not in [one.name for one in findings]
    assert not can_search(findings)


def test_a_warning_does_not_stop_it(fine):
    fine.setattr(machine, "devices", lambda: [Finding("gpu", State.WARNING, "unseen", "update the driver")])
    assert can_search(diagnose())
