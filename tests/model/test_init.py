"""Initial values: the same on any rank, right in distribution, and set for every weight."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import count_params, tensor_table
from bessemer.model import init
from bessemer.model.decoder import Decoder
from bessemer.model.init import initial_values, initialise

BLOCK = 65536
SHAPE = ModelShape(
    family="qwen3",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocab=1280,  # the embedding spans two blocks
    context=64,
    tie_embeddings=False,
    qk_norm=True,
)
GOLDEN = [  # first values of each block, made when the rule was fixed
    [2.387615442, 0.468872130, -0.356409281, -0.032580581],
    [0.353356868, -1.232163548, -1.176906347, -1.020451427],
]
TIED = replace(SHAPE, tie_embeddings=True)


class Allocated(TorchDispatchMode):
    """Elements of all tensors that were given memory of their own by `empty` and its kin."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if "empty" in func.__name__ and out.device.type != "meta":
            self.elements += out.numel()
        return out


@pytest.fixture
def unset_memory_is_nan() -> Iterator[None]:
    """torch then fills what `empty` returns, so that a forgotten weight shows up every time."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def matrix(rows: int, columns: int, name: str = "a.weight", std: float = 1.0) -> TensorSpec:
    return TensorSpec(name, (rows, columns), std, decay=True)


def on_meta(shape: ModelShape) -> Decoder:
    with torch.device("meta"):
        return Decoder(shape, torch.float32)


# Rows of 1000 do not divide a block, so block borders lie inside rows; rows of 65536 are one block each.
@pytest.mark.parametrize(("rows", "columns"), [(300, 1000), (5, BLOCK), (3, 2 * BLOCK + 7), (200_000, 1)])
def test_any_range_of_rows_equals_that_slice_of_the_whole(rows: int, columns: int) -> None:
    spec = matrix(rows, columns)
    whole = initial_values(spec, seed=3)
    borders = {min(rows, max(0, n * BLOCK // columns + near)) for n in range(6) for near in (-1, 0, 1)}
    ends = sorted({0, rows // 3, rows} | borders)
    for first in ends:
        for last in ends:
            if first <= last:
                part = initial_values(spec, seed=3, rows=slice(first, last))
                assert torch.equal(part, whole[first:last]), (first, last)


def test_slices_from_the_end_and_beyond_it_mean_what_they_mean_in_python() -> None:
    whole = initial_values(matrix(300, 1000), seed=3)
    for rows in (slice(-5, None), slice(None, -290), slice(290, 999), slice(400, 500)):
        assert torch.equal(initial_values(matrix(300, 1000), seed=3, rows=rows), whole[rows])


def test_values_of_vectors_are_constant_and_sliced_too() -> None:
    norm = TensorSpec("a.norm", (10,), None, decay=False)
    bias = TensorSpec("a.bias", (10,), 0.0, decay=False)
    assert torch.equal(initial_values(norm, seed=0), torch.ones(10))
    assert torch.equal(initial_values(norm, seed=0, rows=slice(2, 5)), torch.ones(3))
    assert torch.equal(initial_values(bias, seed=0, rows=slice(2, 5)), torch.zeros(3))


def test_values_are_normal_with_the_std_of_the_spec() -> None:
    values = initial_values(matrix(1000, 500, std=0.03), seed=0) / 0.03
    assert values.dtype == torch.float32
    num = values.numel()
    standard_error = 1.0 / math.sqrt(num)
    assert abs(float(values.mean())) < 4 * standard_error
    assert abs(float(values.std()) - 1.0) < 4 * standard_error / math.sqrt(2)
    for bound in (-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0):
        want = 0.5 * (1.0 + math.erf(bound / math.sqrt(2.0)))
        got = float((values < bound).double().mean())
        assert abs(got - want) < 4 * math.sqrt(want * (1 - want) / num), bound


def test_model_has_small_init_and_smaller_still_into_the_residual_stream() -> None:
    small = math.sqrt(2 / (5 * SHAPE.hidden))
    for spec in tensor_table(SHAPE):
        values = initial_values(spec, seed=0)
        into_residual = spec.name.endswith(("o_proj.weight", "down_proj.weight"))
        want = small / math.sqrt(2 * SHAPE.layers) if into_residual else small
        if spec.name.endswith("norm.weight"):
            assert torch.equal(values, torch.ones(spec.shape)), spec.name
        else:
            assert abs(float(values.std()) / want - 1) < 4 / math.sqrt(2 * spec.numel), spec.name


def test_names_seeds_and_blocks_have_values_of_their_own() -> None:
    size = (1, 3 * BLOCK)
    streams = [initial_values(matrix(*size, name=name), seed) for name in ("a", "b", "ab") for seed in (0, 1)]
    # A stream of another name must not be this one shifted by a block either.
    blocks = torch.cat(streams).view(-1, BLOCK)
    correlation = torch.corrcoef(blocks).fill_diagonal_(0.0)
    assert blocks.shape[0] == 18 and correlation.abs().max() < 5 / math.sqrt(BLOCK)


@pytest.mark.parametrize("seed", [0, 1, 2**63, -1])
def test_repeated_call_gives_the_same_bits(seed: int) -> None:
    spec = matrix(70, 1000)
    torch.manual_seed(seed % 7)  # torch's own generator has no say
    assert torch.equal(initial_values(spec, seed), initial_values(spec, seed))


def test_values_do_not_change_between_versions() -> None:
    """Who resumes or repeats a run with a later version gets the weights of the earlier one."""
    spec = matrix(2, BLOCK, name="model.embed_tokens.weight")
    torch.testing.assert_close(initial_values(spec, seed=0)[:, :4], torch.tensor(GOLDEN), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])
@pytest.mark.usefixtures("unset_memory_is_nan")
def test_every_parameter_of_a_meta_model_gets_its_initial_values(shape: ModelShape) -> None:
    model = on_meta(shape)
    initialise(model, shape, seed=4, device="cpu")
    assert not list(model.buffers())  # nothing would set one
    parameters = dict(model.named_parameters())
    assert parameters.keys() == {spec.name for spec in tensor_table(shape)}
    for spec in tensor_table(shape):
        assert torch.equal(parameters[spec.name], initial_values(spec, seed=4)), spec.name
        assert parameters[spec.name].requires_grad and parameters[spec.name].dtype == torch.float32


def test_model_starts_with_the_loss_of_a_uniform_guess() -> None:
    model = on_meta(SHAPE)
    initialise(model, SHAPE, seed=0, device="cpu")
    tokens = torch.randint(0, SHAPE.vocab, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.logits(model(tokens))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(float(loss) - math.log(SHAPE.vocab)) < 0.5


@pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])
def test_model_on_meta_is_given_memory_and_values_once(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def spy(spec: TensorSpec, seed: int, rows: slice) -> Tensor:
        assert rows == slice(0, spec.shape[0])
        made.append(spec.name)
        return initial_values(spec, seed, rows)

    monkeypatch.setattr(init, "initial_values", spy)
    with Allocated() as building:
        model = on_meta(shape)
    assert building.elements == 0 and {weight.device.type for weight in model.parameters()} == {"meta"}
    with Allocated() as materialising:
        initialise(model, shape, seed=0, device="cpu")
    assert materialising.elements == count_params(shape)
    assert sorted(made) == sorted(spec.name for spec in tensor_table(shape))


def test_tied_head_is_the_embedding_itself() -> None:
    model = on_meta(TIED)
    initialise(model, TIED, seed=0, device="cpu")
    assert model.head_weight is model.model.embed_tokens.weight
    assert sum(weight.numel() for weight in model.parameters()) == count_params(TIED)
