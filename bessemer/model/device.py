"""The device that this process computes on."""

import torch


def this_device() -> torch.device:
    """The accelerator if torch sees one, else the CPU."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        assert found is not None
        return found
    return torch.device("cpu")
