"""A rank of a fine-tuning (`python -m bessemer.finetune.worker READY`), and where its rows come from.

What train/run.py is for pre-training, with rounds of sampled answers beside prepared data.
"""

import sys

from bessemer.finetune.distill import distill_judge
from bessemer.finetune.grpo import grpo_judge
from bessemer.finetune.rollouts import RolloutFeed
from bessemer.log import Console
from bessemer.parallel.engine import Engine
from bessemer.train.job import Feed
from bessemer.train.ranks import Company
from bessemer.train.rows import prepared_feed
from bessemer.train.run import main
from bessemer.train.stage import Stage

WORKER = "bessemer.finetune.worker"


def finetune_feed(stage: Stage, engine: Engine, console: Console, company: Company) -> Feed:
    objective = stage.plan.objective
    if objective.rollouts is None:
        return prepared_feed(stage, engine, console, company)
    judge = (grpo_judge if objective.kind == "grpo" else distill_judge)(stage, console)
    return RolloutFeed(stage, engine, console, company, judge)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], finetune_feed))
