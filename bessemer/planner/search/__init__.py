"""Which layout: every one that the cluster, the model and the batch allow, costed, and the best of them."""
