"""The options of every command. This module imports nothing of torch, so that the help is shown at once."""

from __future__ import annotations

import argparse
from typing import Any

from ..results.files import versions


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="consilience",
        description="Explain a model's predictions, measure the explanations, combine them optimally.",
    )
    top.add_argument("--version", action="version", version=f"consilience {versions()['consilience']}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _add_explain(commands)
    _add_report(commands)
    _add_methods(commands)
    _add_evaluate(commands)
    _add_doctor(commands)
    return top


def _add_explain(commands: Any) -> None:
    command = commands.add_parser("explain", help="explain images: maps, measures, the optimal combination, a report")
    command.add_argument(
        "--image",
        action="append",
        required=True,
        metavar="FILE|sample|sample:NAME",
        help="repeat for more; sample is all packaged photographs",
    )
    _add_model(command)
    command.add_argument("--target", default="predicted", metavar="CLASS|predicted", help="a class number or a label")
    command.add_argument("--kind", default="logit", choices=("logit", "probability", "log_probability", "margin"))
    command.add_argument(
        "--methods", default="standard", help="a preset or names, separated by commas; see `consilience methods`"
    )
    command.add_argument(
        "--objective", default="posterior", help="a name or a sum, e.g. 'relative_sensitivity + 0.5*infidelity'"
    )
    command.add_argument(
        "--fit-draws",
        metavar="N|average_sensitivity=10,infidelity=256",
        help="draws that fit the weights; N: as many neighbours as masks; default: --draws auto",
    )
    command.add_argument(
        "--fresh-draws",
        default="auto",
        metavar="auto|N|average_sensitivity=20,infidelity=512",
        help="draws that judge them; auto: until it is decided what is better (default)",
    )
    command.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="at which that is decided (default 0.95)"
    )
    command.add_argument("--quick", action="store_true", help="the answer alone: nothing judges it")
    command.add_argument(
        "--draws",
        choices=("auto", "paper"),
        help="auto: until more would hardly pay; paper: 50 of each to fit, 200 to judge",
    )
    command.add_argument(
        "--resolved-draws",
        type=int,
        default=0,
        metavar="N",
        help="neighbours at which weights are solved anew (default 0: none)",
    )
    command.add_argument(
        "--features", default="pixels", choices=("pixels", "elements", "patches"), help="what is attributed"
    )
    command.add_argument("--choice", default="convex", choices=("convex", "cross_validated"))
    command.add_argument("--signed", action="store_true", help="allow negative weights")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cpu")
    command.add_argument("--max-batch", default="auto", metavar="N|auto", help="rows in flight")
    command.add_argument("--precision", choices=("bfloat16", "float16"), help="run the model under autocast")
    command.add_argument(
        "--dry-run", action="store_true", help="print evaluations, memory and time, and explain nothing"
    )
    command.add_argument(
        "--out", required=True, metavar="DIR", help="each image joins it when finished; the same command goes on"
    )


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report", help="make the report of a finished run again from its files, or show an evaluation"
    )
    command.add_argument("directory", metavar="DIR|FILE.json")
    command.add_argument("--out", metavar="FILE", help="default DIR/report.html")


def _add_methods(commands: Any) -> None:
    command = commands.add_parser(
        "methods", help="list methods, objectives, criteria and measures, or show one in full"
    )
    command.add_argument("name", nargs="?", help="show one in full")
    command.add_argument("--markdown", action="store_true", help="every card, as the documentation has it")


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="measure methods and their combinations over many images")
    command.add_argument(
        "--image", action="append", required=True, metavar="FILE|DIR|sample", help="repeat for more; all in a folder"
    )
    _add_model(command)
    command.add_argument("--target", default="predicted", metavar="CLASS|predicted")
    command.add_argument("--methods", default="standard")
    command.add_argument("--measures", default="default", help="names or a set; see `consilience methods`")
    command.add_argument("--objective", default="posterior", help="of the consensus; none for no consensus")
    command.add_argument("--rows", help="what to judge (default: methods, mean, consensus)")
    command.add_argument("--fit-draws", metavar="N|average_sensitivity=10,infidelity=256")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cpu")
    command.add_argument("--max-batch", default="auto", metavar="N|auto")
    command.add_argument(
        "--out",
        required=True,
        metavar="FILE.json",
        help="written every few seconds and at the end; a second run goes on",
    )


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser("doctor", help="which methods are valid for a model, and the proof")
    _add_model(command)
    command.add_argument("--image", default="sample:chelsea", metavar="FILE|sample:NAME")
    command.add_argument("--target", default="predicted", metavar="CLASS|predicted")
    command.add_argument("--methods", help="only these")
    command.add_argument("--device", default="cpu")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="demo|torchvision:NAME|timm:NAME")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", help="a state dict (.pth, .safetensors); never executed")
    weights.add_argument("--random-weights", action="store_true")
    command.add_argument(
        "--labels", metavar="FILE", help="class names: one per line, CSV with class_index and name, or JSON"
    )
