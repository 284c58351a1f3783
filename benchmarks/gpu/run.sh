#!/usr/bin/env bash
# One command, at most 10 minutes: Bessemer against transformers on this machine's GPU.
#
#   [WHEELS=dir] [OUT=file or dir] [PYTHON=python3] benchmarks/gpu/run.sh [--tiny] [--shapes 124m,1b]
#
# Needs Python 3.11 or later with torch 2.11 or later. Nothing is downloaded: what else is missing (Bessemer's
# dependencies; transformers to compare with; nvidia-ml-py to measure energy) comes from the wheels in $WHEELS
# and goes into a temporary environment over what the machine has. Without them the table has gaps, and says so.
# The table goes to stdout, all figures to $OUT or benchmarks/gpu/results-DATE.json.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}

if [[ -n ${WHEELS:-} ]]; then
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
  "$python" -m venv --without-pip "$environment"
  packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # A path file and not --system-site-packages: this also works where $python is itself in an environment.
  "$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' > "$packages/outer.pth"
  "$python" - "$root/pyproject.toml" > "$environment/requirements.txt" << 'PYTHON'
import sys, tomllib
wanted = tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]
print("\n".join(text for text in wanted if not text.startswith("torch")))
PYTHON
  install=("$python" -m pip --python "$environment/bin/python" install --quiet --no-index --find-links "$WHEELS")
  "${install[@]}" --requirement "$environment/requirements.txt"
  for optional in "transformers>=5,<6" nvidia-ml-py; do
    "${install[@]}" "$optional" 2> /dev/null || echo "not in $WHEELS, going on without: $optional" >&2
  done
  python=$environment/bin/python
fi

export PYTHONPATH="$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$here/compare.py" "$@"
