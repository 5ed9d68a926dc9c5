"""Pages of HTML in one file each, which load nothing from elsewhere.

Names of files and classes are whatever a stranger wrote: everything that is not HTML already goes through
:func:`text`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2; } table { border-collapse: collapse; margin: .5em 0 1.5em; }
td, th { padding: .15em .8em .15em 0; text-align: right; vertical-align: top; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; }
details { margin: .4em 0; border-left: .4em solid #999; padding-left: .8em; } summary { cursor: pointer; }
pre, .places { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
figure { display: inline-block; margin: .5em .5em .5em 0; vertical-align: top; }
figure img { max-width: 100%; } figcaption { font-size: 12px; overflow-wrap: anywhere; }
"""


def text(value: object) -> str:
    """Escapes what is not HTML."""
    return html.escape(str(value), quote=True)


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """Returns a page; a browser refuses whatever would have to be loaded or run.

    Args:
        parts: HTML.
        style: CSS beside that of all pages.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out cells that are HTML already; one that is a ``<td>`` itself is taken as it is."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell if cell[:3] == "<td" else f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    ]
    return "<table>" + "\n".join(lines) + "</table>"


def picture(content: bytes, caption: str = "", kind: str = "png", width: str = "100%") -> str:
    """Returns a picture with its caption.

    Args:
        content: of the file.
        kind: ``png`` or ``jpeg``.
        width: at most so wide, in CSS.
    """
    data = base64.b64encode(content).decode()
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure style="max-width:{width}"><img alt="" src="data:image/{kind};base64,{data}">{below}</figure>'
