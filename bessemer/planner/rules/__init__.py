"""What keys of a recipe must be together, checked when it is resolved."""
