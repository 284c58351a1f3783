"""The peer on a GPU: transformers' LlamaForCausalLM in a plain loop, bf16 by autocast over fp32 weights.

Attention is torch's scaled_dot_product_attention, which takes its flash kernel for causal rows without
padding. AdamW is fused and nothing waits for the device inside a step, so all is as fast as it comes.
Dims: B rows, T tokens in a row.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bessemer.formulas.huggingface.config import config_from_shape
from bessemer.planner.plan import Plan


class TransformersStep:
    """A model under training: each call is one update."""

    def __init__(self, plan: Plan, device: torch.device, *, compiled: bool) -> None:
        stage = plan.pretrain
        values = config_from_shape(plan.shape, torch_dtype="float32") | {"use_cache": False}
        config = LlamaConfig(**values, attn_implementation="sdpa")
        with device:
            model = LlamaForCausalLM(config)
        model.train()
        self._device, self._grad_clip = device, stage.grad_clip
        self.model = model
        self._forward = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=stage.lr,
            betas=stage.betas,
            eps=stage.eps,
            weight_decay=stage.weight_decay,
            fused=True,
        )

    def __call__(self, window_BT: Tensor) -> Tensor:
        """The loss, still on the device. window_BT: [B, T + 1] token ids on the CPU."""
        tokens_BT = window_BT[:, :-1].to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            loss: Tensor = self._forward(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        if self._grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()
