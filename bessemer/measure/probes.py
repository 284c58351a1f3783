"""How long the parts of a training step take on a device, by size: the tables of a calibration.

Each part is timed with the code that training runs (model/, parallel/gradients.py, torch's AdamW), forward
and backward together, eager, at a few sizes that are far apart; between them the planner interpolates. Best
of several, as other work only ever makes a measurement slower; large sizes are run three times, small ones
as often as fit in some milliseconds. Cost: 4 to 6 s for one way to use a CPU, a second on an accelerator.
Dims: N tokens, D hidden, C tokens of a chunk, V vocabulary, B rows, T tokens of a row, H heads, K head_dim.
"""

import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bessemer.data.loader import MicroBatch
from bessemer.formulas.shape import ModelShape
from bessemer.model.attention import Kind, attention, choose, make_mask
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.layers import RMSNorm
from bessemer.model.loss import loss_chunk
from bessemer.model.moe import MoE
from bessemer.model.rotary import rotary_angles, rotate
from bessemer.parallel.engine import Engine, summed_loss
from bessemer.parallel.gradients import clip_gradients
from bessemer.parallel.shard import sharded_over
from bessemer.planner.calibrated.tables import PARTS, Anchor, Speeds, Table

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GRIDS: dict[str, tuple[tuple[int, ...], ...]] = {
    "linear": ((128, 512), (96, 256, 768, 2048), (96, 256, 768, 2048)),
    "attention": ((4, 16), (64, 256, 512), (32, 64)),
    "masked": ((4, 16), (64, 256, 512), (64,)),  # narrower heads are rare where rows are packed
    "norm": ((2**14, 2**17, 2**19, 2**21),),
    "swiglu": ((2**14, 2**17, 2**19, 2**21),),
    "add": ((2**14, 2**17, 2**19, 2**21),),
    "loss": ((2**16, 2**19, 2**22),),
    "cast": ((2**13, 2**16, 2**19, 2**22),),
    "accumulate": ((2**13, 2**16, 2**19, 2**22),),
    "embedding": ((256, 2048), (2**16, 2**19, 2**22)),
    "routing": ((2**15, 2**18, 2**20),),
    "update": ((2**16, 2**20, 2**23),),
    "call": (),
}
# Of the anchors: width, layers. Tokens: two rows of 256.
_ANCHORS = ((128, 4), (384, 2), (768, 1))
_ENOUGH_S = 0.008  # for the repetitions of one size
_FUSED = ("cpu", "cuda", "mps", "xpu")  # devices of torch's fused AdamW
_LEAST, _LONG_S = 3, 0.05  # twice where once takes long


class Probes:
    """Of one device and compute type. best_s: how a piece of work is timed; tests put a quicker one in."""

    def __init__(self, device: torch.device, dtype: str) -> None:
        self.device, self.dtype, self.compute = device, dtype, COMPUTE[dtype]

    def speeds(self, processes: int, threads: int) -> Speeds:
        """All tables and anchors, for as many threads as torch has now."""
        tables = {part: self._table(part) for part in PARTS if part != "masked"}
        # Where training takes torch's kernel anyway, it is measured already.
        is_same = choose(self.device.type, self.compute, 64) == "sdpa"
        tables["masked"] = tables["attention"] if is_same else self._table("masked")
        anchors = tuple(self._anchor(width, layers) for width, layers in _ANCHORS)
        return Speeds(processes, threads, self.dtype, tables, anchors)

    def _table(self, part: str) -> Table:
        grid = _GRIDS[part]
        make: Callable[..., Callable[[], object]] = getattr(self, f"_{part}")
        times = tuple(best_s(make(*sizes), self.device) for sizes in product(*grid))
        powers = tuple(power for _, power in PARTS[part])
        return Table(tuple(tuple(map(float, axis)) for axis in grid), times, powers)

    def _random(self, *sizes: int, grad: bool = False) -> Tensor:
        return torch.randn(*sizes, device=self.device).to(self.compute).requires_grad_(grad)

    def _linear(self, tokens: int, inputs: int, outputs: int) -> Callable[[], object]:
        x, y = self._random(tokens, inputs), self._random(tokens, outputs)
        weight = self._random(outputs, inputs)

        def run() -> None:
            torch.mm(x, weight.T)
            torch.mm(y, weight)
            torch.mm(y.T, x)

        return run

    def _attention(self, row_heads: int, tokens: int, head_dim: int) -> Callable[[], object]:
        return self._attend(choose(self.device.type, self.compute, head_dim), row_heads, tokens, head_dim)

    def _masked(self, row_heads: int, tokens: int, head_dim: int) -> Callable[[], object]:
        return self._attend("sdpa", row_heads, tokens, head_dim)

    def _attend(self, kind: Kind, row_heads: int, tokens: int, head_dim: int) -> Callable[[], object]:
        rows, heads = (1, row_heads) if row_heads < 8 else (row_heads // 8, 8)
        shape = small_shape(heads * head_dim, heads=heads, context=tokens)
        starts = torch.zeros(rows, tokens, dtype=torch.int64, device=self.device)
        rope = rotary_angles(shape, torch.arange(tokens, device=self.device) - starts)
        mask = make_mask(kind, starts)
        mixed = self._random(rows, tokens, 3 * heads, head_dim, grad=True)
        gradient = self._random(rows, tokens, heads, head_dim)

        def run() -> None:
            q, k, v = mixed.split([heads, heads, heads], dim=2)
            attention(kind, rotate(q, rope), rotate(k, rope), v, mask).backward(gradient)
            mixed.grad = None

        return run

    def _norm(self, elements: int) -> Callable[[], object]:
        layer = RMSNorm(256, 1e-5).to(self.device)
        torch.nn.init.ones_(layer.weight)
        return self._there_and_back(layer, self._random(elements // 256, 256, grad=True))

    def _swiglu(self, elements: int) -> Callable[[], object]:
        def product_(both: Tensor) -> Tensor:
            gate, up = both.chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up

        return self._there_and_back(product_, self._random(elements // 512, 1024, grad=True))

    def _add(self, elements: int) -> Callable[[], object]:
        x, y = self._random(elements), self._random(elements)
        return lambda: (x + y, x + y)

    def _loss(self, logits: int) -> Callable[[], object]:
        vocab = 1024
        hidden, weight = self._random(logits // vocab, 1), self._random(vocab, 1)
        targets = torch.zeros(logits // vocab, dtype=torch.int64, device=self.device)
        return lambda: loss_chunk(hidden, weight, targets)

    def _cast(self, elements: int) -> Callable[[], object]:
        weights = [torch.randn(elements // 2, device=self.device) for _ in range(2)]
        gradient = self._random(elements)

        def run() -> None:
            torch.cat([weight.to(self.compute) for weight in weights])
            for part in gradient.split(elements // 2):
                part.float().clone(memory_format=torch.contiguous_format)

        return run

    def _accumulate(self, elements: int) -> Callable[[], object]:
        x, y = (torch.randn(elements, device=self.device) for _ in range(2))
        return lambda: x.add_(y)

    def _embedding(self, tokens: int, elements: int) -> Callable[[], object]:
        layer = torch.nn.Embedding(elements // 256, 256, device=self.device)
        chosen = torch.randint(elements // 256, (tokens,), device=self.device)

        def run() -> None:
            out = layer(chosen).to(self.compute)
            out.backward(out.detach())
            layer.weight.grad = None

        return run

    def _routing(self, pairs: int) -> Callable[[], object]:
        """Experts of the least width: their matmuls weigh little."""
        shape = small_shape(256, heads=4, context=256, experts=8, experts_per_token=2, expert_ffn=8)
        layer = MoE(shape).to(self.device)
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        x = self._random(max(1, pairs // (512 * 256)), min(256, pairs // 512), 256, grad=True)
        return self._there_and_back(layer, x)

    def _update(self, elements: int) -> Callable[[], object]:
        side = int((elements / 16) ** 0.5)
        weights = [torch.zeros(side, side, device=self.device, requires_grad=True) for _ in range(16)]
        gradients = [torch.randn_like(weight) for weight in weights]
        optimizer = torch.optim.AdamW(weights, fused=self.device.type in _FUSED)

        def run() -> None:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            clip_gradients(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def _call(self) -> Callable[[], object]:
        x = self._random(16, grad=True)
        return self._there_and_back(lambda given: given * 2.0, x)

    def _there_and_back(self, work: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
        gradient = torch.ones_like(work(x))

        def run() -> None:
            work(x).backward(gradient)
            x.grad = None

        return run

    def _anchor(self, hidden: int, layers: int) -> Anchor:
        """Whole steps of a small model."""
        heads, rows, context = max(2, hidden // 64), 2, 256
        shape = small_shape(hidden, heads=heads, context=context, layers=layers)
        with torch.device("meta"):
            model = Decoder(shape, self.compute)
        initialise(model, shape, 0, self.device)
        tokens = torch.randint(shape.vocab, (rows, context), device=self.device)
        batch = [MicroBatch(tokens, tokens, torch.zeros_like(tokens))]
        run = step_of(Engine(model, summed_loss), batch)
        run()  # makes the optimizer's state
        taken = best_s(run, self.device, 5 * _ENOUGH_S)
        return Anchor(layers, hidden, heads, shape.ffn, shape.vocab, rows, context, taken)


def step_of(engine: Engine, batch: list[MicroBatch]) -> Callable[[], None]:
    """A whole optimizer step, as train/loop.py does it."""
    groups: dict[Any, list[torch.nn.Parameter]] = {}
    for weight in engine.parameters:
        groups.setdefault(sharded_over(weight), []).append(weight)
    fused = engine.device.type in _FUSED
    optimizer = torch.optim.AdamW([{"params": group} for group in groups.values()], fused=fused)

    def run() -> None:
        targets = engine.total(batch[0].targets_BT.numel())
        loss = engine.forward_backward(batch, targets)
        engine.finish(loss, targets, 1.0, False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def best_s(
    work: Callable[[], object], device: torch.device, enough_s: float = _ENOUGH_S, least: int | None = None
) -> float:
    """The quickest of several: of `least`, and of as many more as fit in `enough_s`."""
    best, begin_s, done = float("inf"), time.perf_counter(), 0
    while (
        done < (least or (2 if _LONG_S < best < float("inf") else _LEAST))
        or time.perf_counter() - begin_s < enough_s
    ):
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        once_s = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - once_s)
        done += 1
    return best


def small_shape(hidden: int, *, heads: int, context: int, layers: int = 1, **experts: Any) -> ModelShape:
    return ModelShape(
        family="qwen3-moe" if experts else "llama",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=hidden * 8 // 3 // 64 * 64,
        vocab=1024,
        context=context,
        tie_embeddings=False,
        qk_norm=False,
        **experts,
    )
