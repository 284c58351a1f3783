"""Published rows as the fit wants them: all in one set of columns, predicted by the planner's own formulas.

`cost/time.py` takes shapes, links and profiles as numbers or as columns, so that rows of different models,
clusters and stacks are predicted in one call, and a constant that is moved is moved for all that share it.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bessemer.planner.cost.candidates import Candidates
from bessemer.planner.cost.exchange import Links
from bessemer.planner.cost.profile import (
    UNKNOWN_LINK_GB_PER_S,
    UNKNOWN_NETWORK_GB_PER_S,
    Profile,
    family_of,
    peak_tflops,
    table_names,
)
from bessemer.planner.cost.time import cost
from bessemer.planner.cost.work import Dims, dims_of
from bessemer.planner.published.runs import PublishedRun, read_runs

# Shapes that stand for hybrids with state-space or linear mixers: less is known of their work.
STAND_INS = ("Nemotron", "Qwen3-Next")


@dataclass(frozen=True)
class FitRow:
    """A published run and its step time, in seconds."""

    run: PublishedRun
    actual_s: float

    @property
    def release_key(self) -> str:
        return f"{source_of(self)} {self.run.release}" if self.run.release else source_of(self)


def fit_rows(paths: list[Path]) -> list[FitRow]:
    """Rows with a layout and a time; adapters (LoRA) are left out, as they train other weights."""
    rows = []
    for run in (run for path in paths for run in read_runs(path)):
        speed = run.actual_tokens_per_s_per_device
        if run.skipped_because or run.job == "lora" or not speed or run.candidates is None:
            continue
        layout = run.candidates
        tokens = float((layout.micro_batch * layout.micro_batches * layout.data)[0] * run.context)
        rows.append(FitRow(run, tokens / (speed * run.devices)))
    return rows


def source_of(row: FitRow) -> str:
    """The source's name without its address; the tables of one paper are one source."""
    return re.split(r" \(| table \d| (docs|train|scripts|examples|best_practice)/", row.run.source)[0]


def group_of(row: FitRow) -> str:
    return " / ".join(row.run.group)


def band_name(row: FitRow) -> str:
    """Stack, family and kind of precision: the name of a band."""
    assert row.run.device is not None
    stack, _, precision = row.run.group
    kind = "bf16" if precision in ("fp16", "fp32") else precision
    return f"{stack}/{family_of(row.run.device)}/{kind}"


class Rows:
    """Rows as columns, and which constant of which table holds for each of them."""

    def __init__(self, rows: list[FitRow], priors: dict[str, Any]) -> None:
        self.rows = rows
        runs: list[Any] = [row.run for row in rows]
        shapes = [dims_of(run.shape, run.context) for run in runs]
        self.dims = Dims(**{f.name: np.array([getattr(d, f.name) for d in shapes]) for f in fields(Dims)})
        self.layouts = Candidates(
            **{
                f.name: np.concatenate([getattr(run.candidates, f.name) for run in runs])
                for f in fields(Candidates)
            }
        )
        self.links = Links(np.array([float(max(1, run.cluster.link_domain)) for run in runs]))
        self.log_actual = np.log([row.actual_s for row in rows])
        self.half = np.array([peak_tflops(run.device, "bf16") for run in runs])
        self.fast = np.array([peak_tflops(run.device, run.precision) or 0.0 for run in runs])
        self.memory = np.array([run.device.memory_gb_per_s for run in runs])
        self.link = np.array(
            [
                run.cluster.link_gb_per_s or run.cluster.network_gb_per_s or UNKNOWN_LINK_GB_PER_S
                for run in runs
            ]
        )
        self.network = np.array([run.cluster.network_gb_per_s or UNKNOWN_NETWORK_GB_PER_S for run in runs])
        self.start: dict[str, float] = {}
        self.sources = self._sources(runs, priors)
        self.names = list(self.start)

    def __len__(self) -> int:
        return len(self.rows)

    def weights(self, used: Any) -> Any:
        """Of squared residuals: groups with many rows count by the root of their number."""
        names = [group_of(row) for row in self.rows]
        counts = {
            name: sum(bool(u) for n, u in zip(names, used, strict=True) if n == name) for name in set(names)
        }
        known = np.array([0.5 if row.run.model.startswith(STAND_INS) else 1.0 for row in self.rows])
        return known * used * np.array([max(counts[name], 1) ** -0.5 for name in names])

    def residuals(self, constants: dict[str, float]) -> Any:
        """log(predicted / actual) of every row."""
        values = np.array([constants[name] for name in self.names])
        given = {key: values[places] for key, places in self.sources.items()}
        sustained = given["sustained"]
        derived = {
            "matmul_tflops": self.fast * sustained * given["matmul"],
            "head_tflops": self.half * sustained * given["head"],
            "attention_tflops": self.half * sustained * given["attention"],
            "vector_gb_per_s": self.memory * given["memory"],
            "link_gb_per_s": self.link * given["link"],
            "network_gb_per_s": self.network * given["network"],
        }
        plain = {field.name: given.get(field.name, field.default) for field in fields(Profile)}
        profile = SimpleNamespace(**{**plain, **derived})
        return np.log(cost(self.dims, self.layouts, self.links, profile).total_s) - self.log_actual

    def _sources(self, runs: list[Any], priors: dict[str, Any]) -> dict[str, Any]:
        """For each constant, the place in `names` of what each row takes; fills `start` on the way."""
        tables = priors["constants"]
        keys = {key for table in tables.values() for key in table}
        places: dict[str, list[int]] = {key: [] for key in (*sorted(keys), "head", "sustained")}
        for run in runs:
            names = table_names(run.stack, family_of(run.device), run.precision)
            half = table_names(run.stack, family_of(run.device), "bf16")
            for key in keys:
                places[key].append(self._place(names, key, tables))
            places["head"].append(self._place(half, "matmul", tables))
            places["sustained"].append(self._place(["device"], run.device.name, priors))
        return {key: np.array(rows) for key, rows in places.items()}

    def _place(self, names: list[str], key: str, tables: dict[str, Any]) -> int:
        """The most special table that has it; a constant that none has stays what Profile says."""
        default = {field.name: field.default for field in fields(Profile)}
        found = [name for name in names if key in tables.get(name, {})]
        name = f"{found[-1]}|{key}" if found else f"default|{key}"
        value = tables[found[-1]][key] if found else default.get(key, 1.0)
        if name not in self.start:
            self.start[name] = float(value)
        return list(self.start).index(name)
