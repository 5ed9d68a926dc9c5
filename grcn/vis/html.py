"""Pages of HTML in one file each, which load nothing from elsewhere.

Names of files and classes are whatever a stranger wrote: the templates escape every value they are given.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def data_uri(content: bytes, kind: str) -> str:
    """Returns a picture as an address that holds all of it.

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
        template: path below the package, as ``run/report.html``; it extends ``vis/page.html``.
        values: what it names.

    Returns:
        UTF-8. A letter it does not have, which stands for a byte of a file's name, is shown as an escape.
    """
    return _TEMPLATES.get_template(template).render(values).encode(errors="backslashreplace")
