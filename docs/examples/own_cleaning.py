"""A cleaning step of one's own: headings go, and what is left without a full stop is refused.

[data.clean]
code = "own_cleaning:without_headings"     # module:function; the file lies beside the recipe

bessemer data build RECIPE --allow-code
"""

import pyarrow as pa


def without_headings(batch: pa.RecordBatch) -> pa.RecordBatch:
    """batch: id, text and source of some documents. Returns the same rows; a text that is null is refused."""
    texts = []
    for text in batch["text"].to_pylist():
        kept = "\n".join(line for line in text.split("\n") if not line.startswith("#")).strip()
        texts.append(kept if "." in kept else None)
    columns = [batch["id"], pa.array(texts, pa.string()), batch["source"]]
    return pa.record_batch(columns, names=["id", "text", "source"])
