"""How the command line fails and what it costs to start; commands are tested beside."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.main import get_command

import sparsevit
from sparsevit.cli import app as cli
from sparsevit.errors import UserError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert isinstance(stop.value.code, int)
    return stop.value.code


class Settings(BaseModel):
    trials: int


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Replaces the commands by one, `fail`, that raises what it is given."""

    def install(error: BaseException) -> None:
        app = typer.Typer()
        app.callback()(cli.options)

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)

    return install


def test_user_error_is_one_line_and_exit_code_2(failing, capsys):
    failing(UserError("studies/x.toml: unknown key\ntrails"))
    assert run("fail") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: studies/x.toml: unknown key trails\n"


@pytest.mark.parametrize(("file", "place"), [(None, ""), ("runs/x.jpg", " for runs/x.jpg")])
def test_a_full_disk_is_the_users_to_mend(failing, capsys, file, place):
    failing(OSError(errno.ENOSPC, "No space left on device", file))
    assert run("fail") == 2
    err = capsys.readouterr().err
    assert err == f"error: no space left on the disk{place}: make room and type the same again\n"


@pytest.mark.parametrize("place", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_anywhere_shows_the_traceback(failing, capsys, place):
    failing(UserError("wrong"))
    assert run(*place) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: wrong\n")


def test_unforeseen_error_names_its_type_and_the_way_to_its_traceback(failing, capsys):
    failing(ZeroDivisionError("division by zero"))
    assert run("fail") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ZeroDivisionError: division by zero")
    assert "--debug" in err


def test_validation_error_is_the_users(failing, capsys):
    with pytest.raises(ValueError, match="trials") as caught:
        Settings.model_validate({"trials": "many"})
    failing(caught.value)
    assert run("fail") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: Settings: trials: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Exit(130)])
def test_interrupted_is_130_and_one_line(failing, capsys, error):
    failing(error)
    assert run("fail") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_commands_own_exit_code_passes_in_silence(failing, capsys):
    failing(typer.Exit(1))
    assert run("fail") == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serach",), "No such command 'serach'"),
        (("check", "--quick"), "No such option: --quick (see sparsevit check --help)"),
        (("check", "now"), "(now) (see sparsevit check --help)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, words, said):
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert said in err


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"sparsevit {sparsevit.__version__}\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert run() == 2
    out, err = capsys.readouterr()
    assert "check" in out
    assert err == ""


def commands(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command of a group, sub-groups' included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands(get_command(cli.app))), ids=" ".join)
def test_help_of_every_command_shows_an_example(capsys, words):
    assert run(*words, "--help") == 0
    example = capsys.readouterr().out.partition("Example")[2]
    assert f"sparsevit {' '.join(words)}" in " ".join(example.split())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sparsevit.cli.app import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "sparsevit.cli.check" in loaded
    assert not loaded & {"torch", "torchvision", "mmcv", "mmdet", "optuna", "plotly", "sqlalchemy", "sklearn", "cv2"}


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_what_goes_wrong_on_all_ranks_is_said_by_the_first(monkeypatch, capsys, rank, said):
    pytest.importorskip("mmdet")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "gone.py", "gone.pth"])
    assert stop.value.code == 2
    assert ("error: config not found: gone.py" in capsys.readouterr().err) is said
