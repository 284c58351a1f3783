"""What the receipt of an export proves, in the words of a model card."""

from typing import Any


def fidelity(receipt: dict[str, Any]) -> str:
    difference = receipt["max_absolute_logit_difference"]
    other = "peft" if "base_hash" in receipt else "transformers"
    proof = (
        f"Largest difference of a logit between Bessemer's decoder and {other} {receipt[other]}, both "
        f"reading these files{' and their base' if other == 'peft' else ''} in fp32: {difference:.2e}."
        if difference is not None
        else f"Not compared with {other}: {receipt['reason']}."
    )
    return f"Weights: {receipt['dtype']}, {receipt['weights']}. {proof}{_merged(receipt)}"


def _merged(receipt: dict[str, Any]) -> str:
    """What merging adapters changed."""
    merge = receipt.get("merge")
    if merge is None:
        return ""
    if merge["max_absolute_logit_difference"] is None:
        return f" Not compared with the adapters apart: {merge['reason']}."
    told = (
        f" Largest difference of a logit between the adapters apart and merged, on {merge['tokens']} tokens "
        f"({merge['text']}): {merge['max_absolute_logit_difference']:.2e}."
    )
    if made := merge.get("quantisation"):
        told += (
            f" The adapters were trained beside weights in {made['base']}, and are merged onto those of full "
            f"precision: that changes a logit by {made['max_absolute_logit_difference']:.2e} at most, "
            f"{made['mean_absolute_logit_difference']:.2e} on average; the likeliest next token stays the "
            f"same for {made['same_next_token']:.1%} of the tokens."
        )
    return told
