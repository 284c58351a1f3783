"""On what is planned: the devices, their links and prices, and what is known of this machine."""
