"""Says where the list or annotation of a split may be that is not where the settings say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

USUAL = "set data.root and the splits to what exists"


def remedy(root: Path, file: Path, split: str, others: Iterable[str]) -> str:
    """Says how to set ``data.root`` and the splits where a file of the data set cannot be read.

    Args:
        root: the folder of the data set.
        file: below ``root``, that of ``split``.
        split: as the settings name it.
        others: the splits found below ``root``.

    Returns:
        the end of a message: the right folder, where it is one level above or below; the splits that there are.
    """
    if (root / file).exists():
        return USUAL
    try:
        found = sorted(others)
        same = [name for name in found if name.endswith(f"/{split}")]
        below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        for folder in () if same else (*below, root.parent):
            if (folder / file).is_file():
                where = f"{folder.name}/ is below it" if folder in below else "the data are one folder higher"
                return f"{where}: set data.root={folder}".replace("{", "{{").replace("}", "}}")
    except OSError:
        return USUAL
    shown = ", ".join((same or found)[:5]) + (", ..." if len(same or found) > 5 else "")
    return f"{USUAL} (found {shown})".replace("{", "{{").replace("}", "}}") if found else USUAL
