"""Which files a unit makes, the main one first: in this order they are reported."""

from __future__ import annotations

from memgrid.specs import EvaluateSpec, PrefillSpec, StudySpec, TrainSpec, parse_spec


def output_names(spec: bytes) -> tuple[str, ...]:
    """The names of what the worker leaves for a unit; raises InvalidError when there is no such kind."""
    # Each kind is known by the file that describes it: a supervisor that only caches texts imports no other.
    match parse_spec(spec):
        case PrefillSpec():
            from memgrid.kinds.prefill import KV_FILE

            return (KV_FILE,)
        case StudySpec():
            from memgrid.kinds.shard import SHARD_FILE

            return (SHARD_FILE,)
        case TrainSpec() as train:
            from memgrid.kinds import train as train_kind

            return tuple(train_kind.output_names(train))
        case EvaluateSpec():
            from memgrid.kinds.evaluate import SCORES_FILE

            return (SCORES_FILE,)
