"""Finds objects in pictures: grcn predict --checkpoint W IMAGE|FOLDER|GLOB...

Writes each picture with its boxes and predictions.json into --output-dir, and prints a line for each picture. Images in
--output-dir are not searched, so that the same command works again.
"""

import argparse
import collections
import glob
import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from grcn import errors
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
# Suffixes of image formats that are not read.
OTHERS = {
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".svg", ".eps", ".ico", ".tga", ".exr",
    ".hdr", ".dds", ".xcf", ".dcm", ".dicom", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
}  # fmt: skip
logger = logging.getLogger("grcn")


def main() -> None:
    """Reads the command line and predicts."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (with all below them) or patterns")
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="checkpoint, run folder, exported folder or .onnx"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="default: predictions")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="minimum score to show (default: 0.5)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: the GPU, if there is one)")
    parser.add_argument("--no-pictures", action="store_true", help="write predictions.json only")
    args = parser.parse_args()
    start_logging()
    if args.batch < 1:
        parser.error(f"argument --batch: at least 1 (got {args.batch})")
    if not math.isfinite(args.score_threshold):
        parser.error(f"argument --score-threshold: a number (got {args.score_threshold})")
    names: dict[Path, Path] = {}
    for file, name in find(args.images, args.output_dir):
        names.setdefault(file, name)
    found = list(names.items())
    with StopSignals() as stop:
        predict(args, found, stop)


def find(words: list[str], output: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the files that the words name, each with its name in the output folder."""
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = searched(sorted(file for file in path.rglob("*") if file.is_file()), path, output)
            below = [file for file in files if file.suffix.lower() in SUFFIXES]
            others = collections.Counter(suffix for file in files if (suffix := file.suffix.lower()) in OTHERS)
            counts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
            if not below:
                got = f" (got {counts})" if others else ""
                raise errors.DataError(
                    f"{path}: no images in it{got}; name a folder with {', '.join(sorted(SUFFIXES))}"
                )
            if others:
                logger.warning("%s: left out %s, which cannot be read; save them as JPEG or PNG", path, counts)
            yield from ((file, file.relative_to(path)) for file in below)
        elif path.exists():
            yield path, Path(path.name)
        elif not glob.has_magic(word):
            raise errors.DataError(f"{word}: no such file or folder; check the path")
        else:
            known = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
            matches = [Path(match) for match in sorted(glob.glob(word, recursive=True))]
            matches = searched(matches, Path(*known), output)
            if not matches:
                raise errors.DataError(f"{word}: nothing matches; check the pattern")
            yield from ((match, Path(match.name)) for match in matches if not match.is_dir())


def searched(files: list[Path], folder: Path, output: Path) -> list[Path]:
    """Removes macOS's ``._`` files, and those in the output folder, from the files found below a folder.

    If the output folder, or one below it, is named explicitly, its files stay.
    """
    own = output.resolve()
    files = [file for file in files if not file.name.startswith("._")]
    if folder.resolve().is_relative_to(own):
        return files
    others = [file for file in files if not file.parent.resolve().is_relative_to(own)]
    left = sum(file.suffix.lower() in SUFFIXES for file in set(files).difference(others))
    if left:
        logger.info("%s: its images are not searched (%d), since it is the output folder", output, left)
    return others


def predict(args: argparse.Namespace, files: list[tuple[Path, Path]], stop: StopSignals) -> None:
    """Predicts in batches; a file that cannot be read is logged and left out, and makes the exit code 3."""
    from tqdm import tqdm

    from grcn.fileio import write_durably
    from grcn.progress import progress_bar
    from grcn.run.load_detector import load_detector
    from grcn.run.predict import as_record
    from grcn.vis.boxes import draw_boxes  # these import torch, for seconds

    predictor = load_detector(args.checkpoint, device=args.device)
    # Detections below the threshold give the best score where nothing is shown.
    minimum = min(args.score_threshold, predictor.model.score_thresh)
    records: list[dict[str, object]] = []
    faults = boxes = 0
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pictures = None if args.no_pictures else targets(files, args.output_dir)
    try:
        for start in progress_bar(range(0, len(files), args.batch), "predict"):
            stop.check()
            batch = []
            for file, _ in files[start : start + args.batch]:
                try:
                    batch.append((file, predictor.read(file)))
                except errors.DataError as error:
                    faults += 1
                    logger.error("left out: %s", error)
            predictions = predictor.predict_all([image for _, image in batch], minimum)
            for (file, image), every in zip(batch, predictions, strict=True):
                found = every.from_score(args.score_threshold)
                height, width = image.shape[1:]
                record = {"file": str(file), "height": height, "width": width, "detections": as_record(found)}
                if pictures is not None:
                    captions = [f"{what} {score:.2f}" for what, score in zip(found.names, found.scores, strict=True)]
                    picture = draw_boxes(image, found.boxes, captions, scale=max(1.0, 320 / width))
                    pictures[file].parent.mkdir(parents=True, exist_ok=True)
                    picture.save(pictures[file], quality=92)
                    record["picture"] = str(pictures[file].relative_to(args.output_dir))
                records.append(record)
                boxes += len(found.boxes)
                counts = collections.Counter(found.names).most_common()
                best = f" (best: {every.names[0]} {every.scores[0]:.2g})" if every.names else ""
                nothing = f"nothing from {args.score_threshold:g}{best}"
                tqdm.write(f"{file}: {', '.join(f'{count} {what}' for what, count in counts) or nothing}")
    finally:  # predictions so far are kept when a signal or a fault ends this early
        document = {
            "checkpoint": str(args.checkpoint),
            "classes": predictor.classes,
            "score_threshold": args.score_threshold,
            "images": records,
        }
        if records:  # otherwise predictions of an earlier run stay
            write_durably(args.output_dir / "predictions.json", (json.dumps(document, indent=1) + "\n").encode())
            summary = f"{len(records)} of {len(files)} images read, {boxes} box{'es' * (boxes != 1)}"
            logger.info("%s: %s", args.output_dir / "predictions.json", summary)
    if faults:
        raise errors.DataError(f"{faults} of {len(files)} images left out; fix or remove them")


def targets(files: list[tuple[Path, Path]], folder: Path) -> dict[Path, Path]:
    """Returns the output path of each file's picture: all different, and none over one of the files."""
    inputs = {file.resolve() for file, _ in files}
    outputs: dict[Path, Path] = {}
    used: set[Path] = set()
    for file, name in files:
        names = (name.with_stem(name.stem + (f"-{n}" if n > 1 else "")) for n in itertools.count(1))
        target = next(path for path in (folder / name.with_suffix(".jpg") for name in names) if path not in used)
        if target.resolve() in inputs:
            raise errors.ConfigError(f"{target}: would be written over an image to read; choose another --output-dir")
        used.add(target)
        outputs[file] = target
    return outputs
