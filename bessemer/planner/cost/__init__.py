"""What a layout costs: time and memory of many layouts at once, column by column (numpy, no torch)."""
