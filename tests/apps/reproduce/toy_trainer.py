"""Takes the arguments of tools/train.py and writes the files that a study reads, in milliseconds instead of seconds.

A step takes as long as ``train.lr`` says. ``train.weight_decay`` above 0.5 fails with exit code 2, above 0.4 with 6.
"""

import json
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--output-dir") + 1])
settings = dict(word.split("=", 1) for word in sys.argv if "=" in word)
steps, pause = int(settings["train.steps"]), float(settings["train.lr"])
log = folder / "metrics.jsonl"
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

start = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    for step in range(start + 1, steps + 1):
        time.sleep(pause)
        file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
        file.flush()
        if float(settings.get("train.weight_decay", 0)) > 0.4:
            code = 2 if float(settings["train.weight_decay"]) > 0.5 else 6
            print(f"grcn: error: step {step}: as bad as it gets; do not", file=sys.stderr)
            sys.exit(code)
        if stopping:
            time.sleep(0.3)  # which saving takes
            (folder / "saved").write_text(str(step))
            sys.exit(75)
    results = folder / "eval" / f"step_{steps}" / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("{}")
    file.write(json.dumps({"step": steps, "metrics": {}}) + "\n")
