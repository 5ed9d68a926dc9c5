"""Replaces the measuring of a case, in a process that imports it by name, and fails as its batch says."""

import os
import subprocess
import time

from grcn.apps.benchmark.roofline import Limits

ERROR, DEATH, HANG, PARENT = 101, 102, 103, 104


def measure_badly(case, overrides, repeats, limits):
    figures = {"process": os.getpid(), "limits": Limits(1.0, 1.0), "limits_were_known": limits is not None}
    if case.batch == ERROR:
        return {"error": "RuntimeError: as asked"}
    if case.batch == DEATH:
        os._exit(3)
    if case.batch == HANG:
        time.sleep(600)
    if case.batch == PARENT:
        figures["child"] = subprocess.Popen(["sleep", "600"]).pid
    return figures | {"step_ms": 1.0, "infer_ms": 1.0, "peak_mb": 1.0, "missing": []}
