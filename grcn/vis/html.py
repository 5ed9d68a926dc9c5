"""Renders self-contained HTML pages from templates.

Names of files and classes are untrusted: the templates escape every value.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def data_uri(content: bytes, kind: str) -> str:
    """Returns a picture as a ``data:`` URI.

    Args:
        content: of the file.
        kind: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


_TEMPLATES = Environment(
    loader=PackageLoader("grcn", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["data_uri"] = data_uri


def render(template: str, **values: object) -> bytes:
    """Fills a template in.

    Args:
        template: path below the package, such as ``run/report.html``; it extends ``vis/page.html``.
        values: those of its variables.

    Returns:
        UTF-8. A lone surrogate, which represents a byte of a file's name, is shown as an escape.
    """
    return _TEMPLATES.get_template(template).render(values).encode(errors="backslashreplace")
