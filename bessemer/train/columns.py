"""What the rows of a stage hold besides its prepared data: columns for its objective, from its own files.

They are written before the first step (train/reference.py), so that every attempt reads the same.
"""

from bessemer.data.packed_rows import NO_EXTRA, Extra
from bessemer.data.prepared import PreparedTask, Split
from bessemer.data.reference import read_reference
from bessemer.data.teacher import check_taught, teacher_columns
from bessemer.formulas.objective import WITH_REFERENCE
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage


def columns_of(stage: Stage, split: Split) -> Extra:
    if stage.plan.objective.kind == "distill":
        assert isinstance(stage.data, PreparedTask)
        if not stage.data.num_examples(split):  # of which the teacher was not asked
            return NO_EXTRA
        return teacher_columns(stage.folder, split)
    if stage.plan.objective.kind not in WITH_REFERENCE:
        return NO_EXTRA
    assert isinstance(stage.data, PreparedTask)
    return Extra(at_begin={"reference": read_reference(stage.folder, stage.data, split)})


def check_columns(stage: Stage, company: Company) -> None:
    """What a teacher said before training is what was written: the first rank hashes it, the others hear."""
    if stage.plan.objective.kind != "distill":
        return

    def check() -> dict[str, bool]:
        check_taught(stage.folder)
        return {}

    company.first_does("teacher", check)
