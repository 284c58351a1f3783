"""Data that is on every machine with Python: its own library, rendered as books, code and questions."""
