"""The ceiling: the best rate of one square bf16 matrix product on this CPU.

    python benchmarks/ceiling.py SIZE        prints TFLOP/s

Best, not mean: other work on the machine only ever makes a measurement slower. Not the one that
`bessemer doctor` stores: that may be of another day.
"""

import sys
import time

import torch

_REPEATS = 20


def matmul_tflops(size: int) -> float:
    a, b = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    times_s = []
    for _ in range(_REPEATS):
        begin_s = time.perf_counter()
        torch.mm(a, b, out=out)
        times_s.append(time.perf_counter() - begin_s)
    return 2.0 * size**3 / min(times_s) / 1e12


if __name__ == "__main__":
    print(matmul_tflops(int(sys.argv[1])))
