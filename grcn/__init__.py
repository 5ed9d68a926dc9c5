"""G-RCN: two-stage detectors whose classification and localization read different feature maps (arXiv 2012.03677).

``__init__.pyi`` lists the public names. Each is imported when it is first used: torch takes seconds to import, and a
mistake in a config is reported before.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    alias.asname: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = list(_MODULES)
del ast, Path


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
