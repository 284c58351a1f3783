"""`report.html`: one file that tells a run from its own files, for reading without this machine.

No script, no font, no picture from elsewhere; no torch. Making it again is cheap (under a second for
ten thousand steps) and changes nothing but the file.
"""

from pathlib import Path

from bessemer import __version__
from bessemer.durable import write_text
from bessemer.report.curves import curves
from bessemer.report.data import data_funnel
from bessemer.report.energy import energy
from bessemer.report.history import attempts, receipt, recipe
from bessemer.report.html import Section, page
from bessemer.report.outcome import evaluation, export_proof, samples, two_stages
from bessemer.report.overview import header, result_sentence
from bessemer.report.planned import planned
from bessemer.report.record import RunRecord, read_run


def write_report(run: Path) -> tuple[Path, RunRecord]:
    """Write report.html into the run directory; returns its path and what it was made from."""
    record = read_run(run)
    path = record.folder / "report.html"
    write_text(path, render(record))
    return path, record


def render(run: RunRecord) -> str:
    sections = [
        Section("result", "What pre-training buys", two_stages(run)),
        Section("curves", "Training curves", curves(run)),
        Section("evaluation", "Evaluation", evaluation(run)),
        Section("samples", "Samples", samples(run)),
        Section("plan", "Plan and prediction", planned(run)),
        Section("energy", "Energy, carbon and money", energy(run)),
        Section("data", "Data", data_funnel(run)),
        Section("export", "Export", export_proof(run)),
        Section("history", "Attempts and events", attempts(run)),
        Section("receipt", "Receipt: code, machine, environment", receipt(run)),
        Section("recipe", "Recipe", recipe(run)),
    ]
    footer = (
        f"Made by bessemer {__version__} from the files in {run.folder}. Figures that nobody measured are "
        "said to be so; energy carries its basis. Loss is in nat per target token."
    )
    return page(f"{run.name}: {result_sentence(run)}"[:120], header(run), sections, footer)
