"""Bytes: of a device that trains a whole model, of a rank of a layout, with adapters, while answers are
sampled."""
