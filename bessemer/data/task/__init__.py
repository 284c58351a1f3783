"""A fine-tuning task: rows of any usual format become examples, documents with what is learnt of them."""

WHAT = "finetune.data"  # what errors and reports call it
