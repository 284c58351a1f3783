"""The peer litgpt: its GPT in a plain training loop, as its own `pretrain` does it on one device.

bf16 by autocast over fp32 weights (its precision "bf16-mixed"). Two kindnesses: fused AdamW, which
litgpt takes on CUDA only, and, compiled, the loss inside the compiled function, where its own loop
leaves it outside.
"""

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy
from task import StepClock, Task, batches, read_task, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy


def main() -> None:
    task = read_task()
    torch.manual_seed(0)
    model = build(task)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=task.lr, betas=task.betas, weight_decay=task.weight_decay, fused=True
    )

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = model(tokens_BT)
        if task.compiled:
            return cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        loss: Tensor = chunked_cross_entropy(logits_BTV, targets_BT)
        return loss

    if task.compiled:
        loss_of = torch.compile(loss_of)
    clock = StepClock()
    for tokens_BT, targets_BT in batches(task):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(tokens_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        clock.step_ended(loss.item())
    write_result(task, clock, model, "litgpt")


def build(task: Task) -> GPT:
    config = Config(
        block_size=task.context,
        vocab_size=task.vocab,
        padded_vocab_size=task.vocab,
        n_layer=task.layers,
        n_head=task.heads,
        n_query_groups=task.heads,
        n_embd=task.hidden,
        intermediate_size=task.ffn,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight  # as its train.tie_embeddings does
    return model


if __name__ == "__main__":
    main()
