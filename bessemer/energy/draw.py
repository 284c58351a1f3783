"""What a device draws in a whole training, its part of the node included: by kind of work and scale.

Accelerators of the catalogue: the board's limit times its mean share, and what the node draws around it, by
the rule of plans and accounts (energy/power.py). In pre-training a board is at 0.87 of its limit. Fine-tuning
is short and scaled hard: on one node a board is at 0.92, with each doubling of nodes 6.5 points less, as more
of the time goes to exchanges, down to what a board draws that mostly waits. TPUs were published with their
host, as a mean of whole trainings.
Anchors: MLPerf 4.0's node-metered logs of H100 (GPT-3 on 64 nodes, Llama 2 70B LoRA on 1, 8 and 64),
Patterson 2021 table 4 (TPUv3), PaLM appendix B (TPUv4). What is predicted of those same rows is in-sample.
"""

import math

from bessemer.energy.power import Band, around_each
from bessemer.hardware import Device

PRETRAINING, FINE_TUNING = "pre-training", "fine-tuning"
_WITH_HOST_W = {"TPUv3": 283.0, "TPUv4": 378.5}
_BAND = 0.22
_PRETRAINING_SHARE, _ALONE_SHARE, _PER_DOUBLING, _LEAST_SHARE = 0.87, 0.92, 0.065, 0.50
_WORDS = ("lora", "fine-tun", "finetun", "sft", "dpo", "rlhf", "grpo", "instruct")


def kind_of_work(text: str) -> str:
    """By the words of a name: a LoRA, an SFT … is fine-tuning, everything else pre-training."""
    return FINE_TUNING if any(word in text.lower() for word in _WORDS) else PRETRAINING


def mean_draw(device: Device, devices: int | None, work: str) -> Band | None:
    """Watts of one device with its part of the node; None where the board's limit is not known.

    devices: of the whole training; None: not known, then as on one node.
    """
    with_host_w = _WITH_HOST_W.get(device.name)
    if with_host_w is None:
        if not device.tdp_w:
            return None
        around_w = around_each(device, devices).value
        with_host_w = device.tdp_w * board_share(device, devices, work) + around_w
    return Band(with_host_w, (1.0 - _BAND) * with_host_w, (1.0 + _BAND) * with_host_w)


def board_share(device: Device, devices: int | None, work: str) -> float:
    """Mean power of a board over its limit."""
    if work == PRETRAINING:
        return _PRETRAINING_SHARE
    nodes = max(1.0, (devices or 1) / (device.devices_per_node or 8))
    return max(_LEAST_SHARE, _ALONE_SHARE - _PER_DOUBLING * math.log2(nodes))
