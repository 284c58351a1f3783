"""The inputs of benchmarks/finetune_cpu.py: a random Llama as a Hugging Face folder, and its data.

    python finetune_inputs.py TASK.json     {layers, hidden, heads, ffn, vocab, context, chats, rows, folder}

In `folder`: hf/ (weights in fp32, tokenizer, ChatML template with the marks that TRL wants around answers);
chats.jsonl, of one to four turns each and of lengths that spread over two orders of magnitude, none longer
than a row; rows.jsonl and rows.npy, prompts and answers that fill a row to the token.
Words are drawn by Zipf's law from made-up ones, so that a tokenizer can be learnt from them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_BOS, _EOS, _PAD, _BEGIN, _END = "<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
_WORDS = 6_000
_TURNS = (0.4, 0.3, 0.2, 0.1)  # share of chats of one, two, three, four turns
_QUESTION, _ANSWER = (3.2, 0.8), (4.3, 0.9)  # mean and deviation of the logarithm of the number of words
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, random = Path(task["folder"]), np.random.default_rng(0)
    words = made_words(random)
    tokenizer = learnt_tokenizer(words, random, task["vocab"])
    tokenizer.save_pretrained(folder / "hf")
    save_model(task, folder / "hf", tokenizer)
    chats = drawn_chats(task, words, tokenizer, random)
    lines = [json.dumps({"messages": chat}) + "\n" for chat in chats]
    (folder / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    write_full_rows(task, tokenizer, random, folder)


def made_words(random: np.random.Generator) -> list[str]:
    consonants, vowels = list("bcdfghklmnprstvwz"), list("aeiou")
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        syllables = random.integers(1, 5)
        words["".join(random.choice(consonants) + random.choice(vowels) for _ in range(syllables))] = None
    return list(words)


def drawn_text(words: list[str], random: np.random.Generator, count: int) -> str:
    weights = 1.0 / (np.arange(len(words)) + 2.7)
    return " ".join(random.choice(words, size=count, p=weights / weights.sum()))


def learnt_tokenizer(words: list[str], random: np.random.Generator, vocab: int) -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_BOS, _EOS, _PAD, _BEGIN, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*(drawn_text(words, random, 500) for _ in range(100)), "user\nassistant\n"]
    engine.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        bos_token=_BOS,
        eos_token=_END,  # that of a chat model: what ends a turn
        pad_token=_PAD,
        chat_template=_TEMPLATE,
    )


def save_model(task: dict[str, Any], folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=task["vocab"],
        hidden_size=task["hidden"],
        intermediate_size=task["ffn"],
        num_hidden_layers=task["layers"],
        num_attention_heads=task["heads"],
        num_key_value_heads=task["heads"],
        max_position_embeddings=task["context"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def drawn_chats(
    task: dict[str, Any], words: list[str], tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
) -> list[list[dict[str, str]]]:
    """At least task["chats"] tokens of chats, in the template's own tokens."""
    chats, total = [], 0
    while total < task["chats"]:
        chat: list[dict[str, str]] = []
        for _ in range(random.choice(4, p=_TURNS) + 1):
            for role, (mean, deviation) in (("user", _QUESTION), ("assistant", _ANSWER)):
                count = 1 + int(random.lognormal(mean, deviation))
                chat.append({"role": role, "content": drawn_text(words, random, count)})
        length = len(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"])
        if length <= task["context"]:
            chats.append(chat)
            total += length
    return chats


def write_full_rows(
    task: dict[str, Any], tokenizer: PreTrainedTokenizerFast, random: np.random.Generator, folder: Path
) -> None:
    """Each token is a whole word with its space, so that a text of so many is so many tokens."""
    whole = [id for token, id in sorted(tokenizer.get_vocab().items()) if token.startswith("Ġ")]
    inner, prompt = task["context"] - 2, task["context"] // 4
    rows = random.choice(whole, size=(task["rows"], inner))
    lines = []
    for row in rows:
        asked, told = tokenizer.decode(row[:prompt]), tokenizer.decode(row[prompt:])
        assert tokenizer(asked, add_special_tokens=False)["input_ids"] == row[:prompt].tolist(), asked
        lines.append(json.dumps({"prompt": asked, "completion": told}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    ends = np.full((len(rows), 1), tokenizer.eos_token_id)
    begins = np.full((len(rows), 1), tokenizer.bos_token_id)
    np.save(folder / "rows.npy", np.concatenate([begins, rows, ends], axis=1).astype(np.int64))


if __name__ == "__main__":
    main()
