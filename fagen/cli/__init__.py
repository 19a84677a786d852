"""The command line: parse options into model objects, call one function, print.

Results go to stdout, progress and errors to stderr. Only typer and the standard library are
imported here; what a verb needs, it imports when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from fagen.cli import (
    benchmark,
    capturing,
    checking,
    drawing,
    history,
    kernel,
    knowledge,
    machine,
    refreshing,
    search,
)
from fagen.errors import INTERRUPTED, FagenError, UsageError

app = typer.Typer(
    name="fagen",
    help="Generate, verify and tune FlashAttention kernels for this machine, and emit them as a "
    "package.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)

VERBS = (
    machine.doctor, machine.devices,
    kernel.space, kernel.render, kernel.build, kernel.verify, kernel.measure,
    search.tune, knowledge.list_, knowledge.explain, knowledge.emit, benchmark.bench, drawing.draw,
    history.report, history.export, capturing.capture, checking.check,
    refreshing.refresh,
)
for verb in VERBS:
    app.command(verb.__name__.strip("_"))(verb)

# click's own exception for bad options; Typer does not export it.
_BAD_OPTION: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = app(given, prog_name="fagen", standalone_mode=False)
        if code == INTERRUPTED:  # Typer's answer to Ctrl-C outside of a search
            sys.stderr.write("interrupted\n")
        return code if isinstance(code, int) else 0
    except FagenError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 0
    except _BAD_OPTION as error:
        return _report(_usage(error))


def _report(error: FagenError) -> int:
    kind = "interrupted" if error.exit_code == INTERRUPTED else "error"
    sys.stderr.write(f"{kind}: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code


def _usage(error: Exception) -> UsageError:
    """What click says, in our form."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fagen"
    message = str(getattr(error, "format_message", lambda: error)()).strip()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), f"{command} --help")
