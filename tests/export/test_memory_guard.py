"""Whether two models are compared on this machine: by all of their weights, whatever of them learns."""

from dataclasses import replace

import pytest

from bessemer.export import parity
from bessemer.formulas.shape import Adapter, ModelShape

SHAPE = ModelShape("llama", 4, 512, 8, 8, 64, 2048, 32000, 64, tie_embeddings=False, qk_norm=False)


@pytest.mark.parametrize("base", ["float", "nf4"])
def test_adapters_make_a_model_no_smaller(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity.os, "sysconf", {"SC_PHYS_PAGES": 1 << 17, "SC_PAGE_SIZE": 4096}.__getitem__)
    adapted = replace(SHAPE, adapter=Adapter(4, 8.0, ("q_proj",), base=base))
    reason = parity.why_not(adapted, "bessemer")
    assert reason is not None and reason == parity.why_not(SHAPE, "bessemer")
