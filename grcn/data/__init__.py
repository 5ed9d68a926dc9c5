"""Data sets: the packed annotation table, its readers, and the batches drawn from it.

``DetectionDataset`` is imported when it is first used: reading annotations needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grcn.data.dataset import DetectionDataset as DetectionDataset


def __getattr__(name: str) -> Any:
    if name != "DetectionDataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grcn.data.dataset import DetectionDataset

    return DetectionDataset
