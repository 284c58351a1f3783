"""What each part of Bessemer's compiled training step on this CPU takes: the step of cpu_pretrain.py.

    python benchmarks/cpu_parts.py [--steps N] [--json FILE] [--tiny]

Cost: half a minute.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bessemer.launch.environment import arrange


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="steps that are taken apart")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: its timings say nothing")
    args = parser.parse_args(argv)
    arrange()
    # Not before: the environment decides how torch allocates and how many threads it takes.
    from parts import measure, table

    found = measure(max(1, args.steps), tiny=args.tiny)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
