"""What is drawn, while it is drawn: a machine's meter, phases, several machines, work beside training."""
