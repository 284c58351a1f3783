"""The picture of the README: the top of the report of a demo run.

    python benchmarks/report_picture.py [--run runs/demo] [--out docs/images/report.png]

Without --run it makes the demo in a temporary folder first, on a quiet machine, as the page tells how fast it
was. Needs chromium.
Cost: 7 minutes on two cores.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from energy_picture import draw, find_browser

from bessemer.report.build import write_report

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1200, 1450


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="of a demo that is there")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/report.png")
    args = parser.parse_args()
    browser = find_browser()
    if browser is None:
        print("report_picture: there is no chromium here", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "runs/demo"
        if args.run is None:
            subprocess.run([sys.executable, "-m", "bessemer", "demo"], cwd=folder, check=True)
        page, _ = write_report(run)
        draw(browser, page.resolve(), args.out.resolve(), WIDTH, HEIGHT)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
