"""Run as a process of its own: load a Hugging Face folder into a packed base, take one step, tell the memory.

Arguments: the folder, the base's kind. Prints JSON: bytes that came to the process's own (anonymous) memory
at most, sampled each millisecond, until it was loaded and with the step; and bytes of the model's parameters.
Mapped files do not count.
"""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.formulas.shape import Adapter
from bessemer.model.adapter import base_pieces, trained_pieces
from bessemer.model.decoder import Decoder
from bessemer.model.init import fill
from bessemer.model.loss import next_token_loss
from bessemer.model.pieces import whole_pieces

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.ends = own_bytes(), False

    def run(self) -> None:
        while not self.ends:
            self.bytes = max(self.bytes, own_bytes())
            time.sleep(0.001)


def main(folder: Path, base: str) -> None:
    torch.set_num_threads(1)
    torch.ones(8, 8) @ torch.ones(8, 8)  # what torch sets up for its first matmul
    plain = read_shape(folder)
    before, peak = own_bytes(), Peak()
    peak.start()
    shape = replace(plain, adapter=Adapter(8, 16.0, TARGETS, base=base))
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    model.to_empty(device="cpu")
    pieces = whole_pieces(model)
    fill(model, trained_pieces(pieces, shape), shape, 0)
    load_into(model, folder, plain, base_pieces(pieces, shape))
    loaded = peak.bytes - before
    tokens_BT = torch.arange(32).unsqueeze(0)
    hidden_ND = model(tokens_BT).flatten(0, 1)
    next_token_loss(hidden_ND, model.head_weight, tokens_BT.flatten()).backward()
    peak.ends = True
    peak.join()
    parameters = sum(weight.nbytes for weight in model.parameters())
    told = {"loaded_bytes": loaded, "stepped_bytes": peak.bytes - before, "parameter_bytes": parameters}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
