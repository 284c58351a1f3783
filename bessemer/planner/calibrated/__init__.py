"""Step times on a machine that was measured: its tables, the step put together from them, what runs have
taught."""
