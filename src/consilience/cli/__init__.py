"""The command line: ``consilience explain | evaluate | report | methods | doctor``.

Exit codes: 0 all done; 1 finished, some inputs failed; 2 nothing done; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import ConsilienceError
from ..results.files import versions
from .terminal import say, tolerate


def parser() -> argparse.ArgumentParser:
    """Every command and option. Light: nothing of torch is imported to show the help."""
    top = argparse.ArgumentParser(
        prog="consilience",
        description="Explain a model's predictions, measure the explanations, combine them optimally.",
    )
    top.add_argument("--version", action="version", version=f"consilience {versions()['consilience']}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    one = commands.add_parser("explain", help="explain images: maps, measures, the optimal combination, a report")
    one.add_argument(
        "--image",
        action="append",
        required=True,
        metavar="FILE|sample|sample:NAME",
        help="repeat for more; sample is all packaged photographs",
    )
    _model(one)
    one.add_argument("--target", default="predicted", metavar="CLASS|predicted", help="a class number or a label")
    one.add_argument("--kind", default="logit", choices=("logit", "probability", "log_probability", "margin"))
    one.add_argument(
        "--methods", default="standard", help="a preset or names, separated by commas; see `consilience methods`"
    )
    one.add_argument("--objective", default="opt", help="a name or a sum, e.g. 'relative_sensitivity + 0.5*infidelity'")
    one.add_argument(
        "--fit-draws",
        metavar="N|average_sensitivity=10,infidelity=256",
        help="draws that fit the weights; default: --draws auto",
    )
    one.add_argument("--fresh-draws", metavar="N|average_sensitivity=20,infidelity=512", help="draws that judge them")
    one.add_argument(
        "--draws",
        choices=("auto", "paper"),
        help="auto: until more would hardly pay; paper: 50 of each to fit, 200 to judge",
    )
    one.add_argument(
        "--resolved-draws",
        type=int,
        default=2,
        metavar="N",
        help="neighbours at which weights are solved anew (default 2, 0 for none)",
    )
    one.add_argument(
        "--features", default="pixels", choices=("pixels", "elements", "patches"), help="what is attributed"
    )
    one.add_argument("--choice", default="convex", choices=("convex", "cross_validated"))
    one.add_argument("--signed", action="store_true", help="allow negative weights")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", default="cpu")
    one.add_argument("--max-batch", default="auto", metavar="N|auto", help="rows in flight")
    one.add_argument("--precision", choices=("bfloat16", "float16"), help="run the model under autocast")
    one.add_argument("--dry-run", action="store_true", help="print evaluations, memory and time, and explain nothing")
    one.add_argument(
        "--out", required=True, metavar="DIR", help="each image joins it when finished; the same command goes on"
    )

    two = commands.add_parser("report", help="make the report of a finished run again, from its files")
    two.add_argument("directory", metavar="DIR")
    two.add_argument("--out", metavar="FILE", help="default DIR/report.html")

    three = commands.add_parser("methods", help="list methods, objectives, criteria and measures, or show one in full")
    three.add_argument("name", nargs="?", help="show one in full")
    three.add_argument("--markdown", action="store_true", help="every card, as the documentation has it")

    five = commands.add_parser("evaluate", help="measure methods and their combinations over many images")
    five.add_argument(
        "--image", action="append", required=True, metavar="FILE|DIR|sample", help="repeat for more; all in a folder"
    )
    _model(five)
    five.add_argument("--target", default="predicted", metavar="CLASS|predicted")
    five.add_argument("--methods", default="standard")
    five.add_argument("--measures", default="default", help="names or a set; see `consilience methods`")
    five.add_argument("--objective", default="opt", help="of the consensus; none for no consensus")
    five.add_argument("--rows", help="what to judge (default: methods, mean, consensus)")
    five.add_argument("--fit-draws", metavar="N|average_sensitivity=10,infidelity=256")
    five.add_argument("--seed", type=int, default=0)
    five.add_argument("--device", default="cpu")
    five.add_argument("--max-batch", default="auto", metavar="N|auto")
    five.add_argument(
        "--out",
        required=True,
        metavar="FILE.json",
        help="written every few seconds and at the end; a second run goes on",
    )

    four = commands.add_parser("doctor", help="which methods are valid for a model, and the proof")
    _model(four)
    four.add_argument("--image", default="sample:chelsea", metavar="FILE|sample:NAME")
    four.add_argument("--target", default="predicted", metavar="CLASS|predicted")
    four.add_argument("--methods", help="only these")
    four.add_argument("--device", default="cpu")
    return top


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="demo|torchvision:NAME|timm:NAME")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", help="a state dict (.pth, .safetensors); never executed")
    weights.add_argument("--random-weights", action="store_true")
    command.add_argument(
        "--labels", metavar="FILE", help="class names: one per line, CSV with class_index and name, or JSON"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    tolerate(sys.stdout, sys.stderr)
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command is None:
        top.print_help()
        return 0
    try:
        return _command(arguments.command)(arguments)
    except ConsilienceError as error:
        say(f"consilience: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("consilience: interrupted", error=True)
        return 130
    except BrokenPipeError:  # `consilience methods | head`
        sys.stderr.close()
        return 0


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Import what runs a command, which takes seconds: torch comes with it."""
    with _quiet_interrupt():
        return importlib.import_module(f".{name}", __name__).run


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """An interrupt while modules are imported ends the process at once. There is nothing to hand back yet, and as an
    exception it would surface as whatever the module that it hits makes of it."""

    def leave(*_: object) -> None:
        os.write(2, b"consilience: interrupted\n")
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread, which gets no interrupts
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
