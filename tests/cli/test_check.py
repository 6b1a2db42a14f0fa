"""`sparsevit check` as the user sees it; what it finds out is tested in tests/doctor."""

from __future__ import annotations

import pytest

from sparsevit import doctor
from sparsevit.cli.app import main
from sparsevit.doctor import Finding, State


def run_check(monkeypatch: pytest.MonkeyPatch, findings: list[Finding]) -> int:
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    with pytest.raises(SystemExit) as stop:
        main(["check"])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_all_fine(monkeypatch, capsys):
    assert run_check(monkeypatch, [Finding("torch", State.OK, "2.11.0")]) == 0
    out = capsys.readouterr().out
    assert "2.11.0" in out
    assert "A search can run here." in out
    assert "cure" not in out


def test_a_warning_shows_its_cure_and_stops_nothing(monkeypatch, capsys):
    assert run_check(monkeypatch, [Finding("gpu", State.WARNING, "unseen", "update the driver")]) == 0
    assert "To cure gpu:\n  update the driver" in capsys.readouterr().out


def test_what_is_wrong_shows_a_cure_that_can_be_typed_and_exits_1(monkeypatch, capsys):
    cure = "python -m pip install 'sparsevit[openmmlab]' " + "very-long-word " * 20
    assert (
        run_check(monkeypatch, [Finding("torch", State.OK, "2.11.0"), Finding("mmdet", State.WRONG, "old", cure)]) == 1
    )
    out = capsys.readouterr().out
    assert f"\n  {cure}" in out  # neither wrapped nor read as markup
    assert "A search cannot run here." in out
