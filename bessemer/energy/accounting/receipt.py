"""receipt.json has the whole account (account.py), as it was when a stage or a command ended.

Adding up never fails a run: what is wrong is told, and the receipt stays as it was.
"""

from pathlib import Path

from bessemer.durable import write_json
from bessemer.energy.accounting.account import account
from bessemer.energy.metering.beside import told
from bessemer.log import Console
from bessemer.rundir import read_object


def write_account(run: Path, console: Console) -> None:
    path = run / "receipt.json"
    with told(console, f"{path} has no new account of energy"):
        receipt = read_object(path)
        if receipt is not None:
            write_json(path, {**receipt, "energy": account(run)})
