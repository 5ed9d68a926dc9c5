"""A web server that misbehaves on request, archives good and bad, and tiny data sets made of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import socket
import struct
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from waiting import wait_for

from grcn.apps.prepare_data.prepare import prepare
from grcn.apps.prepare_data.published import Archive, DataSet, Split
from grcn.data import coco, voc
from grcn.engine.signals import StopSignals


@dataclass
class Answer:
    """How a request is answered.

    Attributes:
        status: an error, and no file.
        location: where the file is instead.
        body: this, and not the file.
        ranges: whether a part may be asked for.
        careless: a part of any version is sent.
        validators: whether the server says which version of the file it sends.
        length: a wrong Content-Length; 0 sends none.
        cut: bytes after which the connection ends.
        reset: it ends with a reset.
        until: before it ends, there is silence until this holds.
    """

    status: int = 0
    location: str = ""
    body: bytes | None = None
    ranges: bool = True
    careless: bool = False
    validators: bool = True
    length: int | None = None
    cut: int | None = None
    reset: bool = False
    until: Callable[[], bool] = lambda: True


@dataclass
class Request:
    """What was asked for, and the status of the answer."""

    path: str
    start: str | None
    version: str | None
    status: int = 0


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path. The requests are answered as ``plan`` says, one by one, and then as ``usual``.

    Attributes:
        impatient: whether a silence has lasted so long that the server ended it.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.plan: list[Answer] = []
        self.usual = Answer()
        self.requests: list[Request] = []
        self.impatient = False
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that were killed."""
        self.impatient = self.impatient or isinstance(sys.exception(), AssertionError)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answer = self.server.plan.pop(0) if self.server.plan else self.server.usual
        request = Request(self.path, self.headers.get("Range"), self.headers.get("If-Range"))
        self.server.requests.append(request)
        body = self.server.files.get(self.path) if answer.body is None else answer.body
        headers: dict[str, object] = {}
        if answer.location:
            body, request.status, headers["Location"] = b"", 302, answer.location
        elif answer.status or body is None:
            body, request.status = b"an error page", answer.status or 404
        else:
            body, request.status = self._version(request, answer, body, headers)
        if answer.length != 0:
            headers["Content-Length"] = len(body) if answer.length is None else answer.length
        self.send_response(request.status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[: answer.cut])
        self.wfile.flush()
        wait_for(answer.until)
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _version(self, request: Request, answer: Answer, body: bytes, headers: dict[str, object]) -> tuple[bytes, int]:
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        if answer.validators:
            headers["ETag"] = tag
        if not answer.ranges or request.start is None or (request.version != tag and not answer.careless):
            return body, 200
        start = int(request.start.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return b"", 416
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return body[start:], 206

    def log_message(self, *_: object) -> None:
        pass


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def tar(files: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar archive; a TarInfo stands for itself, under the name of its key."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, contents in files.items():
            info = tarfile.TarInfo(name) if isinstance(contents, bytes) else contents
            info.name = name
            if isinstance(contents, bytes):
                info.size = len(contents)
                archive.addfile(info, io.BytesIO(contents))
            else:
                archive.addfile(info)
    return buffer.getvalue()


def zipped(files: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """A zip archive, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files:
            archive.writestr(name, contents)
    return buffer.getvalue()


@dataclass
class Published:
    """A tiny data set: its description, and its archives by name."""

    data_set: DataSet
    archives: dict[str, bytes]
    served: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.served = {f"/{name}": contents for name, contents in self.archives.items()}


def tiny_voc(url: str = "http://127.0.0.1:9/") -> Published:
    """Two archives that both go into VOC2007, as the published ones do."""

    def files(split: str, stems: Sequence[str]) -> dict[str, bytes | tarfile.TarInfo]:
        xml = "<annotation><size><width>60</width><height>50</height></size>{}</annotation>"
        box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
        folder = tarfile.TarInfo()
        folder.type = tarfile.DIRTYPE
        found: dict[str, bytes | tarfile.TarInfo] = {"VOCdevkit/VOC2007/Annotations": folder}
        for k, stem in enumerate(stems):
            objects = f"<object><name>dog</name>{box}</object>" * (k + 1)
            found[f"VOCdevkit/VOC2007/Annotations/{stem}.xml"] = xml.format(objects).encode()
            found[f"VOCdevkit/VOC2007/JPEGImages/{stem}.jpg"] = noise(40_000, seed=int(stem))
        found[f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt"] = "\n".join(stems).encode()
        return found

    archives = {
        "trainval.tar": tar(files("trainval", ["000001", "000002", "000003"])),
        "test.tar": tar(files("test", ["000004", "000005"])),
    }
    makes = {name: f"VOC2007/ImageSets/Main/{Path(name).stem}.txt" for name in archives}
    splits = (Split("VOC2007/trainval", 3, 6), Split("VOC2007/test", 2, 3))
    return Published(DataSet("tiny", describe(archives, makes, url, "VOCdevkit"), splits, voc.load), archives)


def tiny_coco(url: str = "http://127.0.0.1:9/") -> Published:
    """Three archives, of annotations and of two splits' images."""
    counts = {"train2014": 3, "val2014": 2}
    documents = {}
    images = {}
    for split, count in counts.items():
        entries = [{"id": k, "file_name": f"{split}_{k}.jpg", "width": 60, "height": 50} for k in range(count)]
        boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [1, 2, 30, 20]} for k in range(count)]
        document = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
        documents[f"annotations/instances_{split}.json"] = json.dumps(document).encode()
        images[split] = [(f"{split}/{entry['file_name']}", noise(20_000)) for entry in entries]
    archives = {"annotations.zip": zipped(list(documents.items()))}
    archives |= {f"{split}.zip": zipped([(f"{split}/", b""), *files]) for split, files in images.items()}
    makes = {"annotations.zip": "annotations/instances_train2014.json", **{f"{split}.zip": split for split in counts}}
    splits = tuple(Split(split, count, count) for split, count in counts.items())
    return Published(DataSet("tinycoco", describe(archives, makes, url, ""), splits, coco.load), archives)


def describe(archives: dict[str, bytes], makes: dict[str, str], url: str, inside: str) -> tuple[Archive, ...]:
    """Describes archives as published at ``url``; ``makes`` and ``inside`` as in :class:`Archive`."""
    return tuple(
        Archive(name, len(body), hashlib.md5(body).hexdigest(), (url,), len(body) * 2, makes[name], inside)
        for name, body in archives.items()
    )


def tree(root: Path) -> dict[str, bytes]:
    """What lies below a folder, the lock apart; folders that hold nothing too."""
    paths = (path for path in root.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in paths}


def has(path: Path, size: int) -> bool:
    """Whether a file is there and has this many bytes."""
    return path.exists() and path.stat().st_size == size


def become(data_set: DataSet, root: Path, patch: Callable[[], None] | None) -> None:
    """Prepares a data set, for a process of its own."""
    os.environ["no_proxy"] = "127.0.0.1"  # of the test's environment it knows nothing
    if patch is not None:
        patch()
    with StopSignals() as stop:
        prepare(data_set, root, stop=stop)
