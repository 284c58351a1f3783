"""Bessemer trains large AI models end to end, and says beforehand what that will take.

Layers, words and formats: docs/design.md. As a library: docs/library.md.
"""

__version__ = "0.1.0"
