"""Run by the Python of the peers: argument 1 names a safetensors file with `weight`; writes what comes of it.

Argument 2: the file to write: `codes`, `scales`, and `values` in the weight's type.
"""

import json
import sys

import bitsandbytes
import bitsandbytes.functional as bnb
from safetensors.torch import load_file, save_file

weight = load_file(sys.argv[1])["weight"]
codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
values = bnb.dequantize_4bit(codes, state)
save_file({"codes": codes, "scales": state.absmax, "values": values}, sys.argv[2])
print(json.dumps({"version": bitsandbytes.__version__}))
