"""What a model is trained on, as a picture."""

from __future__ import annotations

from pathlib import Path

from . import build
from .config import Config
from .data.loading import train_batches
from .draw import contact_sheet
from .errors import ConfigError


def browse(cfg: Config, path: Path, images: int) -> None:
    """Draws the first training images, mirrored ones included, before resizing, into a contact sheet."""
    if images < 1 or path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{path}: need at least one image and a .png or .jpg file (got {images} images)")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = build.build_train_split(cfg.data)
    batches = train_batches(
        data.table, data.read_image, seed=cfg.run.seed, batch=images, steps=1, flip=cfg.data.flip,
        drop_empty=cfg.data.drop_empty,
    )  # fmt: skip
    shown, targets = next(batches)
    titles = [f"image {int(target['image_id'])}" for target in targets]
    contact_sheet(shown, targets, data.table.classes, titles=titles).save(path)
    print(path)
