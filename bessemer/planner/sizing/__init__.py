"""Models and lengths that a budget decides, and whether the data is enough for them."""
