"""Black-and-white pictures of circuit boards with defects, in VOC layout: thin lines, objects of 11 to 31 pixels."""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

CLASSES = ("hole", "open", "short", "spur")
Box = tuple[float, float, float, float]


def board(random: Random, side: int) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draws white tracks on black, all across or all down, and a few defects on them."""
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    pitch, width, across = random.randint(20, 29), random.randint(6, 9), random.random() < 0.5

    def turned(box: Box) -> Box:
        return (box[1], box[0], box[3], box[2]) if across else box

    def rectangle(x: float, y: float, half_x: float, half_y: float, ink: int = 255) -> None:
        draw.rectangle(turned((x - half_x, y - half_y, x + half_x, y + half_y)), fill=ink)

    def disc(x: float, y: float, radius: float, ink: int = 255) -> None:
        draw.ellipse(turned((x - radius, y - radius, x + radius, y + radius)), fill=ink)

    tracks = list(range(pitch // 2, side, pitch))
    for x in tracks:
        start, end = random.randint(-40, 39), random.randint(side - 60, side + 39)
        rectangle(x, (start + end) / 2, width / 2, (end - start) / 2)
        for _ in range(random.randint(0, 2)):
            disc(x, random.randint(20, side - 21), width)
    found: list[tuple[str, Box]] = []
    places: list[tuple[int, int]] = []
    for _ in range(random.randint(3, max(3, side // 40))):
        track, y = random.randint(1, len(tracks) - 2), random.randint(45, side - 65)
        if any(abs(track - i) < 2 and abs(y - j) < 40 for i, j in places):
            continue
        places.append((track, y))
        x, kind = tracks[track], random.choice(CLASSES)
        if kind == "open":
            gap = random.randint(2, 4)
            rectangle(x, y, width / 2 + 3, gap, ink=0)
            half = width / 2 + 3, gap + 4
        elif kind == "short":
            thick = random.randint(3, 5)
            rectangle(x + pitch / 2, y, pitch / 2, thick / 2)
            x, half = x + pitch / 2, (pitch / 2 + 1, thick / 2 + 4)
        elif kind == "hole":
            radius = random.randint(2, 3)
            disc(x, y, width)
            disc(x, y, radius, ink=0)
            half = radius + 5, radius + 5
        else:
            radius = random.randint(3, 4)
            x += random.choice((-1, 1)) * (width / 2 + 1)
            disc(x, y, radius)
            half = radius + 4, radius + 4
        box = turned((x - half[0], y - half[1], x + half[0], y + half[1]))
        found.append((kind, (max(0, box[0]), max(0, box[1]), min(side, box[2]), min(side, box[3]))))
    return image, found


def write_boards(root: Path, counts: dict[str, int], side: int, seed: int = 0) -> None:
    """Writes ``root/boards`` with a list of each name in ``counts`` and so many pictures."""
    folder, random, number = root / "boards", Random(seed), 0
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for name, count in counts.items():
        stems = [f"{number + i:05d}" for i in range(count)]
        number += count
        for stem in stems:
            image, objects = board(random, side)
            image.save(folder / "JPEGImages" / f"{stem}.png")
            boxes = "".join(
                f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{box[0] + 1:.0f}</xmin>"
                f"<ymin>{box[1] + 1:.0f}</ymin><xmax>{box[2]:.0f}</xmax><ymax>{box[3]:.0f}</ymax></bndbox></object>"
                for kind, box in objects
            )
            size = f"<size><width>{side}</width><height>{side}</height><depth>1</depth></size>"
            text = f"<annotation><filename>{stem}.png</filename>{size}{boxes}</annotation>"
            (folder / "Annotations" / f"{stem}.xml").write_text(text)
        (folder / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
