"""A progress bar writes only a few lines to a file."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

from grcn import progress
from grcn.progress import progress_bar, start_logging


def test_a_file_gets_lines_and_none_of_what_is_done_at_once(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    start_logging()
    with progress_bar(desc="train", total=3) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix(loss="1.5", refresh=False)
            logging.getLogger("grcn").info("logged")
        assert list(progress_bar(range(2), "inner", leave=False)) == [0, 1]
    monkeypatch.setattr(progress, "_SECONDS", 60.0)
    assert list(progress_bar(range(2), "evaluate", leave=False)) == [0, 1]
    written = capfd.readouterr().err
    assert "\x1b" not in written
    lines = written.splitlines()
    assert "\r" not in written and "\n\n" not in written and "evaluate" not in written
    assert lines.count("grcn: logged") == 3
    assert lines[0].startswith("train: 1 of 3, 00:00 gone, ") and "train: 3 of 3, " in lines[-1]
    assert lines[-1].endswith(", loss=1.5")


def test_a_terminal_gets_a_bar():
    code = "from grcn.progress import progress_bar; list(progress_bar(range(3), 'count'))"
    terminal, behind = pty.openpty()
    fcntl.ioctl(behind, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=behind, check=True)
    os.close(behind)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "\rcount:   0%|" in shown and "\rcount: 100%|" in shown
