"""What lowers joules per token: power limits of boards and the CPUs' governor, moved and put back."""
