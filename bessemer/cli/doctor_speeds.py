"""The calibration as `bessemer doctor` shows it: speeds of a step's parts, and of exchanges."""

from bessemer.cli.columns import text_table
from bessemer.planner.calibrated.tables import Calibration, Speeds, Table

# Tokens, inputs and outputs of linear layers that are shown; forward and backward make 6 FLOPs of each.
_LINEAR = {"small": (128, 256, 256), "medium": (512, 768, 768), "large": (512, 2048, 2048)}


def calibration_text(calibration: Calibration) -> str:
    parts = [_first_line(calibration), "\n".join(text_table(_HEADINGS, list(map(_row, calibration.speeds))))]
    if calibration.exchanges:
        rows = [_exchange_row(kind, table) for kind, table in calibration.exchanges.items()]
        headings = ["Between two", "latency µs", *_sizes(next(iter(calibration.exchanges.values())))]
        parts.append("\n".join(text_table(headings, rows)))
    if calibration.busy_share > 0.1:
        parts.append(
            f"Other processes used {calibration.busy_share:.0%} of the cores meanwhile, so the machine is "
            "faster than this: calibrate again when it is quiet."
        )
    return "\n\n".join(parts)


_HEADINGS = [
    "Processes x threads",
    *(f"matmul {name}" for name in _LINEAR),
    "attention 256",
    "attention 512",
    "norm M/s",
    "SwiGLU M/s",
    "update M/s",
    "call µs",
]


def _first_line(calibration: Calibration) -> str:
    return (
        f"Calibration of {calibration.device}, {calibration.date}, torch {calibration.torch}, in "
        f"{calibration.took_s:.0f} s. Matmul and attention in TFLOP/s, forward and backward; M: million "
        "elements."
    )


def _row(speeds: Speeds) -> list[str]:
    def rate(part: str, work: float, *sizes: float) -> str:
        return f"{work / speeds.tables[part].at(*sizes):.3g}"

    elements = 2**19
    return [
        f"{speeds.processes} x {speeds.threads} {speeds.dtype}",
        *(rate("linear", 6e-12 * n * i * o, n, i, o) for n, i, o in _LINEAR.values()),
        # Two products of 2 FLOPs on the causal triangle, and twice that backwards.
        *(
            rate("attention", 1e-12 * 3 * 4 * 16 * tokens * tokens / 2 * 64, 16, tokens, 64)
            for tokens in (256, 512)
        ),
        *(rate(part, elements / 1e6, elements) for part in ("norm", "swiglu", "update")),
        f"{speeds.tables['call'].at() * 1e6:.0f}",
    ]


def _sizes(table: Table) -> list[str]:
    return [f"{_bytes(size)} GB/s" for size in table.axes[0][1:]]


def _exchange_row(kind: str, table: Table) -> list[str]:
    pairs = list(zip(table.axes[0], table.seconds, strict=True))
    return [
        kind,
        f"{pairs[0][1] * 1e6:.0f}",
        *(f"{size / seconds / 1e9:.3g}" for size, seconds in pairs[1:]),
    ]


def _bytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
