"""A Hugging Face `config.json`, read: as a shape we train, or as far as a plan needs it."""
