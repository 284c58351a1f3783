"""What is done to a document's text, and what is measured on it. Nothing is dropped here."""
