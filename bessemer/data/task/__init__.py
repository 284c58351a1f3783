"""A fine-tuning task: rows of any usual format become examples, documents with what is learnt of them.

In the order in which a row meets them (build.py leads it through):
    inputs, formats      where the rows are, which columns are read
    reading, messages    a row becomes a sample (samples.py), or is counted with a reason (unusable.py)
    leaks, classes       what is held out, which labels there are
    templates, render    a chat becomes a text, by a template in a process of its own (render_worker.py)
    spelt, pieces        what was spelt stays letters; a text is encoded piece by piece
    encoding, whole      tokens, and which of them are learnt; whole: all of them (learn = "all")
    cuts, writing        what is too long is shortened; the examples are written
    telling              what the build says of it
"""

WHAT = "finetune.data"  # what errors and reports call it
