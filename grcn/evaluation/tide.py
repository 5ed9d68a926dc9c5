"""TIDE: six kinds of error, and the AP that each costs (Bolya, Foley, Hays, Hoffman 2020, arXiv 2008.08115).

Detections are matched at IoU 0.5 as by COCO (:func:`grcn.evaluation.matching.match`). Each one that matches nothing has
one error, the first of these that fits; IoUs are with objects that have to be found, whether matched or not:

- ``Loc``: IoU 0.1 to 0.5, both inclusive, with the object of its class that it overlaps most: badly localized.
- ``Cls``: IoU of at least 0.5 with an object of another class: wrongly classified.
- ``Dupe``: IoU above 0.5 with an object of its class, which a better-scored detection has matched.
- ``Bkg``: IoU of at most 0.1 with every object: it is background.
- ``Both``: all others: badly localized on an object of another class.

``Miss`` is an object that no detection matches and no ``Loc`` or ``Cls`` error is about.

The cost of an error is the rise of AP50 (COCO's, the mean over classes) when all errors of the kind are fixed and
nothing else is. Of the ``Loc`` and ``Cls`` errors about one object that nothing matches, the best-scored becomes a true
positive of the object's class; all other false positives of the kind vanish, and missed objects need not be found any
more. The six gains do not add up to what AP lacks. ``FP`` and ``FN`` are the gains where all false positives vanish,
and where no unmatched object has to be found.

This is what the authors' program computes, with two differences that are COCO's: at most 100 detections of a class,
not of all classes, count in an image; and classes without objects to find are no part of the mean. A detection that
matches a difficult or crowd object counts for nothing, as in :mod:`grcn.evaluation.coco`; such objects take no other
part. hotcoco's ``tide_errors`` gives the same figures unless a false positive touches such an object of its class:
there it may be ``Loc``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation.bootstrap import Curves
from grcn.evaluation.detections import Detections, Matches
from grcn.evaluation.matching import (
    Pairs,
    count_objects,
    ignored_objects,
    match,
    most_overlapped,
    objects_to_find,
    ranked,
    slices_of_classes,
)

FOREGROUND, BACKGROUND = 0.5, 0.1
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
_CLS, _LOC, _BOTH, _DUPE, _BKG, _MISS = range(len(ERRORS))


class Verdicts(NamedTuple):
    """The error of each of K detections and M objects.

    Attributes:
        order: int64 ``[D]``, the detections that are true or false positives, best first.
        hits: bool ``[K]``, the true positives.
        errors: int64 ``[K]``, the error of each false positive as its index in :data:`ERRORS`; -1 for others.
        targets: int64 ``[K]``, the object that a ``Cls`` or ``Loc`` error is about; -1 for others.
        fixed: bool ``[K]``, the ``Cls`` and ``Loc`` errors that become true positives when fixed.
        own_ious: float64 ``[K]``, IoU with the object of its class that a detection overlaps most.
        matches: int64 ``[K]``, the object that a true positive matches; -1 for others.
        unmatched: bool ``[M]``, objects to find that no detection matches.
        missed: bool ``[M]``, the ``Miss`` errors: those of ``unmatched`` that nothing is about.
    """

    order: np.ndarray
    hits: np.ndarray
    errors: np.ndarray
    targets: np.ndarray
    fixed: np.ndarray
    own_ious: np.ndarray
    matches: np.ndarray
    unmatched: np.ndarray
    missed: np.ndarray


def judge(table: Annotations, found: Detections, pairs: Pairs) -> Verdicts:
    """Finds the error of each detection and object.

    Args:
        pairs: of :func:`grcn.evaluation.matching.overlapping`.
    """
    count, ignored = len(found.rows), ignored_objects(table)
    same = found.labels[pairs.detections] == table.labels[pairs.objects]
    to_find = ~ignored[pairs.objects]
    order = ranked(table, found)
    matches = match(table, pairs.where(same), order, count, FOREGROUND)
    order = order[(matches[order] < 0) | ~ignored[matches[order]]]
    is_scored = np.zeros(count, dtype=bool)
    is_scored[order] = True
    hits = is_scored & (matches >= 0)

    own, own_ious = most_overlapped(pairs.where(same & to_find), count)
    other, other_ious = most_overlapped(pairs.where(~same & to_find), count)
    conditions = {
        _LOC: (own_ious >= BACKGROUND) & (own_ious <= FOREGROUND),
        _CLS: other_ious >= FOREGROUND,
        _DUPE: own_ious > FOREGROUND,
        _BKG: other_ious <= BACKGROUND,
    }
    errors = np.select(list(conditions.values()), list(conditions), _BOTH)
    errors[~is_scored | hits] = -1
    targets = np.select([errors == _LOC, errors == _CLS], [own, other], -1)

    unmatched = ~ignored
    unmatched[matches[hits]] = False
    about = order[(targets[order] >= 0) & unmatched[targets[order]]]
    recovered, first = np.unique(targets[about], return_index=True)
    fixed = np.zeros(count, dtype=bool)
    fixed[about[first]] = True
    missed = unmatched.copy()
    missed[recovered] = False
    return Verdicts(order, hits, errors, targets, fixed, own_ious, np.where(hits, matches, -1), unmatched, missed)


def gains(table: Annotations, found: Detections, verdicts: Verdicts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Computes AP50, and by how much it rises when errors of one kind are fixed.

    Returns:
        AP50 of each class, float64 ``[C]``, NaN where there are no objects to find; and the gains by class, with the
        keys of :data:`ERRORS`, ``FP`` and ``FN``.
    """
    to_find = objects_to_find(table).any(axis=1)
    once = np.ones(len(table), dtype=np.int64)
    before, *after = (
        np.where(to_find, Curves(matches).average_precision(once)[0], np.nan)
        for matches in matches_without(table, found, verdicts).values()
    )
    return before, dict(zip((*ERRORS, "FP", "FN"), (values - before for values in after), strict=True))


def matches_without(table: Annotations, found: Detections, verdicts: Verdicts) -> dict[str, list[Matches]]:
    """Returns the input of AP50, as measured, under ``""``, and without the errors of each kind.

    The keys are those of :func:`gains`. Objects that need not be found any more are not in ``objects``; a class whose
    objects are all among them has an AP of 0, and is still part of the mean.
    """
    found_by_kind = {}
    for name, fixed in _versions(table, found, verdicts).items():
        chosen = verdicts.order[fixed.kept[verdicts.order]]
        chosen = chosen[np.argsort(fixed.labels[chosen], kind="stable")]
        rows, hits = found.rows[chosen], fixed.hits[None, chosen]
        left = count_objects(table, ~ignored_objects(table) & ~fixed.lost)
        found_by_kind[name] = [
            Matches(rows[own], hits[:, own], np.ones_like(hits[:, own]), left[label])
            for label, own in enumerate(slices_of_classes(fixed.labels[chosen], len(table.classes)))
        ]
    return found_by_kind


class _Fixed(NamedTuple):
    """Detections and objects where errors of one kind are fixed."""

    labels: np.ndarray  # int64 [K]
    hits: np.ndarray  # bool [K], the true positives
    kept: np.ndarray  # bool [K], false for false positives that vanish
    lost: np.ndarray  # bool [M], objects that need not be found any more


def _versions(table: Annotations, found: Detections, verdicts: Verdicts) -> dict[str, _Fixed]:
    """Returns the detections as they are, under ``""``, and where one kind of error is fixed."""
    hits, errors, labels = verdicts.hits, verdicts.errors, found.labels
    everything, nothing = np.ones(len(hits), dtype=bool), np.zeros(len(table.labels), dtype=bool)
    versions = {"": _Fixed(labels, hits, everything, nothing)}
    for error in (_CLS, _LOC, _BOTH, _DUPE, _BKG):
        fixed = verdicts.fixed & (errors == error)
        own = np.where(fixed, table.labels[verdicts.targets], labels)
        versions[ERRORS[error]] = _Fixed(own, hits | fixed, fixed | (errors != error), nothing)
    versions[ERRORS[_MISS]] = _Fixed(labels, hits, everything, verdicts.missed)
    versions["FP"] = _Fixed(labels, hits, hits, nothing)
    versions["FN"] = _Fixed(labels, hits, everything, verdicts.unmatched)
    return versions
