"""Proofs on the user's own machine: that every layout trains as one process does."""
