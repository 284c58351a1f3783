"""What the ranks of a layout exchange in a step, exchange by exchange."""
