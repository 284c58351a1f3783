"""How large a model and how many tokens: laws of the loss, sizes, data read again and again."""
