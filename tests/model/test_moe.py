from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Glm4MoeConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.decoder import Decoder
from bessemer.model.moe import Experts, MoE, _count, grouped_linear, update_bias
from bessemer.model.pieces import whole_pieces

D, E, F, K = 32, 8, 16, 2
FAMILIES = ("qwen3-moe", "mixtral", "glm4-moe")


def moe_shape(family: str = "qwen3-moe", **changes: Any) -> ModelShape:
    values: dict[str, Any] = {
        "family": family,
        "layers": 3,
        "hidden": D,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn": 48,
        "vocab": 64,
        "context": 32,
        "tie_embeddings": False,
        "qk_norm": family == "qwen3-moe",
        "experts": E,
        "experts_per_token": K,
        "expert_ffn": F,
    }
    if family == "glm4-moe":
        values |= {"router": "sigmoid_bias", "shared_ffn": 2 * F, "dense_layers": 1}
    return ModelShape(**{**values, **changes})


def filled(module: nn.Module, seed: int = 0) -> Any:
    """Every weight from a normal distribution, wide enough for routers to have opinions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return module


def moe_of(family: str = "qwen3-moe", **changes: Any) -> MoE:
    return filled(MoE(moe_shape(family, **changes)))  # type: ignore[no-any-return]


def hidden(rows: int = 2, tokens: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, D, generator=torch.Generator().manual_seed(seed))


def transformers_block(family: str) -> nn.Module:
    sizes = {"hidden_size": D, "num_experts_per_tok": K}
    if family == "qwen3-moe":
        more = {"num_experts": E, "moe_intermediate_size": F, "norm_topk_prob": True}
        return Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**sizes, **more))
    if family == "mixtral":
        return MixtralSparseMoeBlock(MixtralConfig(**sizes, num_local_experts=E, intermediate_size=F))
    more = {"n_routed_experts": E, "moe_intermediate_size": F, "n_shared_experts": 2}
    return Glm4MoeMoE(Glm4MoeConfig(**sizes, **more))


def copied(ours: MoE, theirs: nn.Module) -> nn.Module:
    """Transformers' block with our weights; it keeps gate and up in one tensor."""
    weights = ours.state_dict()
    gate, up, down = (weights.pop(f"experts.{name}") for name in ours.experts.names)
    stacked = {"experts.gate_up_proj": torch.cat([gate, up], 1), "experts.down_proj": down}
    theirs.load_state_dict({**weights, **stacked})
    return theirs


def one_token_at_a_time(moe: MoE, x_BTD: Tensor) -> Tensor:
    """The definition, without any sorting. Softmax routers only."""
    gate, up, down = (getattr(moe.experts, name) for name in moe.experts.names)
    rows = []
    for x in x_BTD.flatten(0, 1):
        probabilities = (moe.gate.weight @ x).softmax(-1)
        weights, chosen = probabilities.topk(K)
        out = torch.zeros_like(x)
        for weight, e in zip(weights / weights.sum(), chosen.tolist(), strict=True):
            out = out + weight * (down[e] @ (functional.silu(gate[e] @ x) * (up[e] @ x)))
        rows.append(out)
    return torch.stack(rows).view_as(x_BTD)


def gradients(out: Tensor, moe: MoE, x: Tensor) -> list[Tensor]:
    weigh = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return list(torch.autograd.grad((out * weigh).sum(), [x, *moe.parameters()]))


@pytest.mark.parametrize("family", FAMILIES)
def test_block_computes_what_transformers_does(family):
    ours = moe_of(family)
    theirs, x = copied(ours, transformers_block(family)), hidden()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_gradients_are_those_of_one_token_at_a_time():
    moe, x = moe_of(), hidden().requires_grad_()
    ours, expected = moe(x), one_token_at_a_time(moe, x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    pairs = zip(gradients(ours, moe, x), gradients(expected, moe, x), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_transformers(family):
    ours = moe_of(family)
    theirs, x = copied(ours, transformers_block(family)), hidden()
    weigh = hidden(seed=9)
    (ours(x) * weigh).sum().backward()
    (theirs(x) * weigh).sum().backward()
    grads = {name: parameter.grad for name, parameter in ours.named_parameters()}
    gate, up, down = (grads.pop(f"experts.{name}") for name in ours.experts.names)
    grads |= {"experts.gate_up_proj": torch.cat([gate, up], 1), "experts.down_proj": down}
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_is_dropped_however_skewed_the_router(family):
    moe, x, seen = moe_of(family), hidden(), []
    with torch.no_grad():
        moe.gate.weight[3] = x.mean((0, 1)) * 50  # as many as can be go to one expert
    here = moe.compute

    def compute(sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        seen.append((sorted_SD, counts_E))
        return here(sorted_SD, counts_E)

    moe.compute = compute
    moe(x)
    ((sorted_SD, counts_E),) = seen
    assert int(counts_E.sum()) == sorted_SD.shape[0] == 2 * 24 * K
    chosen_NK = moe.gate(x.flatten(0, 1)).chosen_NK
    assert torch.equal(counts_E, torch.bincount(chosen_NK.flatten(), minlength=E))
    for token in range(2 * 24):  # each row stands K times among the sorted ones
        assert int((sorted_SD == x.flatten(0, 1)[token]).all(-1).sum()) == K


def test_experts_without_tokens_get_zero_gradients():
    moe, x = moe_of(), hidden(rows=1, tokens=1).requires_grad_()
    moe(x).sum().backward()
    idle = torch.bincount(moe.gate(x[0]).chosen_NK.flatten(), minlength=E) == 0
    assert int(idle.sum()) == E - K
    for name in moe.experts.names:
        grad = getattr(moe.experts, name).grad
        assert not grad[idle].any() and bool(grad[~idle].any((1, 2)).all())


@pytest.mark.parametrize("counts", [[0] * E, [5, 0, 0, 3, 0, 1, 0, 0]], ids=["no row", "some rows"])
@pytest.mark.parametrize("ffn", [16, 5], ids=["grouped_mm", "loop"])
def test_grouped_matmul_is_a_loop_over_experts(counts, ffn):
    experts = filled(Experts(E, D, ffn, ("gate_proj", "up_proj", "down_proj")))
    x_SD = torch.randn(sum(counts), D, requires_grad=True)
    out_SD = experts(x_SD, torch.tensor(counts))
    out_SD.sum().backward()
    grads = [parameter.grad.clone() for parameter in experts.parameters()]
    experts.zero_grad()
    parts = []
    for e, rows in enumerate(x_SD.split(counts)):
        between = functional.silu(rows @ experts.gate_proj[e].T) * (rows @ experts.up_proj[e].T)
        parts.append(between @ experts.down_proj[e].T)
    torch.testing.assert_close(out_SD, torch.cat(parts), rtol=0, atol=1e-6)
    torch.cat(parts).sum().backward()
    for grad, parameter in zip(grads, experts.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-5)


def test_weights_are_cast_to_the_type_of_the_input():
    moe, x = moe_of(), hidden()
    out = moe(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), moe(x), rtol=0.1, atol=0.05)
    out.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in moe.parameters())
    one = grouped_linear(x[0].bfloat16(), moe.experts.up_proj, torch.tensor([24] + [0] * (E - 1)))
    torch.testing.assert_close(one, functional.linear(x[0].bfloat16(), moe.experts.up_proj[0].bfloat16()))


def narrow_experts(counts: list[int], ffn: int = F) -> tuple[Experts, Tensor]:
    experts = filled(Experts(len(counts), D, ffn, ("gate_proj", "up_proj", "down_proj")))
    x_SD = torch.randn(sum(counts), D, generator=torch.Generator().manual_seed(2))
    return experts, x_SD.bfloat16().requires_grad_()


@pytest.mark.parametrize(
    "counts",
    [[40, 0, 33, 1], [64, 32, 0, 0], [0, 0, 0, 0]],
    ids=["parts of blocks", "whole blocks", "no row"],
)
def test_blocks_of_rows_change_no_bit(counts):
    experts, x_SD = narrow_experts(counts)
    weigh_SD = torch.randn_like(x_SD)
    found = []
    for call in (experts.forward, experts._swiglu):
        out_SD = call(x_SD, torch.tensor(counts))
        found.append([out_SD, *torch.autograd.grad(out_SD, [x_SD, *experts.parameters()], weigh_SD)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][0].shape == x_SD.shape and bool(found[0][0].any()) == (sum(counts) > 0)


def test_another_share_of_rows_makes_no_matmul_anew(capfd):
    made = []
    for way in ("forward", "_swiglu"):
        for counts in ([40, 3, 33, 1], [57, 31, 46, 9]):  # as many blocks of 32
            experts, x_SD = narrow_experts(counts, ffn=152)  # no other test has made these
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
                getattr(experts, way)(x_SD, torch.tensor(counts)).sum().backward()
            lines = capfd.readouterr().out.splitlines()
            made.append(sum("create:cache_miss" in line and "matmul" in line for line in lines))
    assert made[1] == 0, "a matmul was made for a number of rows"
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert made[0] > 0 and made[3] > 0, "oneDNN told of nothing that it made"


def explicit_balance(moe: MoE, x_BTD: Tensor) -> Tensor:
    """E Σ f P of each row, written out: f over all choices, P over all tokens."""
    losses = []
    for x_TD in x_BTD:
        probabilities_TE = (x_TD @ moe.gate.weight.T).softmax(-1)
        chosen_TK = probabilities_TE.topk(K).indices
        share_E = functional.one_hot(chosen_TK, E).sum((0, 1)) / chosen_TK.numel()
        losses.append(E * (share_E * probabilities_TE.mean(0)).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_balance_adds_the_gradient_of_its_explicit_formula(share):
    moe, x = moe_of(), hidden(rows=3).requires_grad_()
    balance_B = torch.tensor([0.5, 0.0, 2.0])
    moe.share = share
    plain, balanced = moe(x), moe(x, balance_B)
    assert torch.equal(plain, balanced)
    expected = torch.autograd.grad((explicit_balance(moe, x) * balance_B).sum(), [x, moe.gate.weight])
    without, within = gradients(plain, moe, x), gradients(balanced, moe, x)
    added = [one - other for one, other in zip(within, without, strict=True)]
    torch.testing.assert_close(added[0], share * expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(added[1], share * expected[1], rtol=1e-4, atol=1e-5)
    assert not any(extra.any() for extra in added[2:])
    assert not added[0][1].any()  # a row that weighs nothing


def test_balance_of_an_even_router_is_one():
    moe, x = moe_of(), hidden()
    with torch.no_grad():
        moe.gate.weight.zero_()
    routing = moe.gate(x.flatten(0, 1))
    even = torch.full((2, E), 24 * K // E)
    torch.testing.assert_close(moe._row_balance(even, routing.scores_NE), torch.ones(2))


def test_balance_of_rows_in_parts_is_that_of_whole_rows():
    moe, x = moe_of(), hidden(rows=2)
    halves = x[:, :10], x[:, 10:]
    statistics: list[list[Tensor]] = []

    def noted(parts: list[Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda part_BE: parts.append(part_BE) or part_BE  # type: ignore[func-returns-value]

    for half in halves:
        statistics.append([])
        moe.over_row = noted(statistics[-1])
        moe(half, torch.ones(2))
    totals = iter([one + other for one, other in zip(*statistics, strict=True)])
    moe.over_row = lambda _: next(totals)
    routing = moe.gate(halves[0].flatten(0, 1))
    counts_BE = _count(routing.chosen_NK.view(2, -1), E)
    torch.testing.assert_close(moe._row_balance(counts_BE, routing.scores_NE), explicit_balance(moe, x))


def test_bias_moves_towards_balance_and_counting_begins_anew():
    moe, x = moe_of("glm4-moe"), hidden()
    moe(x)
    chosen_E = moe.chosen_E.clone()
    assert int(chosen_E.sum()) == 2 * 24 * K
    before = moe.gate.e_score_correction_bias.clone()
    update_bias(moe, chosen_E, 0.01)
    moved = (moe.gate.e_score_correction_bias - before).sign()
    assert torch.equal(moved, (chosen_E.double().mean() - chosen_E).sign().float())
    assert not moe.chosen_E.any()
    spread = [float(chosen_E.double().std())]
    for _ in range(60):
        moe(x)
        spread.append(float(moe.chosen_E.double().std()))
        update_bias(moe, moe.chosen_E, 0.01)
    assert min(spread[-5:]) < 0.4 * spread[0]


def test_choices_are_counted_once_in_training_and_only_of_rows_that_count():
    moe, x = moe_of("glm4-moe"), hidden(rows=3)
    chosen_BE = _count(moe.gate(x.flatten(0, 1)).chosen_NK.view(3, -1), E)
    moe(x, torch.tensor([1.0, 0.0, 0.5]))
    assert torch.equal(moe.chosen_E, chosen_BE[0] + chosen_BE[2])
    moe.recomputing = True
    moe(x)
    moe.recomputing = False
    with torch.no_grad():
        moe(x)
    moe.eval()(x)
    assert torch.equal(moe.chosen_E, chosen_BE[0] + chosen_BE[2])
    assert "chosen_E" not in moe.state_dict()


def test_bias_chooses_and_does_not_weigh():
    moe, x = moe_of("glm4-moe"), hidden().flatten(0, 1)
    moe.gate.e_score_correction_bias[5] = 100.0
    routing = moe.gate(x)
    assert bool((routing.chosen_NK == 5).any(-1).all())
    scores_NE = (x @ moe.gate.weight.T).sigmoid()
    chosen = scores_NE.gather(1, routing.chosen_NK)
    torch.testing.assert_close(routing.weights_NK, chosen / chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_pieces_are_the_tensors_of_the_table(family, tied):
    dense = {} if family == "mixtral" else {"dense_layers": 1}
    shape = moe_shape(family, tie_embeddings=tied, **dense)
    with torch.device("meta"):
        pieces = whole_pieces(Decoder(shape, torch.float32))
    held = {piece.name: piece.shape for each in pieces.values() for piece in each}
    assert held == {spec.name: spec.shape for spec in tensor_table(shape)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_changes_no_gradient_and_counts_nothing_twice(family, recompute):
    model = filled(Decoder(moe_shape(family), torch.float32))
    tokens_BT, balance_B = torch.arange(64).view(2, 32), torch.tensor([0.5, 0.25])
    found = []
    for kept in ("none", recompute):
        model.model.recompute = kept
        model.zero_grad()
        model(tokens_BT, balance_B=balance_B).square().mean().backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        counts = {name: each.clone() for name, each in model.named_buffers() if name.endswith("chosen_E")}
        for each in model.modules():
            if isinstance(each, MoE):
                each.chosen_E.zero_()
        found.append((grads, counts))
    (grads, counts), (again, counts_again) = found
    assert all(torch.equal(grads[name], again[name]) for name in grads if grads[name] is not None)
    assert counts and all(torch.equal(each, counts_again[name]) for name, each in counts.items())
    expected = 2 * 32 * K if family == "glm4-moe" else 0
    assert {int(each.sum()) for each in counts.values()} == {expected}


@pytest.mark.filterwarnings("ignore")  # torch's tracer warns of what it does itself
@pytest.mark.parametrize(("family", "ffn"), [("qwen3-moe", F), ("mixtral", 5), ("glm4-moe", F)])
def test_compiled_block_computes_the_same(family, ffn):
    shared = {"shared_ffn": 2 * ffn} if family == "glm4-moe" else {}
    moe, balance_B = moe_of(family, expert_ffn=ffn, **shared), torch.tensor([0.5, 0.25])
    torch._dynamo.reset()
    compiled = torch.compile(moe, backend="aot_eager", dynamic=False)
    for seed in range(2):  # another share of the rows for each expert every time
        x = hidden(seed=seed).requires_grad_()
        expected, found = moe(x, balance_B), compiled(x, balance_B)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        pairs = zip(gradients(expected, moe, x), gradients(found, moe, x), strict=True)
        assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)
    narrow = hidden().bfloat16()
    torch.testing.assert_close(compiled(narrow), moe(narrow), rtol=0.02, atol=0.02)
    torch._dynamo.reset()
    if family == "glm4-moe":
        assert int(moe.chosen_E.sum()) == (2 + 1) * 2 * 2 * 24 * K


@pytest.mark.parametrize("family", FAMILIES)
def test_same_input_gives_the_same_bits(family):
    moe, x = moe_of(family), hidden().requires_grad_()
    once, again = gradients(moe(x), moe, x), gradients(moe(x), moe, x)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
