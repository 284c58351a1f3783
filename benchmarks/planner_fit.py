"""Fit the planner's profiles to published runs, and say what rows that were not fitted miss.

    python benchmarks/planner_fit.py ROWS.csv … [--check ROWS.csv …] [--write] [--constants]

Starts from the constants of planner_priors.toml, which say what is known before any row (datasheets, papers,
microbenchmarks), and moves them as far as the rows ask and the priors' widths (WIDTHS) allow: least squares
of log(predicted / actual), made robust (far rows count by their distance, not its square), each stack, device
and precision with the root of its rows as weight. Then each source is left out in turn, and each release of
one that has several: those are the held-out errors, and four of five of them lie within the profiles' bands.
`--check` rows are only predicted, never fitted.
`--write` puts constants and bands into bessemer/planner/cost/profiles.toml.
Cost: about 15 s on one core (716 rows; a step of the fit predicts them 80 times, 3 ms each).
"""

import argparse
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from planner_fit_rows import Rows, band_name, fit_rows, group_of, source_of

from bessemer.planner.cost import profile

PRIORS = Path(__file__).parent / "planner_priors.toml"
PROFILES = Path(profile.__file__).parent / "profiles.toml"

SPREAD = 0.06  # of log(predicted / actual) that a right model still has
CORNER = 0.03  # beyond it a residual counts by its size, not its square
MOST_OVERLAP = 0.95

# Relative width of the priors, by the name of the table and constant; the first that matches. What matches
# none stays as it is in planner_priors.toml.
WIDTHS = (
    (r"default\|.*", None),  # of what no table has: not fitted
    (r"(common|amd|consumer)\|(matmul|attention)", None),  # for devices without rows
    (r"(megatron-plain|blackwell|tpu).*\|matmul", 0.2),
    (r".*\|matmul", 0.12),
    (r".*\|attention", 0.3),
    (r"common\|(memory|link)", 0.1),
    (r"common\|network", 0.08),
    (r".*\|network", 0.4),
    (r"common\|(link|network)_latency_s", 0.5),
    (r"common\|jitter", 0.5),
    (r"common\|rank_s", 0.6),
    (r"common\|(attention_half_tokens|rows_half)", 0.7),
    (r"common\|optimizer_bytes", 0.15),
    (r"common\|(matmul_traffic|attention_half_dim|vector|irregular|contention)", 0.3),
    (r"maxtext\|selective", 0.5),
    (r".*\|(grouped|score_bytes|link|expert_copies)", 0.3),
    (r"common/.*\|quantise_bytes", 0.3),
    (r".*\|(layer_s|routed_s|host_s|host_routed_s|micro_batch_s|step_s)", 1.0),
    (r".*\|\w+_overlap", 0.2),
    (r"device\|(GB300|B300|B200).*", 0.06),
)


def main() -> None:
    options = _options()
    priors = tomllib.loads(PRIORS.read_text(encoding="utf-8"))
    rows = Rows(fit_rows(options.rows), priors)
    free = {name: width for name in rows.names if (width := _width(name)) and rows.start[name]}
    everything = np.ones(len(rows), bool)
    constants = fit(rows, free, everything)
    fitted = rows.residuals(constants)
    held_out = leave_out(rows, free, constants, source_of, fitted)
    by_release = leave_out(rows, free, constants, lambda row: row.release_key, held_out)
    print(f"{len(rows)} rows, {len(free)} constants fitted\n")
    for title, key in (("stack / device / precision", group_of), ("source", lambda row: row.release_key)):
        _table(title, rows, key, fitted=fitted, release_out=by_release, source_out=held_out)
    if options.constants:
        _print_constants(rows, free, constants)
    if options.write:
        bands = bands_of(rows, by_release)
        PROFILES.write_text(
            _filled_in(PRIORS.read_text(encoding="utf-8"), constants, bands), encoding="utf-8"
        )
    for path in options.check:
        checked = Rows(fit_rows([path]), priors)
        known = {**checked.start, **{name: constants[name] for name in checked.names if name in constants}}
        _table(f"{path.name}, never fitted", checked, group_of, predicted=checked.residuals(known))


def fit(rows: Rows, free: dict[str, float], used: Any, steps: int = 25) -> dict[str, float]:
    """Constants by name. Levenberg-Marquardt in their logarithms; `used`: mask of the rows that count."""
    names = list(free)
    prior = np.log([rows.start[name] for name in names])
    widths = np.array([free[name] for name in names])
    most = np.array([np.log(MOST_OVERLAP) if name.endswith("_overlap") else np.inf for name in names])
    weights = rows.weights(used) / SPREAD**2

    def residuals(logs: Any) -> Any:
        return rows.residuals({**rows.start, **dict(zip(names, np.exp(logs), strict=True))})

    def misfit(logs: Any, missed: Any) -> float:
        robust = 2.0 * CORNER * (np.sqrt(missed**2 + CORNER**2) - CORNER)
        return float(np.sum(weights * robust) + np.sum(((logs - prior) / widths) ** 2))

    logs = prior.copy()
    missed = residuals(logs)
    best, damping = misfit(logs, missed), 1e-2
    for _ in range(steps):
        slopes = np.stack([(residuals(logs + step) - missed) / 1e-3 for step in 1e-3 * np.eye(len(logs))], 1)
        pull = weights * CORNER / np.sqrt(missed**2 + CORNER**2)
        curve = slopes.T @ (slopes * pull[:, None]) + np.diag(widths**-2.0)
        down = -(slopes.T @ (pull * missed) + (logs - prior) / widths**2)
        before = best
        for _ in range(8):
            move = np.linalg.solve(curve + damping * np.diag(np.diag(curve)), down)
            tried = np.minimum(logs + np.clip(move, -0.5, 0.5), most)
            tried_missed = residuals(tried)
            if (tried_misfit := misfit(tried, tried_missed)) < best:
                logs, missed, best, damping = tried, tried_missed, tried_misfit, max(damping / 5.0, 1e-6)
                break
            damping *= 4.0
        if before - best < 2e-5 * before:
            break
    return {**rows.start, **dict(zip(names, np.exp(logs).tolist(), strict=True))}


def leave_out(
    rows: Rows, free: dict[str, float], constants: dict[str, float], key: Callable[[Any], str], known: Any
) -> Any:
    """Residuals of each key's rows by a fit to all others; of keys that hold a whole source, `known`."""
    missed = known.copy()
    whole = {key(row) for row in rows.rows if key(row) == source_of(row)}
    keys = {key(row) for row in rows.rows} - (whole if key is not source_of else set())
    for left in sorted(keys):
        out = np.array([key(row) == left for row in rows.rows])
        missed[out] = rows.residuals(fit(rows, free, ~out, steps=8))[out]
    return missed


def bands_of(rows: Rows, missed: Any) -> dict[str, float]:
    """By "stack/family/kind": the size of |log(actual / predicted)| that four of five held-out rows keep to.

    At least 8 %; half as wide again from fewer than five rows, and in 4 bit and on TPUs, where all rows
    are of one source.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for row, miss in zip(rows.rows, missed, strict=True):
        found[band_name(row)].append(abs(miss))
    bands = {}
    for name, misses in sorted(found.items()):
        wider = 1.5 if len(misses) < 5 or "nvfp4" in name or "tpu" in name else 1.0
        bands[name] = wider * max(float(np.percentile(misses, 80)), 0.08)
    return bands


def _width(name: str) -> float | None:
    return next((width for pattern, width in WIDTHS if re.fullmatch(pattern, name)), None)


def _filled_in(text: str, constants: dict[str, float], bands: dict[str, float]) -> str:
    """The text of the priors with the fitted values in their places, and the bands."""
    lines, table = ["# Made by benchmarks/planner_fit.py from planner_priors.toml; not to be edited.", ""], ""
    for line in text.splitlines():
        if header := re.fullmatch(r'\[(?:constants\.)?"?([^"\]]+)"?\]', line):
            table = header.group(1)
        pair = re.fullmatch(r'("?[^"=]+"?) = [\d.e+-]+', line)
        name = f"{table}|{pair.group(1).strip(chr(34))}" if pair else ""
        lines.append(
            f"{pair.group(1)} = {float(f'{constants[name]:.3g}')!r}" if pair and name in constants else line
        )
        if line == "[bands]":
            lines.extend(f'"{key}" = {band:.3f}' for key, band in bands.items())
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Rows, key: Callable[[Any], str], **columns: Any) -> None:
    """Mean symmetric error of each key's rows, per column; then the mean over keys, and the worst."""
    counts = Counter(key(row) for row in rows.rows)
    print(f"{title:52s} rows" + "".join(f"{name:>13s}" for name in columns))
    sums: dict[str, list[float]] = defaultdict(list)
    for name in sorted(counts):
        mask = np.array([key(row) == name for row in rows.rows])
        errors = {
            column: float(np.mean(np.expm1(np.abs(missed[mask])))) for column, missed in columns.items()
        }
        for column, error in errors.items():
            sums[column].append(error)
        print(f"{name:52s} {counts[name]:4d}" + "".join(f"{100 * error:12.1f}%" for error in errors.values()))
    for word, pick in (("mean of them", np.mean), ("worst of them", max)):
        print(
            f"{word:52s} {len(rows):4d}" + "".join(f"{100 * pick(sums[column]):12.1f}%" for column in columns)
        )
    print()


def _print_constants(rows: Rows, free: dict[str, float], constants: dict[str, float]) -> None:
    for name in sorted(free):
        print(f"{name:48s} {rows.start[name]:10.4g} -> {constants[name]:10.4g}  (width {free[name]})")
    print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--check", nargs="*", type=Path, default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--constants", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
