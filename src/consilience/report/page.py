"""A whole run as one self-contained page: no file beside it, no network, no script but its own.

The words and the markup are in ``templates/``, which Jinja2 fills in. It escapes every value: nothing of a record, a name or a
reason can become markup. What it must not escape are the page's own style and script, which are marked here and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from ..errors import need
from .article import article
from .entry import Entry
from .numbers import minus
from .overview import overview


def page(entries: Sequence[Entry], title: str, failures: Iterable[tuple[str, str]] = ()) -> str:
    """The report over all entries as HTML.

    Args:
        entries: one for each input.
        title: the page's.
        failures: (name, reason) of inputs that could not be explained.

    Raises:
        MissingExtra: Jinja2 is not installed.
    """
    return "".join(pieces(entries, title, failures))


def pieces(entries: Sequence[Entry], title: str, failures: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """The page of :func:`page` in pieces, so that a run of any length needs room for one entry.

    Args:
        entries: may make each entry anew whenever it is asked for; is read twice.
        title: the page's.
        failures: (name, reason) of inputs that could not be explained.

    Raises:
        MissingExtra: Jinja2 is not installed.
    """
    environment = _environment()
    # Marks a text as markup, which is then not escaped. Only for the package's own files.
    raw = need("markupsafe", "report").Markup
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    header = overview(entries, failures)
    shared = header.get("warnings", ())
    yield from environment.get_template("page.html").generate(
        title=str(title),
        # A second protection beside escaping: browsers run this script only, by its hash, and load nothing.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=raw(_asset("page.css")),
        script=raw(script),
        overview=header,
        articles=(article(entry, place, len(entries), shared) for place, entry in enumerate(entries, 1)),
    )


@lru_cache(maxsize=1)
def _environment() -> Any:
    """The templates, with escaping of every value and an error for every unknown name."""
    jinja2 = need("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = minus
    return environment


@lru_cache
def _asset(name: str) -> str:
    """The text of one file in ``templates/``."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
