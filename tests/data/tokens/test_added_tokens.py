"""Special tokens beside those of a tokenizer: what they are, and that nothing else changes."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.added import new_tokens, with_tokens
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.errors import RecipeError

TEXTS = ["the quick brown fox", "  <|im_ start|> 3.14 ä\n", "im_start|>"]
NAMES = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def learnt() -> TextTokenizer:
    return tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 20, 300)


def test_added_tokens_follow_on_the_old_ones_and_other_texts_are_encoded_as_before(learnt) -> None:
    grown = with_tokens(learnt, NAMES, print)
    assert new_tokens(learnt, grown) == (learnt.vocab, learnt.vocab + 1)
    assert grown.vocab == learnt.vocab + 2
    assert (grown.bos_id, grown.eos_id, grown.pad_id) == (learnt.bos_id, learnt.eos_id, learnt.pad_id)
    assert grown.encode(TEXTS) == learnt.encode(TEXTS)
    before, after = json.loads(learnt.text), json.loads(grown.text)
    assert after.pop("added_tokens")[: len(before["added_tokens"])] == before.pop("added_tokens")
    assert before == after


def test_they_are_what_hugging_face_would_add(learnt, tmp_path: Path) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(learnt.text))
    theirs.add_special_tokens({"additional_special_tokens": NAMES})
    ours = Tokenizer.from_str(with_tokens(learnt, NAMES, print).text)
    for text in [*TEXTS, "<|im_start|>the fox<|im_end|>\n"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text)["input_ids"]


def test_token_that_is_there_is_used_as_it_is_and_said(learnt) -> None:
    said: list[str] = []
    assert with_tokens(learnt, ["<|eos|>", "<|eos|>"], said.append) is learnt
    assert len(said) == 1 and "<|eos|>" in said[0] and "already" in said[0]
    once = with_tokens(learnt, NAMES, print)
    assert with_tokens(once, NAMES, said.append).text == once.text
    assert new_tokens(once, with_tokens(once, ["<a>", "<a>", *NAMES], print)) == (once.vocab,)


@pytest.mark.parametrize("name", ["", "  ", " <a>"])
def test_name_that_is_no_token_is_refused(learnt, name: str) -> None:
    with pytest.raises(RecipeError, match="add_tokens"):
        with_tokens(learnt, [name], print)
