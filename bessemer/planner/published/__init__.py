"""Published training runs as rows of a table: what they were, what they took, and how well we predict it."""
