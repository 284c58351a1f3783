"""The shard axis, and replicas of shards: torch's FSDP2 over a mesh of one dim or two (HSDP).

Each block is one unit: its weights are gathered before use and freed after it, its gradients are summed
and scattered while the block before computes. Gradients are summed, never averaged: the loss was divided
by the count of all target tokens already.
`reshard=no` keeps gathered weights from forward to backward (ZeRO-2). Replicas of experts or of a pipeline
shard over one rank; those of whole weights have parallel/replicate.py, as FSDP2 makes and fills a second copy
of all weights for nothing there.
Source: arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from bessemer.formulas.schedule import splits_backward
from bessemer.model.decoder import Block, Decoder
from bessemer.model.layers import Linear, RMSNorm
from bessemer.model.moe import MoE, Router
from bessemer.parallel.mesh import Mesh


def shard(model: Decoder, mesh: Mesh) -> None:
    """Wrap every block, the embedding and what is left. On the meta device, after all else."""
    if not mesh.shards_weights:
        return
    # In a pipeline gathered weights stay until the end of the step: other micro-batches need them again.
    # Where each rank has all of them, freeing and copying them gains nothing.
    reshard = mesh.layout.reshard and mesh.layout.pipeline == 1 and mesh.degree["fsdp"] > 1
    settings: dict[str, Any] = {"mesh": mesh.weights(), "reshard_after_forward": reshard}
    alone: set[nn.Parameter] = set()  # experts that no other rank holds
    for block in model.model.layers.values():
        assert isinstance(block, Block)
        if mesh.layout.expert > 1 and isinstance(block.feed_forward, MoE):
            alone |= _shard_experts(block.feed_forward.experts, model, mesh, reshard)
        matrices = _of_matrices(model, mesh, mesh.degree["fsdp"])
        if matrices["mp_policy"].param_dtype is not None:
            # Norms, routers and magnitudes compute in fp32: their few weights are a unit of their own.
            others: list[nn.Module] = [
                module for module in block.modules() if isinstance(module, RMSNorm | Router)
            ]
            fully_shard([*others, *_magnitudes(block)], **settings)  # type: ignore[arg-type]
        fully_shard(block, **settings, **matrices, ignored_params=alone)
    if model.model.embed_tokens is not None and not model.shape.tie_embeddings:
        fully_shard(model.model.embed_tokens, **settings)
    # Final norm and head stay gathered between forward and backward, where the loss uses the head.
    fully_shard(model, **{**settings, "reshard_after_forward": False}, ignored_params=alone)
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _of_matrices(model: Decoder, mesh: Mesh, ranks: int) -> dict[str, Any]:
    """Settings of a unit of matrices: they are cast before they travel, which rounds as casting on use does
    and halves the bytes; gradients are added in fp32. Not where weight gradients wait (model/deferred.py):
    they are added up where they stand."""
    cast = model.compute if model.compute != torch.float32 and not splits_backward(mesh.layout) else None
    policy = MixedPrecisionPolicy(
        param_dtype=cast, reduce_dtype=torch.float32 if cast else None, cast_forward_inputs=False
    )
    return {"mp_policy": policy, "shard_placement_fn": lambda weight: _placement(weight, ranks)}


def _magnitudes(block: Block) -> list[nn.Module]:
    found = [module.lora_magnitude_vector for module in block.modules() if isinstance(module, Linear)]
    return [magnitude for magnitude in found if magnitude is not None]


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sharded_over(weight: Tensor) -> DeviceMesh | None:
    """The ranks that a weight is sharded over; an optimizer's kernel wants one answer for all it is given."""
    return weight.device_mesh if isinstance(weight, DTensor) else None


def before_backward(model: nn.Module, mesh: Mesh, *, last: bool) -> None:
    """What the coming backward pass does with gradients, by whether it is the step's last.

    Sharded gradients are scattered after every micro-batch, so that no rank holds whole ones; over the
    replicate axis, and where FSDP has one rank, they are summed once a step.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_is_last_backward(last)
    if mesh.degree["fsdp"] == 1:
        model.set_requires_gradient_sync(last)
    elif mesh.degree["replicate"] > 1:
        model.set_requires_all_reduce(last)


def free_gathered(model: nn.Module) -> None:
    """After a forward pass that no backward pass follows: parameters are this rank's parts again.

    Final norm and head stay gathered otherwise, and an optimizer that is made then would hold copies.
    """
    for module in sharded_modules(model):
        module.reshard()


def hold_gradients(model: nn.Module) -> None:
    """Backward passes from now on leave whole gradients and gathered weights alone."""
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(False)
        model.set_reshard_after_backward(False)
        model.set_requires_gradient_sync(False)


def release_gradients(model: nn.Module) -> None:
    """Reduce and scatter what was held, and free the gathered weights, without a backward pass.

    A pipeline's last backward pass need not be the one that ends a weight's gradient (zero bubble). torch
    has no public call for it; its own pipelining does the same.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_is_last_backward(True)
    model.set_reshard_after_backward(True)
    model.set_requires_gradient_sync(True)
    root = fully_shard.state(model)  # type: ignore[attr-defined]
    for state in root._state_ctx.all_states:
        for group in _groups(state):
            group.post_backward()
    root._root_post_backward_final_callback()


def _groups(state: Any) -> list[Any]:
    """Of any supported torch: 2.12 and later may have several in a module."""
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [state._fsdp_param_group] if state._fsdp_param_group else []
    return list(groups)


def _shard_experts(experts: nn.Module, model: Decoder, mesh: Mesh, reshard: bool) -> set[nn.Parameter]:
    """Over the ranks that hold the same experts. Returns those that no other rank holds."""
    over = mesh.experts()
    if over is None:
        return set(experts.parameters())
    matrices = _of_matrices(model, mesh, mesh.degree["inner"])
    fully_shard(experts, mesh=over, reshard_after_forward=reshard, **matrices)
    return set()


def _placement(weight: nn.Parameter, ranks: int) -> Shard | None:
    """Stacked experts: by expert where that is even, else inside each expert; other weights: by rows."""
    if weight.dim() == 3 and weight.shape[0] % ranks and weight.shape[1] % ranks == 0:
        return Shard(1)
    return Shard(0)
