"""The picture of docs/energy.md, from a run that is made for it: killed once, gone on with, in its report.

    python benchmarks/energy_picture.py [--out docs/images/energy.png]

Needs chromium, which draws the report's section of energy as a page of its own. Make it on a quiet machine:
where others have the cores, waiting for one is drawn as work.
Cost: a minute on two cores.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

from bessemer.report.energy import energy
from bessemer.report.record import read_run
from bessemer.rundir import read_rows

ROOT = Path(__file__).parents[1]
KILLED_AFTER = 130  # steps: 30 after a save, which are run again
RECIPE = f"""name = "energy"
[model]
layers = 4
hidden = 256
heads = 4
kv_heads = 4
ffn = 768
context = 256
[tokenizer]
vocab = 2000
[data]
validation = 0.1
[[data.source]]
name = "docs"
kind = "text"
path = "{ROOT}/docs/*.md"
[pretrain]
steps = 300
batch_tokens = 4096
lr = 1e-3
compile = false
validate_every = 50
save_every = 50
[cluster]
region = "DEU"
usd_per_device_hour = 0.20
"""
WIDTH, HEIGHT = 1180, 900


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/energy.png")
    out = parser.parse_args().out.resolve()
    browser = find_browser()
    if browser is None:
        print("energy_picture: there is no chromium here", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        run = killed_once(Path(folder))
        page = Path(folder) / "page.html"
        page.write_text(section(run), encoding="utf-8")
        draw(browser, page, out, WIDTH, HEIGHT)
    print(out)
    return 0


def killed_once(folder: Path) -> Path:
    """A whole run in `folder`."""
    (folder / "energy.toml").write_text(RECIPE)
    run, words = folder / "run", [sys.executable, "-m", "bessemer", "run", "energy.toml", "--run", "run"]
    first = subprocess.Popen(words, cwd=folder, start_new_session=True)
    while len(read_rows(run / "pretrain/metrics.jsonl")) < KILLED_AFTER and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(words, cwd=folder, check=True)
    return run


def section(run: Path) -> str:
    """Of its report, the one of energy alone."""
    style = (resources.files("bessemer") / "report" / "page.css").read_text(encoding="utf-8")
    body = f"<section><h2>Energy, carbon and money</h2>{energy(read_run(run))}</section>"
    style += "section, section h2 { margin-top: 0; padding-top: 0 }"
    return f'<!doctype html><meta charset="utf-8"><style>{style}</style><body>{body}</body>'


def find_browser() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def draw(browser: str, page: Path, out: Path, width: int, height: int) -> None:
    """The top of the page, as large as that."""
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    shot = ["--headless", "--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={out}"]
    subprocess.run([browser, *alone, *shot, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
