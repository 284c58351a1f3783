"""DPO's loss and gradients of one batch, Bessemer's and TRL's, each in a process of its own.

TRL runs first and says which tokens its batch holds; Bessemer packs the same pairs into rows, with the
reference's log-probabilities as the column that training has. fp32 in both.
"""

import json
import sys
from pathlib import Path
from typing import Any

from children import plain_environment, run_child
from environments import HERE, python_of
from finetune_work import PEER

PREFERENCE = "dpo"


def compare(folder: Path) -> dict[str, Any]:
    """Losses, their relative difference, and the largest of the gradients. Raises ChildFailure."""
    task, theirs, ours = folder / "dpo.task.json", folder / "dpo.trl.json", folder / "dpo.json"
    task.write_text(json.dumps({"folder": str(folder), "result": str(theirs)}), encoding="utf-8")
    environment = {**plain_environment(), "HF_HUB_OFFLINE": "1"}
    for python, script, *arguments in (
        (str(python_of(PEER)), HERE / "peers" / "trl_dpo.py", task),
        (sys.executable, HERE / "finetune_pairs.py", folder, theirs, ours),
    ):
        command = [python, str(script), *map(str, arguments)]
        own = {} if python != sys.executable else {"PYTHONPATH": str(HERE.parent)}
        run_child(command, folder, {**environment, **own}, folder / f"{Path(script).stem}.log")
    found: dict[str, Any] = json.loads(ours.read_text(encoding="utf-8"))
    return found
