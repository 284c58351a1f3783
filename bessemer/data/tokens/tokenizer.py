"""Text to tokens: byte-level BPE trained on the data, or a ready tokenizer.json.

Trained: split as Llama 3 and GPT-4 split (words with their space, numbers of up to three digits), all
256 bytes in the alphabet, so that any text comes back exactly. It learns from counted words (words.py),
so from all of the training split, and gives the tokenizer.json that Hugging Face's trainer would.
Text never becomes a special token: `<|eos|>` inside a document is encoded as the letters it is.
Cost: encoding here 4 MB/s on one core (Hugging Face tokenizers 0.23); encoder.py is the fast way.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from bessemer.data.tokens.bpe import learn_merges
from bessemer.data.tokens.words import SPLIT, count_words
from bessemer.errors import DataError, RecipeError

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
# As the common families name them, looked up in this order.
_BOS_NAMES = (BOS, "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]")
_EOS_NAMES = (EOS, "</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<｜end▁of▁sentence｜>", "[EOS]")
_PAD_NAMES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>")


@dataclass(frozen=True)
class TextTokenizer:
    engine: Engine
    text: str  # tokenizer.json
    vocab: int
    bos_id: int | None
    eos_id: int
    pad_id: int | None

    @property
    def xxh3_128(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.text.encode())

    @classmethod
    def read(cls, path: Path, special: Mapping[str, Any] | None = None) -> "TextTokenizer":
        """A tokenizer.json that is known to be one. `special`: what `description` said of it."""
        text = path.read_text(encoding="utf-8")
        if special is None:
            return from_text(text, str(path))
        ids = (special["bos_id"], special["eos_id"], special["pad_id"])
        return cls(_engine(text, str(path)), text, special["vocab"], *ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Without begin and end."""
        try:
            encoded = self.engine.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                "a text has words that this tokenizer cannot encode",
                found=str(error),
                wanted="words of its vocabulary: it has no token for others",
                fix="give it such words (tokens made elsewhere: their numbers, with blanks between)",
            ) from error
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.engine.decode(list(ids), skip_special_tokens=False))

    def document(self, ids: Sequence[int]) -> list[int]:
        """With begin (where the tokenizer has one) and end, each once."""
        begin = [] if self.bos_id is None else [self.bos_id]
        inner = list(ids[1:]) if begin and ids and ids[0] == self.bos_id else list(ids)
        return [*begin, *inner] if inner and inner[-1] == self.eos_id else [*begin, *inner, self.eos_id]

    def special_words(self) -> dict[str, str]:
        """bos_token, eos_token and pad_token, as far as there are any."""
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {key: str(self.engine.id_to_token(token)) for key, token in ids.items() if token is not None}

    def config_text(self, more: Mapping[str, str] | None = None) -> str:
        """tokenizer_config.json: which tokens begin, end and pad, so that nobody needs to guess again."""
        return json.dumps({**self.special_words(), **(more or {})}, indent=1, ensure_ascii=False) + "\n"

    def description(self) -> dict[str, Any]:
        """What a manifest keeps."""
        return {
            "file": "tokenizer.json",
            "xxh3_128": self.xxh3_128,
            "vocab": self.vocab,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
        }


def train(texts: Iterable[str], vocab: int) -> TextTokenizer:
    """The same texts give the same tokenizer. Fewer than `vocab` tokens where the text is too short."""
    return from_counts(count_words(texts), vocab)


def from_counts(counts: pa.Table, vocab: int) -> TextTokenizer:
    """Learnt from counted words: what `train` learns from their texts."""
    learnt = learn_merges(counts, vocab, [BOS, EOS, PAD])
    engine = Engine(models.BPE(vocab=learnt.vocab, merges=learnt.merges))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([BOS, EOS, PAD])
    return from_text(engine.to_str(), "the tokenizer trained here")


def word_level(num_tokens: int) -> TextTokenizer:
    """For data that is tokens already, of any modality: token i is the word "i"; begin, end and padding
    have the three ids behind them. Text is numbers with blanks between."""
    words = [str(token) for token in range(num_tokens)] + [BOS, EOS, PAD]
    engine = Engine(models.WordLevel({word: token for token, word in enumerate(words)}))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens([BOS, EOS, PAD])
    return from_text(engine.to_str(), "the tokenizer made here")


def load(path: Path) -> TextTokenizer:
    """A tokenizer.json, or the folder that it is in. Its own names of begin and end come first."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_tokenizer(file, str(error)) from error
    return from_text(text, str(file), _declared(file.parent))


def from_text(text: str, name: str, declared: dict[str, str] | None = None) -> TextTokenizer:
    engine = _engine(text, name)
    declared = declared or {}

    def find(key: str, names: Sequence[str]) -> int | None:
        own = [declared[key]] if key in declared else []
        ids = [engine.token_to_id(word) for word in (*own, *names)]
        return next((token for token in ids if token is not None), None)

    eos_id = find("eos_token", _EOS_NAMES)
    if eos_id is None:
        raise RecipeError(
            f"{name} has no end-of-document token that is known here",
            found="none of " + ", ".join(_EOS_NAMES[1:]),
            wanted="a token that ends documents",
            fix='put tokenizer_config.json with "eos_token" beside it, or let bessemer train one: '
            "remove tokenizer.path",
        )
    vocab = max(engine.get_vocab(with_added_tokens=True).values()) + 1
    bos_id, pad_id = find("bos_token", _BOS_NAMES), find("pad_token", _PAD_NAMES)
    return TextTokenizer(engine, text, vocab, bos_id, eos_id, pad_id)


def _engine(text: str, name: str) -> Engine:
    try:
        engine = Engine.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise _no_tokenizer(Path(name), str(error)) from error
    engine.encode_special_tokens = True  # a special token's name inside a text is text
    engine.no_padding()
    engine.no_truncation()
    return engine


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none that can be read."""
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _declared(folder: Path) -> dict[str, str]:
    """Special tokens as a Hugging Face tokenizer_config.json names them."""
    values, found = read_config(folder), {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = values.get(key)
        word = value.get("content") if isinstance(value, dict) else value
        if isinstance(word, str):
            found[key] = word
    return found


def _no_tokenizer(file: Path, found: str) -> DataError:
    return DataError(
        f"tokenizer.path: {file} is no tokenizer",
        found=found,
        wanted="a tokenizer.json of Hugging Face tokenizers, or the folder it is in",
        fix="check tokenizer.path; relative paths start from the recipe's folder",
    )
