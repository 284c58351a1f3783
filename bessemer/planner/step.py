"""The step of a stage whose layout is decided, as the planner's cost model sees it, on accelerators.

The same functions that rank candidates in the search (planner/search), on a column of one.
"""

from dataclasses import dataclass, replace

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.profile import profile_of
from bessemer.planner.machine.cluster import Cluster
from bessemer.planner.plan import Estimate, StagePlan
from bessemer.planner.search.costed import Room, memory_of, room_of
from bessemer.planner.search.exact import played
from bessemer.planner.search.power import board_share, kilowatts
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import candidate_of


@dataclass(frozen=True)
class Step:
    """parts: seconds of the step by name, which add up to it; hidden_s: exchanges behind compute."""

    parts: dict[str, float]
    hidden_s: float
    estimate: Estimate
    kw_per_device: Estimate | None  # with its part of the server and the building; None: not known


def stage_question(
    shape: ModelShape,
    stage: StagePlan,
    cluster: Cluster,
    prefer: str = "time",
    compiling: bool | str | None = None,
) -> Question:
    """What a search for this stage would be asked, with all that was decided left open again.

    compiling: as the recipe has it, where it is not the stage's, which its layout may have decided.
    """
    compiling = stage.compile if compiling is None else compiling
    return Question(
        shape,
        stage.context,
        stage.batch_rows,
        stage.steps,
        stage.dtype,
        cluster,
        prefer,
        compiles=compiling is not False,
        must_compile=compiling is True,
        objective=stage.objective,
    )


def stage_step(shape: ModelShape, stage: StagePlan, cluster: Cluster) -> Step | None:
    """None: a CPU, whose parts are measured (planner/calibrated/step_time.py), a device without a known peak,
    or several devices whose layout is not known."""
    if not costed_by_profile(cluster, stage.dtype) or not _known(stage.layout, cluster):
        return None
    question = stage_question(shape, stage, cluster)
    one = candidate_of(question, stage.layout, stage.micro_batch, stage.recompute)
    times = played(question, one, stage.layout)
    if stage.recompute_layers is not None:
        share = stage.recompute_layers / shape.layers
        times = replace(times, recompute_s=times.recompute_s * share)
    value, low, high = float(times.total_s[0]), float(times.low[0]), float(times.high[0])
    fitted = profile_of(question.stack, cluster, stage.dtype).basis != "assumed"
    basis = "modelled" if fitted else "assumed"
    estimate = Estimate(value, value * (1.0 - low), value * (1.0 + high), basis)
    drawn = kilowatts(cluster.device, cluster.filled_node, question.pue, board_share(times))
    kilowatt = None
    if drawn is not None:
        kilowatt = Estimate(float(drawn[0][0]), float(drawn[1][0]), float(drawn[2][0]), "assumed")
    return Step(times.parts(0), float(times.hidden_s[0]), estimate, kilowatt)


def stage_room(shape: ModelShape, stage: StagePlan, cluster: Cluster) -> Room:
    """What a device needs beside tensors."""
    question = stage_question(shape, stage, cluster)
    if cluster.device.kind == "cpu":
        return room_of(question, 0.0)
    one = candidate_of(question, stage.layout, stage.micro_batch, stage.recompute)
    return room_of(question, float(memory_of(question, one).outside[0]))


def costed_by_profile(cluster: Cluster, dtype: str) -> bool:
    """Whether the cost model knows the device."""
    if cluster.device.kind == "cpu":
        return False
    try:
        profile_of("bessemer", cluster, dtype)
    except ValueError:  # no peak, or a network of unknown speed
        return False
    return True


def _known(layout: Layout, cluster: Cluster) -> bool:
    return layout.world == cluster.devices
