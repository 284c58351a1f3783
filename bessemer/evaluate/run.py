"""Measure the stages `pretrain` and `finetune` of a run on what was held out, and keep the results.

A pretrained stage: loss per target token, perplexity, bits per byte. A fine-tuned one: loss on the
answers, and greedy answers to held-out prompts scored by exact match and ROUGE-L; one that learned from
pairs how many it tells apart; a classifier accuracy, F1 and calibration. `evaluate/results.json`
names the step, the hash of the checkpoint's manifest and of the data, so that asking again for the same
checkpoints reads the file and computes nothing.
Cost: one pass over the validation rows, and `evaluate.examples` × `evaluate.answer_tokens` decoding steps.
"""

import math
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Tokenizer

from bessemer.checkpoint.load import LoadedModel, load_model
from bessemer.data.kept import open_told
from bessemer.data.packed_rows import NO_EXTRA, Extra
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.data.reference import read_reference
from bessemer.durable import write_json
from bessemer.errors import RecipeError
from bessemer.evaluate.answers import continuations, task_answers
from bessemer.evaluate.classify import classify
from bessemer.evaluate.loss import validation_loss
from bessemer.evaluate.preference import preferences
from bessemer.evaluate.text import REWARDS
from bessemer.formulas.objective import PREFERENCES, WITH_REFERENCE, Objective
from bessemer.log import Console
from bessemer.parallel.engine import Engine, summed_loss
from bessemer.recipe.schema import Recipe
from bessemer.rundir import MAIN_STAGES, read_object, stages

SAMPLES = 3
_ROWS = 8  # per forward; the result does not depend on it
CONVENTIONS = {
    "validation_loss": "natural log, mean over the target tokens of held-out documents (text and end of "
    "document; the begin token is never a target)",
    "replayed_loss": "the same on documents held out of the earlier data that the run replays",
    "perplexity": "exp of the validation loss, per token of this tokenizer: compare bits per byte instead "
    "across tokenizers",
    "bits_per_byte": "summed loss of all target tokens of the held-out documents / ln 2 / UTF-8 bytes of "
    "their text",
    "task_loss": "natural log, mean over the answer tokens of held-out examples; prompts have no loss",
    "exact_match": "share of greedy answers equal to the expected one but for case, white space and a "
    "final full stop",
    "pair_loss": "the stage's own loss, mean over held-out pairs",
    "text_loss": "natural log, mean over held-out texts, each by the weight of its class",
    "accuracy": "share of held-out texts whose most probable label is theirs",
    "pair_accuracy": "share of held-out pairs with a margin over 0; a tie counts half",
    "mean_margin": "mean over held-out pairs of what the loss compares. dpo: beta (log-ratio of the chosen "
    "answer to the reference - that of the rejected one); ipo: the same per token, without beta; orpo: "
    "difference of mean log-probabilities; simpo: beta times that; reward: difference of rewards",
    "reward": "mean over greedy answers to held-out prompts of what the stage was rewarded by",
    "macro_f1": "mean over labels of 2 TP / (2 TP + FP + FN)",
    "calibration_error": "expected calibration error: 15 equal bins of the most probable label's probability",
    "rouge_l": "mean F1 of the longest common subsequence of words, lower case, a-z and 0-9, no stemming",
}


def evaluate(run: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Results of `pretrain` and `finetune`, if they have a checkpoint, written to evaluate/results.json.

    Stages beside them are parts of a comparison, measured only where there is neither of these.
    Stages whose checkpoint, data and settings did not change since are taken from that file.
    """
    path = run / "evaluate" / "results.json"
    previous: dict[str, Any] = (read_object(path) or {}).get("stages") or {}
    found = [stage for stage in stages(run) if any(stage.glob("checkpoints/*/manifest.json"))]
    found = [stage for stage in found if stage.name in MAIN_STAGES] or found
    if not found:
        raise RecipeError(
            f"{run} holds nothing to evaluate",
            found="no stage with a checkpoint" if run.is_dir() else "no such folder",
            wanted="a run that has saved a checkpoint",
            fix="train it first: `bessemer run RECIPE`",
        )
    results, done = {}, True
    for stage in found:
        result, was_done = _stage(stage, recipe, previous.get(stage.name), console)
        results[stage.name] = result
        done = done and was_done
    said = {key: text for key, text in CONVENTIONS.items() if any(key in each for each in results.values())}
    document = {"stages": results, "conventions": said}
    if not done or previous.keys() != results.keys():
        write_json(path, document)
    return {"run": str(run), **document, "results": str(path), "already_done": done}


def _stage(
    stage: Path, recipe: Recipe, previous: dict[str, Any] | None, console: Console
) -> tuple[dict[str, Any], bool]:
    """The result of one stage, and whether it was there already."""
    info = read_object(stage / "stage.json") or {}
    loaded = load_model(stage, None, console.line)
    key = {
        "kind": info.get("kind"),
        "step": loaded.step,
        "checkpoint_hash": xxhash.xxh3_128_hexdigest((loaded.folder / "manifest.json").read_bytes()),
        "data_hash": info["data"].get("hash"),
        "settings": {"examples": recipe.evaluate.examples, "answer_tokens": recipe.evaluate.answer_tokens},
    }
    if previous is not None and key.items() <= previous.items():
        console.line(f"evaluate: {stage.name} step {loaded.step} is done already")
        return previous, True
    console.line(f"evaluate: {stage.name} step {loaded.step}")
    data = open_told(info["data"])
    tokenizer = Tokenizer.from_file(str(loaded.tokenizer_path))
    objective = Objective.from_json((info.get("plan") or {}).get("objective"))
    if isinstance(data, PreparedTask) and objective.kind in (*PREFERENCES, "classify"):
        result = _choices(stage, loaded, data, int(info["context"]), objective)
    elif isinstance(data, PreparedTask):
        result = _task(loaded, data, int(info["context"]), recipe, tokenizer, objective)
    else:
        result = _pretrain(loaded, data, int(info["context"]), recipe, tokenizer)
    return {**key, **result, "checkpoint": str(loaded.folder.relative_to(stage.parent))}, False


def _pretrain(
    loaded: LoadedModel, data: Prepared, context: int, recipe: Recipe, tokenizer: Tokenizer
) -> dict[str, Any]:
    rows = data.rows("validation", context)
    if len(rows) == 0:
        return {"validation_loss": None, "perplexity": None, "bits_per_byte": None, "samples": []}
    loss, targets = validation_loss(Engine(loaded.model, summed_loss), rows, micro_batch=_ROWS)
    return {
        "validation_loss": loss,
        **_replayed(loaded, data, context),
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bits_per_byte": bits_per_byte(loss, targets, data.validation_bytes),
        "target_tokens": targets,
        "validation_bytes": data.validation_bytes,
        "samples": continuations(loaded.model, rows, tokenizer, data.eos_id, recipe.evaluate.answer_tokens),
    }


def _replayed(loaded: LoadedModel, data: Prepared, context: int) -> dict[str, Any]:
    """What is left of what was learnt before: the loss on what was held out of the data that is replayed."""
    if data.replayed is None:
        return {}
    rows = data.replayed.data.rows("validation", context)
    if len(rows) == 0:
        return {"replayed_loss": None}
    return {"replayed_loss": validation_loss(Engine(loaded.model, summed_loss), rows, micro_batch=_ROWS)[0]}


def _task(
    loaded: LoadedModel,
    data: PreparedTask,
    context: int,
    recipe: Recipe,
    tokenizer: Tokenizer,
    objective: Objective,
) -> dict[str, Any]:
    rows = data.rows("validation", context)
    if len(rows) == 0:
        return {"task_loss": None, "exact_match": None, "rouge_l": None, "examples": 0, "samples": []}
    loss, targets = validation_loss(Engine(loaded.model, summed_loss), rows, micro_batch=_ROWS)
    if data.task_format == "text":  # learnt whole: there is no answer to compare with
        none: dict[str, Any] = {"exact_match": None, "rouge_l": None, "examples": 0, "samples": []}
        return {"task_loss": loss, "target_tokens": targets, **none}
    examples = data.examples("validation")[: recipe.evaluate.examples]
    answers = task_answers(
        loaded.model, examples, tokenizer, data.stop_id(loaded.shape.eos_id), recipe.evaluate.answer_tokens
    )
    return {
        "task_loss": loss,
        "target_tokens": targets,
        "exact_match": sum(answer["exact_match"] for answer in answers) / len(answers),
        "rouge_l": sum(answer["rouge_l"] for answer in answers) / len(answers),
        **_reward(objective, answers),
        "examples": len(answers),
        "samples": answers[:SAMPLES],
    }


def _reward(objective: Objective, answers: list[dict[str, Any]]) -> dict[str, float]:
    """Of a stage that learned from rewards. A function of the user's own is not run here."""
    compare = REWARDS.get(objective.rollouts.reward) if objective.rollouts is not None else None
    if compare is None:
        return {}
    return {"reward": sum(compare(row["answer"], row["expected"]) for row in answers) / len(answers)}


def _choices(
    stage: Path, loaded: LoadedModel, data: PreparedTask, context: int, objective: Objective
) -> dict[str, Any]:
    """Of a stage that learned which answer is better, or which label fits."""
    is_classes = objective.kind == "classify"
    extra = NO_EXTRA
    if objective.kind in WITH_REFERENCE:
        extra = Extra(at_begin={"reference": read_reference(stage, data, "validation")})
    rows = data.rows("validation", context, extra=extra)
    found: dict[str, Any] = {"method": objective.kind, "samples": []}
    if len(rows) == 0:
        return found
    measure = classify if is_classes else preferences
    return {**found, **measure(loaded.model, rows, objective, _ROWS)}


def bits_per_byte(mean_nll: float, targets: int, text_bytes: int) -> float | None:
    """Summed negative log-likelihood in bits over the bytes of the text that it is for."""
    return mean_nll * targets / math.log(2.0) / text_bytes if text_bytes else None
