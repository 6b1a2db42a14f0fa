"""The `sparsevit` command: what its sub-commands are, and how they fail. Each of them lives in a module of its own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from sparsevit import __version__
from sparsevit.cli import data, latency
from sparsevit.cli.adapt import adapt
from sparsevit.cli.check import check
from sparsevit.cli.convert import convert
from sparsevit.cli.dashboard import dashboard
from sparsevit.cli.deploy import deploy
from sparsevit.cli.evaluate import evaluate
from sparsevit.cli.export import export
from sparsevit.cli.finetune import finetune
from sparsevit.cli.measure import measure
from sparsevit.cli.report import report
from sparsevit.cli.search import search
from sparsevit.cli.status import status
from sparsevit.cli.stop import resume, stop
from sparsevit.cli.worker import worker
from sparsevit.errors import NO_ROOM, UserError

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="sparsevit",
    help="Find, for your data and your device, which share of windows each layer of a Swin detector may skip.",
    epilog="Example: sparsevit search studies/digits.toml",
    no_args_is_help=True,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sparsevit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Declares what stands before a command. `--debug` is read by `main`, which is there when commands fail."""


# In the order in which a user meets them.
app.command()(check)
app.command()(search)
app.command()(status)
app.command()(dashboard)
app.command()(stop)
app.command()(resume)
app.command()(worker)
app.command()(report)
app.command()(export)
app.command()(finetune)
app.command()(deploy)
app.command()(evaluate)
app.command()(measure)
app.command()(adapt)
app.command()(convert)
app.add_typer(latency.app, name="latency")
app.add_typer(data.app, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, by default that of `sys.argv`, and exit: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        # Typer hands back the code of a typer.Exit, and 130 for Ctrl-C; commands themselves return nothing.
        code = app([word for word in words if word != "--debug"], prog_name="sparsevit", standalone_mode=False)
        code, line = code or DONE, "interrupted" if code == INTERRUPTED else ""
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _explain(error)
        if code == USER_ERROR and not _speaks():
            sys.exit(code)
        for detail in getattr(error, "details", ()):
            print(f"  {detail}", file=sys.stderr)
    except KeyboardInterrupt:
        code, line = INTERRUPTED, "interrupted"
    if line and (code != INTERRUPTED or os.environ.get("RANK", "0") == "0"):
        print(" ".join(line.splitlines()), file=sys.stderr)
    sys.exit(code)


def _speaks() -> bool:
    """Whether this process says what the user did wrong. What goes wrong before ranks have joined does so on all."""
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return joined or os.environ.get("RANK", "0") == "0"


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the one line for what went wrong."""
    if isinstance(error, UserError):
        return USER_ERROR, f"error: {error}"
    if isinstance(error, typer.TyperException):  # wrong usage; a bare group has shown its help and has no message
        context = getattr(error, "ctx", None)
        hint = " (sparsevit --help shows what there is)" if context is None else f" (see {context.command_path} --help)"
        message = error.format_message()
        return USER_ERROR, f"error: {message.rstrip('.')}{hint}" if message else ""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = f" for {error.filename}" if error.filename else ""
        return USER_ERROR, f"error: no space left on the disk{place}: make room and type the same again"
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return USER_ERROR, f"error: {error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return FAILED, f"error: {type(error).__name__}: {error} (sparsevit --debug … shows where)"
