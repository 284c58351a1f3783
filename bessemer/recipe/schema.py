"""The recipe: every key, its type, its default, and what it affects.

A key *affects* data, model, learning or execution. Stage hashes and the rule for changing the recipe
of an existing run follow from that and from nothing else: execution keys may change with any attempt,
`steps`/`tokens` may be raised, everything else needs a fork. "auto" is derived by
`planner.resolve` and printed with its rule.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, Strict, field_validator

from bessemer.units import parse_count

Auto = Literal["auto"]
Affects = Literal["data", "mixture", "model", "learning", "execution", "nothing"]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Beta = Annotated[float, Field(gt=0, lt=1)]
# A run's folder is named after the recipe: no separators, nothing hidden.
Name = Annotated[str, Field(pattern=r"^[\w][\w .+-]*$")]


def key(default: Any, affects: Affects, text: str) -> Any:
    """A recipe key. `...` as the default means that the key is required.

    The default of a section is constructed unchecked: a checked one would build validators, and look through
    all installed packages for plugins of theirs, at import (a tenth of the planner's).
    """
    return Field(default, description=text, json_schema_extra={"affects": affects})


class Section(BaseModel):
    """Strict and frozen: an unknown key is an error, "3" is not 3, and nothing changes after loading."""

    model_config = ConfigDict(
        defer_build=True,  # of 25 sections a process needs those that it reads: 10 ms less to import
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        strict=True,
        allow_inf_nan=False,
    )


def _bytes(text: str) -> int:
    """ "8GiB" -> 8 * 2**30: binary units only, as memory has them."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB)\s*", text)
    value = round(float(match[1]) * 1024.0 ** (1 + "KMGT".index(match[2][0]))) if match else 0
    if value <= 0:
        raise ValueError(f"{text!r} is not an amount of memory such as 8GiB or 512MiB")
    return value


class RopeScaling(Section):
    """Llama 3's stretching of RoPE to longer contexts (rope_type "llama3"), or "linear", or "yarn"."""

    rope_type: Literal["llama3", "linear", "yarn"] = key("llama3", "model", "kind of stretching")
    factor: PositiveFloat = key(8.0, "model", "how many times longer")
    low_freq_factor: PositiveFloat = key(1.0, "model", "llama3 only")
    high_freq_factor: PositiveFloat = key(4.0, "model", "llama3 only")
    original_max_position_embeddings: PositiveInt = key(8192, "model", "context before stretching")


class Model(Section):
    family: Literal[
        "llama", "qwen2", "qwen3", "qwen3-moe", "mixtral", "glm4-moe", "gemma3", "phi3", "deepseek-v3", "gpt2"
    ] = key("llama", "model", "naming and block layout, as the Hugging Face family of that name")
    from_: str | None = Field(
        default=None,
        alias="from",
        description="a Hugging Face directory or config.json: the shape, and for finetune the weights",
        json_schema_extra={"affects": "model"},
    )
    size: str | None = key(
        None, "model", 'the one dial: about this many parameters, e.g. "30M"; auto: what [budget] pays for'
    )
    layers: PositiveInt | None = key(None, "model", "decoder blocks")
    hidden: PositiveInt | None = key(None, "model", "width of the residual stream")
    heads: PositiveInt | None = key(None, "model", "query heads")
    kv_heads: PositiveInt | None = key(None, "model", "key and value heads; must divide heads")
    head_dim: PositiveInt | None = key(None, "model", "size of a head; default hidden / heads")
    ffn: PositiveInt | None = key(None, "model", "width of the feed-forward layer")
    tie_embeddings: bool | Auto = key(
        "auto", "model", "one matrix for embedding and head; auto: under 1B parameters"
    )
    qk_norm: bool | Auto = key("auto", "model", "RMSNorm on queries and keys; auto: as the family has it")
    norm: Literal["rms", "layer"] | Auto = key("auto", "model", "normalisation; auto: as the family has it")
    norm_eps: PositiveFloat = key(1e-5, "model", "epsilon inside the normalisation")
    rope_theta: PositiveFloat = key(10000.0, "model", "base of the rotary frequencies")
    rope_scaling: RopeScaling | None = key(None, "model", "stretching of RoPE to longer contexts")
    sliding_window: PositiveInt | None = key(None, "model", "tokens a query looks back; none: all")
    experts: PositiveInt | None = key(None, "model", "routed experts per MoE layer")
    experts_per_token: PositiveInt | None = key(None, "model", "experts each token goes to")
    expert_ffn: PositiveInt | None = key(None, "model", "width of one routed expert")
    shared_ffn: PositiveInt | None = key(None, "model", "width of the always-on shared expert")
    dense_layers: NonNegativeInt = key(0, "model", "first layers that are dense in an MoE model")
    router: Literal["softmax", "sigmoid_bias"] = key("softmax", "model", "how experts are chosen")
    mla_q_rank: PositiveInt | None = key(None, "model", "latent attention: query rank")
    mla_kv_rank: PositiveInt | None = key(None, "model", "latent attention: key-value rank")
    mla_nope_dim: PositiveInt | None = key(None, "model", "latent attention: head part without RoPE")
    mla_rope_dim: PositiveInt | None = key(None, "model", "latent attention: head part with RoPE")
    mla_v_dim: PositiveInt | None = key(None, "model", "latent attention: value head size")
    context: PositiveInt = key(1024, "data", "tokens in a training row")

    @field_validator("size")
    @classmethod
    def _size_is_a_count(cls, value: str | None) -> str | None:
        if value is not None and value != "auto":
            parse_count(value)
        return value


# What `size` stands for.
SHAPE_KEYS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn")


class Tokenizer(Section):
    vocab: PositiveInt = key(8192, "data", "vocabulary to train; multiples of 64 train fastest")
    path: str | None = key(None, "data", "a ready tokenizer.json instead of training one")


SourceKind = Literal[
    "text", "code", "html", "books", "warc", "jsonl", "parquet", "csv", "sql", "huggingface", "tokens"
]


class Source(Section):
    name: str = key(..., "data", "name in reports")
    kind: SourceKind = key(..., "data", "what the files are")
    path: str | None = key(None, "data", "file, folder or glob; for sql a SQLite file")
    url_env: str | None = key(None, "data", "sql: name of the environment variable that holds the DSN")
    table: str | None = key(None, "data", "sql: table to read")
    query: str | None = key(None, "data", "sql: query to read instead of a table")
    text: str = key("text", "data", "column or field that holds the text")
    id: str | None = key(None, "data", "column or field that names the document")
    group: str | None = key(
        None,
        "data",
        'documents of one group are held out together: a column or field, or for files "stem"',
    )
    split_by: str | None = key(None, "data", "sql: column of whole numbers by which it is read in parts")
    rules: Literal["off", "gopher", "c4", "fineweb"] | list[str] | None = key(
        None, "data", "quality rules of this source; left out: data.clean.rules, but off for code"
    )
    language: list[str] | None = key(
        None, "data", "languages of this source, [] for any; left out: data.clean.language, but any for code"
    )
    licence: str | None = key(None, "data", "SPDX identifier, kept with each document")
    limit: PositiveInt | None = key(None, "data", "rows read at most: the first ones")
    weight: NonNegativeFloat = key(1.0, "mixture", "how often its rows are read, beside those of weight 1")
    epochs: PositiveFloat | None = key(
        None, "mixture", "times it may be read in all; then others get its share"
    )


class Clean(Section):
    dedup: Literal["off", "exact", "minhash"] = key(
        "exact", "data", "duplicate documents; minhash: near-duplicates too"
    )
    similarity: Fraction = key(0.8, "data", "minhash: share of common 5-grams that makes duplicates")
    rules: Literal["off", "gopher", "c4", "fineweb"] | list[str] = key(
        "off", "data", "quality rules: a set, several of them, or single rules by name"
    )
    thresholds: dict[str, float] = key({}, "data", "other values for thresholds of the rules, by name")
    text: Literal["off", "normal"] = key(
        "off", "data", "Unicode and white space put in order; of code only line ends"
    )
    language: list[str] | None = key(None, "data", "languages to keep, e.g. en")
    language_score: Fraction = key(0.0, "data", "lowest probability of that language")
    pii: Literal["off", "redact"] = key("off", "data", "personal data and secrets")
    decontaminate: list[str] = key([], "data", "evaluation files: documents with 13 words of one are refused")
    quality: str | None = key(
        None, "data", 'labelled examples (JSONL: "text", "label" good or bad) to learn from'
    )
    quality_score: Fraction = key(0.5, "data", "lowest probability of being good")
    code: str | None = key(None, "data", "module:function, RecordBatch to RecordBatch; needs --allow-code")


class MixtureStage(Section):
    """From a number of tokens on, other weights."""

    tokens: str | NonNegativeInt = key(..., "mixture", 'trained before it begins, e.g. "2B"')
    weights: dict[str, NonNegativeFloat] = key(
        ..., "mixture", "weight of each source from here on; left out: as before"
    )

    @field_validator("tokens")
    @classmethod
    def _tokens_is_a_count(cls, value: str | int) -> int:
        return parse_count(value) if isinstance(value, str) else value


class Mixture(Section):
    temperature: NonNegativeFloat = key(
        1.0, "mixture", "share = weight * tokens ** temperature: 1 by size, 0 all alike"
    )
    schedule: list[MixtureStage] = key([], "mixture", "weights that change while training")


class Replay(Section):
    """Data of an earlier run, read beside the recipe's own sources."""

    run: str = key(..., "learning", "the run, its pretrain stage, or a folder of prepared data")
    share: Fraction = key(0.05, "mixture", "of the rows that are trained on")


class Data(Section):
    validation: Fraction = key(0.01, "data", "share of documents held out, by hash of document or group")
    gather: Literal["python-stdlib"] | None = key(
        None, "data", "render this machine's Python library first; source paths are then relative to that"
    )
    source: list[Source] = key([], "data", "what to read; repeat [[data.source]]")
    clean: Clean = key(Clean.model_construct(), "data", "cleaning")
    mixture: Mixture = key(Mixture.model_construct(), "mixture", "how much of each source is read, and when")
    replay: Replay | None = key(
        None, "learning", "old data read beside the sources, so that it is not forgotten"
    )


class Optimization(Section):
    """What pre-training and fine-tuning share."""

    batch_tokens: PositiveInt | Auto = key("auto", "learning", "tokens per optimizer step, over all ranks")
    micro_batch: PositiveInt | Auto = key("auto", "execution", "rows per rank and forward")
    lr: PositiveFloat | Auto = key("auto", "learning", "peak learning rate")
    schedule: Literal["wsd", "cosine", "constant"] = key("wsd", "learning", "shape of the learning rate")
    warmup: NonNegativeInt | Auto = key("auto", "learning", "steps of linear warm-up")
    decay: Fraction = key(0.2, "learning", "wsd: last share of the steps, in which lr falls to zero")
    final_lr: Fraction = key(0.1, "learning", "cosine: lr at the end, as a share of the peak")
    optimizer: Literal["adamw", "muon"] = key("adamw", "learning", "update rule")
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = key((0.9, 0.95), "learning", "AdamW's decay rates")
    eps: PositiveFloat = key(1e-8, "learning", "AdamW's epsilon")
    weight_decay: NonNegativeFloat = key(0.1, "learning", "decoupled; matrices only")
    grad_clip: PositiveFloat | Literal["off"] = key(1.0, "learning", "global L2 norm")
    router_balance: NonNegativeFloat = key(
        0.001, "learning", "weight of the experts' balance: auxiliary loss, or rate of the bias"
    )
    dtype: Literal["bf16", "fp32"] | Auto = key(
        "auto", "learning", "compute; weights and optimizer stay fp32; auto: bf16, but fp32 on slow CPUs"
    )
    compile: bool | Auto = key("auto", "execution", "torch.compile; auto: where it pays within the run")
    recompute: Literal["none", "selective", "full"] = key("none", "execution", "activations to compute twice")
    activation_memory: str | PositiveInt | None = key(
        None, "execution", 'activations kept per rank, e.g. "8GiB": as many blocks as needed are recomputed'
    )
    validate_every: PositiveInt | Auto = key("auto", "execution", "steps")
    save_every: PositiveInt | Auto = key("auto", "execution", "steps; always at the last step too")
    log_every: PositiveInt = key(1, "execution", "steps between rows of metrics")
    keep: PositiveInt = key(2, "execution", "newest verified checkpoints to keep")
    async_save: bool | Auto = key(
        "auto", "execution", "write checkpoints while training goes on; auto: where a copy fits in memory"
    )

    @field_validator("activation_memory")
    @classmethod
    def _activation_memory_is_an_amount(cls, value: str | int | None) -> int | None:
        return _bytes(value) if isinstance(value, str) else value


class Pretrain(Optimization):
    steps: PositiveInt | Auto = key("auto", "learning", "optimizer updates")
    tokens: str | PositiveInt | None = key(None, "learning", 'instead of steps, e.g. "2B"')
    hours: PositiveFloat | None = key(
        None, "learning", "instead of steps: as many as are predicted to take so long; [budget] has limits"
    )

    @field_validator("tokens")
    @classmethod
    def _tokens_is_a_count(cls, value: str | int | None) -> int | None:
        return parse_count(value) if isinstance(value, str) else value


class FinetuneData(Section):
    kind: Literal["jsonl", "json", "parquet", "csv", "sql", "huggingface"] = key(
        "jsonl", "data", "what the file is: jsonl has a row in each line, json is one array of rows"
    )
    path: str | None = key(None, "data", "file, folder or glob; for sql a SQLite file")
    url_env: str | None = key(None, "data", "sql: name of the environment variable that holds the DSN")
    table: str | None = key(None, "data", "sql: table to read")
    query: str | None = key(None, "data", "sql: query to read instead of a table")
    format: Literal["auto", "prompt", "messages", "instruction", "preference", "classification", "text"] = (
        key("auto", "data", "what a row is; auto: as the method wants it, else by the columns that are named")
    )
    prompt: str = key("prompt", "data", "column or field of the prompt (also of a preference)")
    answer: str = key("answer", "data", "column or field of the answer: the loss is on this only")
    messages: str | None = key(None, "data", "column or field of chat messages instead")
    tools: str | None = key(
        None, "data", "messages, preference: column or field of the functions that a chat may call"
    )
    instruction: str = key("instruction", "data", "instruction: column or field of what is asked")
    input: str = key("input", "data", "instruction: column or field of what it is asked about; may be empty")
    output: str = key("output", "data", "instruction: column or field of the answer")
    chosen: str = key("chosen", "data", "preference: column or field of the better answer")
    rejected: str = key("rejected", "data", "preference: column or field of the worse answer")
    text: str = key("text", "data", "text and classification: column or field of the text")
    label: str = key("label", "data", "classification: column or field of the label")
    labels: list[str] | None = key(
        None, "data", "classification: the labels there are; left out: those of the training rows, sorted"
    )
    system: str | None = key(None, "data", "system message of rows that have none")
    system_column: str | None = key(
        None, "data", "column or field with a row's own system message; may be empty"
    )
    template: str = key(
        "auto",
        "data",
        "chat template: chatml, llama3, qwen3, plain, or a .jinja file; auto: the tokenizer's own, or plain",
    )
    learn: Literal["answers", "last", "all"] = key(
        "answers", "data", "tokens with loss: every answer, the last one, or all"
    )
    packing: bool = key(True, "data", "several examples in a row, none of which sees another")
    allow_masked: bool = key(False, "data", "train although over 1 % of the examples have nothing to learn")
    id: str | None = key(None, "data", "column or field that names the example")
    group: str | None = key(None, "data", "column or field whose values are held out together")


class Lora(Section):
    rank: PositiveInt = key(16, "learning", "rank of the update")
    alpha: PositiveFloat | Auto = key("auto", "learning", "scale: alpha / rank; auto: twice the rank")
    targets: list[str] | Literal["linear", "attention"] = key(
        "linear", "learning", "layers that get one: linear (all but head and experts), attention, or names"
    )
    rslora: bool = key(False, "learning", "scale by alpha / sqrt(rank) (arXiv:2312.03732)")
    dora: bool = key(False, "learning", "learn direction and magnitude apart (arXiv:2402.09353)")
    base: Literal["nf4", "int8"] = key("nf4", "learning", "qlora: how the frozen weights are kept")


class Finetune(Optimization):
    method: Literal[
        "full", "lora", "qlora", "dpo", "ipo", "orpo", "simpo", "reward", "classify", "distill", "grpo"
    ] = key("full", "learning", "full, lora, qlora: learn the answers; the others: what their name says")
    adapter: Literal["none", "lora", "qlora"] | Auto = key(
        "auto", "learning", "what is trained; auto: adapters for lora and qlora, else all weights"
    )
    lora: Lora = key(Lora.model_construct(), "learning", "settings of adapters")
    data: FinetuneData | None = key(None, "data", "the task's examples")
    epochs: PositiveInt = key(2, "learning", "times each example is seen")
    beta: PositiveFloat | Auto = key(
        "auto", "learning", "preferences: how far from the reference; auto: 0.1, for simpo 2.0"
    )
    margin: NonNegativeFloat = key(1.0, "learning", "simpo: how much better the chosen answer is to be")
    smoothing: Fraction = key(0.0, "learning", "dpo: share of preferences that are taken to be the wrong way")
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = key(
        "none", "learning", "classify: weight of each label; balanced: inverse to how often it occurs"
    )
    teacher: str | None = key(None, "learning", "distill: the run or Hugging Face folder to learn from")
    top_k: PositiveInt = key(32, "learning", "distill: probabilities kept of each of the teacher's tokens")
    on_policy: bool = key(False, "learning", "distill: on the model's own answers, made anew each round")
    temperature: PositiveFloat = key(1.0, "learning", "distill, grpo: of the answers that are sampled")
    group_size: PositiveInt = key(8, "learning", "grpo: answers sampled to a prompt")
    rounds: PositiveInt = key(4, "learning", "grpo, distill on policy: times that answers are made anew")
    answer_tokens: PositiveInt = key(64, "learning", "grpo, distill on policy: longest answer to sample")
    reward_function: str = key("exact", "learning", "grpo: exact, number, or module:function of your own")
    clip: PositiveFloat = key(0.2, "learning", "grpo: how far one round may move a token's probability")
    add_tokens: list[str] = key([], "data", "special tokens that the tokenizer and the model get")
    compare_scratch: bool = key(False, "execution", "also train from random weights and compare")
    compare_seeds: PositiveInt = key(
        3, "execution", "trainings of each point of that curve; 1: a shorter one, without error bars"
    )
    context: PositiveInt | Auto = key("auto", "data", "tokens in a row; auto: as in pre-training")
    lr: PositiveFloat | Auto = key("auto", "learning", "peak learning rate")


class Evaluate(Section):
    examples: PositiveInt = key(64, "execution", "held-out examples to generate answers for")
    answer_tokens: PositiveInt = key(48, "execution", "longest answer to generate")


class Parallel(Section):
    layout: str = key(
        "auto",
        "execution",
        'degrees, e.g. "shard=2,tensor=2"; auto: searched, or one process where nothing is known',
    )


class Cluster(Section):
    device: str | None = key(None, "execution", "a name from the catalogue")
    devices: PositiveInt | None = key(None, "execution", "how many")
    per_node: PositiveInt | None = key(None, "execution", "devices in a node")
    region: str | None = key(None, "execution", "grid region, e.g. DEU")
    pue: PositiveFloat | None = key(None, "execution", "facility over IT energy")
    usd_per_device_hour: PositiveFloat | None = key(None, "execution", "price")
    device_hours_per_failure: PositiveFloat | None = key(
        None, "execution", "between failures of one device; left out: 50700, as in Llama 3's run"
    )
    file: str | None = key(
        None, "execution", "a TOML file that describes the cluster; keys beside it here override the file's"
    )


class Budget(Section):
    usd: PositiveFloat | None = key(None, "execution", "money")
    kwh: PositiveFloat | None = key(None, "execution", "energy")
    kg_co2e: PositiveFloat | None = key(None, "execution", "carbon")
    hours: PositiveFloat | None = key(None, "execution", "wall time in training, of all stages")
    device_hours: PositiveFloat | None = key(None, "execution", "devices times hours")
    inference_tokens: str | PositiveInt | None = key(
        None, "execution", 'tokens that the model will read and write in use, e.g. "1T": makes it smaller'
    )
    runs: str | None = key(
        None, "execution", "glob of own finished runs, which the law of model.size is fitted to"
    )

    @field_validator("inference_tokens")
    @classmethod
    def _inference_tokens_is_a_count(cls, value: str | int | None) -> int | None:
        return parse_count(value) if isinstance(value, str) else value


class Energy(Section):
    prefer: Literal["time", "energy", "cost"] = key(
        "time", "execution", "what an automatic layout makes small"
    )
    region: str | None = key(None, "execution", "grid region, e.g. DEU")
    command: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "execution", "a program and its words that print the watts of this machine; needs --allow-code"
    )
    intensity: str | None = key(
        None, "execution", "carbon by the hour: CSV with time (UTC) and g_per_kwh; read again when it changes"
    )
    intensity_command: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "execution", "instead: a program and its words that print grams per kWh; needs --allow-code"
    )
    pause_above_g_per_kwh: PositiveFloat | None = key(
        None, "execution", "training pauses, saved, while the grid is above this"
    )
    resume_below_g_per_kwh: PositiveFloat | None = key(
        None, "execution", "and goes on at this or less; left out: at what it pauses above"
    )
    pause_hours: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "execution", 'hours of each day, UTC, in which training pauses, e.g. ["17:00-21:00"]'
    )
    pause_most_hours: PositiveFloat | None = key(
        None, "execution", "longest single pause; left out: until the grid is clean"
    )
    tariff_usd_per_kwh: PositiveFloat | None = key(
        None, "execution", "own machines: price of electricity, instead of cluster.usd_per_device_hour"
    )
    amortisation_usd_per_device_hour: PositiveFloat | None = key(
        None, "execution", "own machines: their price over the hours of their life, beside the tariff"
    )
    power_limit: Literal["off", "auto"] | PositiveFloat = key(
        "off", "execution", "of each accelerator, W; auto: found while training, for least energy a token"
    )
    slower_at_most: Fraction = key(
        0.05, "execution", "power_limit auto: share of a step's time that it may cost"
    )
    governor: str | None = key(
        None, "execution", "of the CPUs' clocks while training, e.g. powersave; left out: as it is"
    )
    threads: PositiveInt | None = key(
        None, "execution", "of each rank's work on the CPU; left out: an equal share of the cores"
    )


class Recipe(Section):
    name: Name = key(..., "nothing", "name of the run; never influences a number")
    seed: NonNegativeInt = key(0, "learning", "initial weights and order of samples")
    deterministic: bool = key(False, "learning", "bitwise resume: always so on a CPU, refused elsewhere yet")
    model: Model = key(Model.model_construct(), "model", "the network")
    tokenizer: Tokenizer = key(Tokenizer.model_construct(), "data", "text to tokens")
    data: Data = key(Data.model_construct(), "data", "what to train on")
    pretrain: Pretrain = key(Pretrain.model_construct(), "learning", "stage one")
    finetune: Finetune | None = key(None, "learning", "stage two; left out: no fine-tuning")
    evaluate: Evaluate = key(Evaluate.model_construct(), "execution", "measurements at the end")
    parallel: Parallel = key(Parallel.model_construct(), "execution", "how the work is split")
    cluster: Cluster = key(Cluster.model_construct(), "execution", "machines to plan for")
    budget: Budget = key(Budget.model_construct(), "execution", "what a run may take")
    energy: Energy = key(Energy.model_construct(), "execution", "account and preference")
