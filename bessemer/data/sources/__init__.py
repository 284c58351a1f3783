"""Where documents come from: files of every kind, databases, data sets. One reader a kind."""
