"""Keep what is scored apart from what is trained on: by digest, so that no talk stands on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memgrid.digest import Digest, digest_of_file
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import Shard, conversation_digests, distinct, read_shard, select, write_shard
from memgrid.specs import Purpose
from memgrid.units import ReasonCode
from memgrid_coordinator.heavy.made_file import Files, MadeFile

CONVERSATIONS = "conversations"


def sort_conversations(*, out: Path, files: Files) -> tuple[MadeFile, ...]:
    """The shards to train on and to score with, each conversation once; a shard left whole is the host's own file.

    What stands on both sides is left out of training. Raises RefusedError (HELD_OUT_LEAKED) when that leaves nothing,
    or when there is nothing to score with.
    """
    held_paths, train_paths = files[Purpose.HELD_OUT.value], files[Purpose.TRAIN.value]
    held, train = [read_shard(path) for path in held_paths], [read_shard(path) for path in train_paths]
    kept_held = distinct(held)
    seen = {digest for shard in held for digest in conversation_digests(shard)}
    kept_train = distinct(train, seen)
    asked = sum(len(shard) for shard in train)
    leaked = sum(1 for shard in train for digest in conversation_digests(shard) if digest in seen)
    if not kept_held:
        raise RefusedError(
            ReasonCode.HELD_OUT_LEAKED, "no held-out conversation has a question: nothing to score with"
        )
    if not kept_train:
        text = f"of {asked} conversations for training {leaked} are held out too, and none is left; ask more of them"
        raise RefusedError(ReasonCode.HELD_OUT_LEAKED, text)
    made: list[MadeFile] = []
    detail = {
        "train": _kept(train, train_paths, kept_train, out / "train", made),
        "held_out": _kept(held, held_paths, kept_held, out / "held_out", made),
        "train_items": len(kept_train),
        "held_out_items": len(kept_held),
        "left_out": asked - len(kept_train),
        "leaked": leaked,
    }
    return (*made, MadeFile(name=CONVERSATIONS, detail=detail))


def _kept(
    shards: Sequence[Shard], paths: Sequence[Path], kept: Sequence[tuple[int, int]], out: Path, made: list[MadeFile]
) -> list[Digest]:
    """The digests of the shards to use, in order; those with something left out are written anew."""
    digests = []
    out.mkdir()
    for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        chosen = [index for owner, index in kept if owner == number]
        if len(chosen) == len(shard):
            digests.append(digest_of_file(path))
        elif chosen:
            rest = out / f"{number:04d}.safetensors"
            write_shard(rest, select(shard, chosen))
            made.append(MadeFile(name=f"{CONVERSATIONS}/{out.name}-{number:04d}", path=rest))
            digests.append(digest_of_file(rest))
    return digests
