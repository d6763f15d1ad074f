"""The law of docstrings: every public class, function and method has one, and it names every argument.

CONTRIBUTING.md states the rule. What does not follow it yet stands in ``data/docstring_exceptions.txt``, a list that only
shrinks: whatever follows the rule is to be taken off it.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import consilience

WIDTH = 128
FEW = 2  # so many arguments may be told in a sentence, without a section of their own
EXCEPTIONS = Path(__file__).parent / "data" / "docstring_exceptions.txt"


def public_modules() -> Iterator[Any]:
    """Every module of the package that has no leading underscore in its name; one that needs a missing extra is left out."""
    for info in pkgutil.walk_packages(consilience.__path__, "consilience."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        try:
            yield importlib.import_module(info.name)
        except ImportError:
            continue


def public_objects() -> dict[str, tuple[Any, type | None]]:
    """Qualified name → (class, function or method; the class whose method it is)."""
    objects: dict[str, tuple[Any, type | None]] = {}
    for module in public_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                objects[f"{module.__name__}.{name}"] = (value, None)
            elif inspect.isclass(value):
                objects[f"{module.__name__}.{name}"] = (value, None)
                for method_name, method in vars(value).items():
                    method = plain_function(method)
                    if method is not None and not method_name.startswith("_"):
                        objects[f"{module.__name__}.{name}.{method_name}"] = (method, value)
    return objects


def plain_function(member: Any) -> Callable[..., Any] | None:
    """The function behind a member of a class, or None for anything else."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    if isinstance(member, cached_property):
        return member.func
    return member if inspect.isfunction(member) else None


def argument_names(function: Callable[..., Any], owner: type | None) -> list[str]:
    names = [name for name in inspect.signature(function).parameters if not name.startswith("_")]
    if owner is not None and names[:1] in (["self"], ["cls"], ["ctx"]):
        names = names[1:]
    return names


def constructor_arguments(kind: type) -> list[str]:
    """The arguments of a public class's constructor, if the package defines it."""
    if issubclass(kind, enum.Enum | BaseException) or getattr(kind, "_is_protocol", False):
        return []
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init and not field.name.startswith("_")]
    for base in kind.__mro__:
        if "__init__" in vars(base):
            if not base.__module__.startswith("consilience"):
                return []
            return argument_names(vars(base)["__init__"], base)
    return []


def fills_in_an_interface(name: str, method: Callable[..., Any], owner: type) -> bool:
    """Whether a base class documents the method, and the method takes no argument that the base's does not."""
    for base in owner.__mro__[1:]:
        original = plain_function(vars(base).get(name))
        if original is not None and original.__doc__:
            return set(argument_names(method, owner)) <= set(argument_names(original, base))
        if name in names_in_sections(inspect.cleandoc(base.__doc__ or "")):  # a property in place of an attribute
            return not argument_names(method, owner)
    return False


def names_in_sections(doc: str) -> set[str]:
    """The names that head an entry of a section ``Args:`` or ``Attributes:``, ``a, b: …`` and ``*more: …`` among them."""
    names: set[str] = set()
    section = re.search(r"^(?:Args|Attributes)\b.*:$\n((?:^ +.*\n?|^\s*\n)*)", doc, re.MULTILINE)
    while section:
        for entry in re.findall(r"^ {4}([\w*, ]+):", section[1], re.MULTILINE):
            names.update(name.strip().lstrip("*") for name in entry.split(","))
        doc = doc[section.end() :]
        section = re.search(r"^(?:Args|Attributes)\b.*:$\n((?:^ +.*\n?|^\s*\n)*)", doc, re.MULTILINE)
    return names


def names_in_text(doc: str) -> set[str]:
    """The names that stand in double backquotes."""
    return set(re.findall(r"``\*{0,2}(\w+)", doc))


def faults_of(name: str, item: Any, owner: type | None) -> list[str]:
    """What the docstring of one class, function or method lacks."""
    if owner is not None and fills_in_an_interface(item.__name__, item, owner):
        return []
    doc = inspect.cleandoc(vars(item).get("__doc__") or "") if inspect.isclass(item) else inspect.getdoc(item) or ""
    generated = inspect.isclass(item) and doc.startswith(f"{item.__name__}(")  # dataclass writes one where none is
    if not doc or generated:
        return ["has no docstring"]
    faults = [f"line {line[:40]!r}… is over {WIDTH} wide" for line in doc.splitlines() if len(line) > WIDTH]
    if inspect.isclass(item):
        needed = constructor_arguments(item)
        constructor = vars(item).get("__init__")
        doc += "\n\n" + (inspect.getdoc(constructor) or "" if inspect.isfunction(constructor) else "")
    else:
        needed = argument_names(item, owner)
    named = names_in_sections(doc)
    if len(needed) <= FEW:
        named |= names_in_text(doc)
    missing = [argument for argument in needed if argument not in named]
    if missing:
        faults.append(f"does not tell of {', '.join(missing)}")
    return faults


OBJECTS = public_objects()


def listed_exceptions() -> set[str]:
    lines = EXCEPTIONS.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_public_names_document_every_argument():
    exceptions = listed_exceptions()
    faults = {name: faults_of(name, *OBJECTS[name]) for name in OBJECTS if name not in exceptions}
    text = "\n".join(f"{name} {'; '.join(found)}" for name, found in faults.items() if found)
    assert not text, text


def test_exceptions_only_shrink():
    done = [name for name in sorted(listed_exceptions()) if name not in OBJECTS or not faults_of(name, *OBJECTS[name])]
    assert not done, f"take off data/docstring_exceptions.txt: {', '.join(done)}"


def test_the_walk_meets_every_name_of_the_package():
    walked = {id(item) for item, _ in OBJECTS.values()}
    names = [name for name in consilience.__all__ if name not in ("explainers", "measures", "train")]
    assert [name for name in names if id(getattr(consilience, name)) not in walked] == []


def undocumented(first, second, third):
    """Tells of ``first``, ``second`` and ``third``, but has too many of them for a sentence."""


def documented(first, second):
    """``first`` and ``second`` may stand in a sentence."""


def test_the_law_can_be_broken():
    assert faults_of("undocumented", undocumented, None) == ["does not tell of first, second, third"]
    assert faults_of("documented", documented, None) == []
    assert faults_of("plain", lambda x: x, None) == ["has no docstring"]


@pytest.mark.parametrize(
    ("doc", "told"),
    [
        (
            "One.\n\nArgs:\n    a: first.\n    b, c: both,\n        on two lines.\n    *more: others.\n",
            {"a", "b", "c", "more"},
        ),
        ("One.\n\nArgs (of every one):\n    a: first.\n\nRaises:\n    InputError: never.\n", {"a"}),
        ("One ``a`` only.\n", set()),
    ],
)
def test_sections_are_read(doc, told):
    assert names_in_sections(doc) == told
