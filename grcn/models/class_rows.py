"""Maps the rows of a classifier to classes by name, when a detector is trained further on other classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from grcn.fileio import few
from grcn.models.layer_names import layer_name

BACKGROUND = "background"
# The layers that have rows of classes, by their names in a detector.
PREDICTORS = ("roi_heads.heads.cls_score", "roi_heads.heads.bbox_pred")
# Rows of a box regressor for each class, or for all together.
BOX_ROWS = 4


@dataclass(frozen=True)
class ClassRows:
    """For each class of a model, the row of another's weights that it starts from.

    Attributes:
        names: classes of the model, background first.
        source: for each, the row among the other model's classes, background first; None for a new one.
        unknown: requested names that the other model does not have.
    """

    names: tuple[str, ...]
    source: tuple[int | None, ...]
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = [name for name, row in zip(self.names, self.source, strict=True) if row is not None]
        new = [name for name, row in zip(self.names, self.source, strict=True) if row is None]
        fresh = f", {len(new)} new ({few(new)})" if new else ""
        missing = f"; data.same_as: none of the weights' classes is {few(self.unknown)}" if self.unknown else ""
        return f"rows of {len(kept)} of {len(self.names)} classes kept by name ({few(kept)}){fresh}{missing}"

    def placed(self, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns another detector's weights with our predictors, in which each kept row is theirs.

        Predictors of another width, and boxes for all classes beside boxes for each, stay as they are: they are refused
        with all other weights that do not fit.

        Args:
            theirs, ours: weights by name; layer names work too.
        """
        found = dict(theirs)
        for name, tensor in ours.items():
            layer = layer_name(name).rpartition(".")[0]
            if layer not in PREDICTORS or name not in theirs or theirs[name].shape[1:] != tensor.shape[1:]:
                continue
            if layer != PREDICTORS[1] or BOX_ROWS not in (len(tensor), len(theirs[name])):
                found[name] = self._placed(theirs[name], tensor)
        return found

    def _placed(self, theirs: Tensor, ours: Tensor) -> Tensor:
        placed, per_class = ours.clone(), len(ours) // len(self.names)
        for row, source in enumerate(self.source):
            if source is not None:
                there = theirs[source * per_class : (source + 1) * per_class]
                placed[row * per_class : (row + 1) * per_class] = there.to(placed.dtype)
        return placed


def place_rows(theirs: Sequence[str], ours: Sequence[str], same_as: Mapping[str, str] | None = None) -> ClassRows:
    """Finds the row of each of our classes among theirs: by its alias, or else by its name.

    Names that differ in case, or in how their words are joined, are the same unless there are two such.

    Args:
        theirs, ours: names of the labels 1..C.
        same_as: for some of our classes, what the others call them.
    """
    rows = {name: row for row, name in reversed(list(enumerate(theirs, start=1)))}
    plain = [_plain(name) for name in theirs]
    rows = {name: plain.index(_plain(name)) + 1 for name in ours if plain.count(_plain(name)) == 1} | rows
    others = {name: other for name, other in (same_as or {}).items() if name in ours}
    unknown = tuple(other for name, other in others.items() if theirs and other not in rows and name not in rows)
    source = [rows.get(others.get(name, name), rows.get(name)) for name in ours]
    return ClassRows((BACKGROUND, *ours), (0, *source), unknown)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
