"""How a fine-tuning on sampled answers is cut into rounds and steps.

Every prompt is asked `epochs` times over all `rounds`; a step takes a fixed number of answers, as many as
its rows are sure to hold whatever their lengths: then how many steps there are is known before the first
answer is given. Shorter answers leave rows empty, which are not computed but in a pipeline.
Left to us, a round is four steps: from the second one on, the answers are those of a model that has moved,
which is what clipping is for, and four keep it near.
"""

from collections.abc import Sequence

from bessemer.errors import RecipeError
from bessemer.formulas.objective import Rollouts
from bessemer.formulas.shape import ModelShape
from bessemer.planner.plan import StagePlan
from bessemer.planner.stage import Rules, rows_of
from bessemer.recipe.schema import Finetune

_STEPS = 4


def is_sampled(section: Finetune) -> bool:
    """Whether the answers that are learnt from are the model's own."""
    return section.method == "grpo" or (section.method == "distill" and section.on_policy)


def check_sampling(shape: ModelShape, stage: StagePlan) -> None:
    """RecipeError for a base in few bits under a layout.

    The model that a rank samples with is put together from what all hold, as such weights cannot be yet.
    """
    base = "float" if shape.adapter is None else shape.adapter.base
    if stage.objective.rollouts is not None and stage.layout.world > 1 and base != "float":
        raise RecipeError(
            "answers cannot be sampled by several ranks from a base in few bits",
            found=f'adapter = "qlora" ({base}) under "{stage.layout}"',
            wanted="one process, or weights that are kept whole",
            fix='set finetune.adapter="lora", or parallel.layout="replicate=1"',
        )


def rollouts_of(
    section: Finetune, prompt_tokens: Sequence[int], context: int, rules: Rules
) -> tuple[Rollouts, int]:
    """The rounds, and rows per step. prompt_tokens: of each of the task's prompts."""
    lengths = _askable(section, prompt_tokens, context)
    group = _group(section)
    prompts = -(-section.epochs * len(lengths) // section.rounds)
    in_row = context // (max(lengths) + section.answer_tokens)
    rows = rows_of(section, "finetune", context)
    if rows is None:
        rows = max(1, -(-prompts * group // (_STEPS * in_row)))
        rules.settle("batch_tokens", "auto", rows * context, f"{_STEPS} steps a round of answers")
    rollouts = Rollouts(
        rounds=section.rounds,
        prompts=prompts,
        group_size=group,
        answer_tokens=section.answer_tokens,
        prompt_tokens=max(lengths),
        answers_per_step=rows * in_row,
        temperature=section.temperature,
        reward=section.reward_function if section.method == "grpo" else "",
    )
    steps = f"{rollouts.rounds} rounds of {rollouts.answers:,} answers, {rollouts.answers_per_step} a step"
    rules.settle("steps", "auto", rollouts.rounds * rollouts.steps, steps)
    return rollouts, rows


def _askable(section: Finetune, prompt_tokens: Sequence[int], context: int) -> list[int]:
    """Lengths of the prompts that leave room for an answer. RecipeError where there are none."""
    lengths = [length for length in prompt_tokens if length <= context - section.answer_tokens]
    if not prompt_tokens:
        raise RecipeError(
            "there is nothing to ask",
            found="no prompt in the task's data",
            wanted="at least one example to train on",
            fix="add examples, or hold out less with data.validation",
        )
    if not lengths:
        raise RecipeError(
            "no prompt leaves room for an answer",
            found=f"{len(prompt_tokens)} prompts of {min(prompt_tokens)} tokens or more, rows of {context}, "
            f"finetune.answer_tokens = {section.answer_tokens}",
            wanted="prompt and answer within a row",
            fix="set a smaller finetune.answer_tokens, or a larger finetune.context",
        )
    return lengths


def _group(section: Finetune) -> int:
    """Answers to each prompt, which GRPO compares. RecipeError where there is nothing to compare."""
    group = section.group_size if section.method == "grpo" else 1
    if section.method == "grpo" and group < 2:
        raise RecipeError(
            "a group of one answer has nothing to be better than",
            found="finetune.group_size = 1",
            wanted="2 answers to a prompt or more",
            fix="set finetune.group_size=8",
        )
    return group
