"""Show a row exactly as the model gets it: each token, whether it is a target, whose document it is."""

from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from bessemer.data.labels import labels
from bessemer.data.prepared import PreparedTask, Split, open_prepared
from bessemer.data.rows import NO_LOSS
from bessemer.data.task.telling import shares
from bessemer.errors import RecipeError

_CONTEXT = 512


def inspect_row(folder: Path, split: str, index: int, context: int | None) -> dict[str, Any]:
    """One row of prepared data as JSON. A token's `loss` says that predicting it is learnt."""
    prepared = open_prepared(folder)
    if context is None:
        context = int(prepared.manifest.get("context", _CONTEXT))
    rows = prepared.rows(cast(Split, split), context)
    if not 0 <= index < len(rows):
        raise RecipeError(
            f"--row {index} is not in the {split} split",
            found=f"{len(rows)} rows of {context} tokens",
            wanted=f"0 to {len(rows) - 1}" if len(rows) else "a split that holds something",
            fix="choose another --row, --split or --context",
        )
    row, known = rows.row(index), labels(prepared, cast(Split, split))
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    # A token is a target where the token before it predicts it; the first one's is in the row before.
    learnt = [False, *(target != NO_LOSS for target in row.targets_T[:-1].tolist())]
    shown = rows.documents(index)
    return {
        "folder": str(folder),
        "kind": "finetune" if isinstance(prepared, PreparedTask) else "pretrain",
        "split": split,
        "row": index,
        "num_rows": len(rows),
        "context": context,
        "targets": int((row.targets_T != NO_LOSS).sum()),
        "padding": context - shown[-1][2],
        "shares": shares(prepared.manifest, split) if isinstance(prepared, PreparedTask) else None,
        "documents": [
            {"number": number, "begin": begin, "end": end, **known[number]} for number, begin, end in shown
        ],
        "tokens": [
            {
                "place": place,
                "id": token,
                "text": piece(engine, token),
                "target": target,
                "start": start,
                "loss": loss,
            }
            for place, (token, target, start, loss) in enumerate(
                zip(row.tokens_T.tolist(), row.targets_T.tolist(), row.starts_T.tolist(), learnt, strict=True)
            )
        ],
    }


def piece(engine: Tokenizer, token: int) -> str:
    """The text of one token; the vocabulary's own spelling where it is only a part of a character."""
    text = str(engine.decode([token], skip_special_tokens=False))
    return text if text and "\ufffd" not in text else str(engine.id_to_token(token))
