"""Special tokens that a tokenizer gets beside its own: those of a chat template, mostly.

The rest of tokenizer.json stays as Hugging Face's library writes it back; texts without these names are
encoded as before. A name that is a token already is used as it is. New numbers follow on the old ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine

from bessemer.data.tokens.tokenizer import TextTokenizer, from_text
from bessemer.errors import RecipeError


def with_tokens(tokenizer: TextTokenizer, names: Sequence[str], say: Callable[[str], None]) -> TextTokenizer:
    """The same with these special tokens. say: is told of those that are there already.

    RecipeError for a name that is none.
    """
    for name in names:
        if not name.strip() or name != name.strip():
            raise RecipeError(
                "finetune.add_tokens has a name that cannot be a token",
                found=repr(name),
                wanted="a name without blanks at its ends",
                fix='write it as the chat template does, such as "<|im_start|>"',
            )
    known = [name for name in dict.fromkeys(names) if tokenizer.engine.token_to_id(name) is not None]
    new = [name for name in dict.fromkeys(names) if name not in known]
    if known:
        say(f"add_tokens: {', '.join(known)}: in the vocabulary already, used as it is")
    if not new:
        return tokenizer
    engine = Engine.from_str(tokenizer.text)  # the one in use leaves out padding and cutting
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in new])
    grown = from_text(engine.to_str(), "the tokenizer with finetune.add_tokens", tokenizer.special_words())
    ids = new_tokens(tokenizer, grown)
    assert len(ids) == len(new), f"{new} became {ids}: two tokens with one number"
    return replace(grown, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)


def new_tokens(before: TextTokenizer, after: TextTokenizer) -> tuple[int, ...]:
    """Numbers that only the second one has."""
    old, new = (set(each.engine.get_vocab(with_added_tokens=True).values()) for each in (before, after))
    return tuple(sorted(new - old))
