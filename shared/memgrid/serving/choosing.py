"""Find the cubes to answer with: by the name somebody gave, or by what a question is about."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memgrid.cube.chunk_past import text_ids
from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import MANIFEST_FILE, ActivationManifest, CubeManifest, ParameterManifest
from memgrid.cube.terms import subject_terms, words_of
from memgrid.digest import Digest
from memgrid.errors import DoesNotFitError, InvalidError, MemgridError, UnknownCubeError, UnknownModelError
from memgrid.grids import GridTrust, memgrid_home
from memgrid.log import get_logger
from memgrid.pool.client import Pool
from memgrid.pool.reference import DEFAULT_TAG, Reference
from memgrid.serving.loading import Loaded
from memgrid.serving.relevance import Index

AUTO = "auto"
_TITLE_WEIGHT, _SOURCE_WEIGHT = 3, 2
_WORDS_OF_ITS_OWN = 2
"""Telling words that make a question stand for itself."""
log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Cubes for an answer, and why these; nothing fitting is a choice too."""

    cubes: tuple[MemCube, ...]
    why: str


class Shelf:
    """The cubes at hand for one loaded model: those given by folder, those in the local cache, those in a pool.

    A cube is verified when it is first used, against `keys` or those of the grids this user has met.
    """

    def __init__(self, loaded: Loaded, pool: Pool, *, may_pull: bool = True, keys: Sequence[bytes] = ()) -> None:
        self._loaded, self._pool, self.may_pull = loaded, pool, may_pull
        self._keys = tuple(keys) or tuple(grid.grid_key for grid in GridTrust(memgrid_home()).all())
        self._opened: dict[Path, MemCube] = {}
        self._given: list[MemCube] = []
        self._fitting: dict[Digest, bool] = {}
        self._words: dict[Digest, list[str]] = {}
        self._lock = threading.RLock()

    def add(self, name: str) -> MemCube:
        """A cube by its folder or name, kept at hand from now on; raises as `named` does."""
        folder = Path(name)
        cube = self._open(folder) if (folder / MANIFEST_FILE).is_file() else self.named(name)
        cube.check_fits(self._loaded.model)
        if cube.digest not in {known.digest for known in self._given}:
            self._given.append(cube)
        return cube

    def named(self, name: str) -> MemCube:
        """A cube by `namespace/name[:tag][@sha256:…]`: one at hand, else from the pool where that is allowed.

        Raises UnknownCubeError, and what `Pool.pull` raises.
        """
        wanted = Reference.parse(name)
        for cube in self.at_hand():
            if _is_called(cube.manifest, wanted) and (wanted.digest is None or self._came_as(cube, wanted.digest)):
                return self._open(cube.folder)
        if not self.may_pull:
            raise UnknownCubeError(f"{wanted} is not on this machine; pull it first")
        cube = self._pool.pull(name)
        self._opened[cube.folder] = cube
        return cube

    def at_hand(self) -> list[MemCube]:
        """Every cube here that fits the model, not verified yet: those given, then the cached, last used first."""
        with self._lock:
            here = [found for each in reversed(self._pool.ls()) if (found := self._try_open(each.folder)) is not None]
            by_digest = {cube.digest: cube for cube in [*here, *self._given]}
            ordered = dict.fromkeys(cube.digest for cube in [*self._given, *here])
            return [by_digest[digest] for digest in ordered if self._fits(by_digest[digest])]

    def about(self, turns: Sequence[Mapping[str, str]]) -> Choice:
        """The cube that a conversation is about, by its last question.

        One that says little by itself ("And why?") is understood from those before it.
        """
        cubes = self.at_hand()
        index = Index([(cube, self._words_of(cube)) for cube in cubes])
        asked = [turn["content"] for turn in reversed(turns) if turn.get("role") == "user"]
        for question in asked:
            match = index.best(question)
            if match is not None:
                words = ", ".join(match.matched)
                why = f"{len(match.matched)} of {match.asked} words: {words}"
                return Choice(cubes=(self._open(match.thing.folder),), why=f"{match.thing.manifest.name} ({why})")
            if len(words_of(question)) >= _WORDS_OF_ITS_OWN:
                break
        return Choice(cubes=(), why=f"none of {len(cubes)} cubes knows these words")

    def _try_open(self, folder: Path) -> MemCube | None:
        try:
            return self._open(folder, is_checked=False)
        except (MemgridError, OSError) as error:
            log.warning("a cube in the cache can't be used", folder=str(folder), why=str(error))
            return None

    def _open(self, folder: Path, *, is_checked: bool = True) -> MemCube:
        with self._lock:
            cube = self._opened.get(folder)
            if cube is None:
                cube = self._opened.setdefault(folder, MemCube.open(folder))
            if is_checked and not cube.is_trusted:
                cube.verify(self._keys)
            return cube

    def _came_as(self, cube: MemCube, digest: Digest) -> bool:
        cached = self._pool.cache.find(digest)
        return digest == cube.digest or (cached is not None and cached.folder == cube.folder)

    def _fits(self, cube: MemCube) -> bool:
        base: ModelIdentity = cube.manifest.base
        if base.digest not in self._fitting:
            try:
                cube.check_fits(self._loaded.model)
                self._fitting[base.digest] = True
            except DoesNotFitError:
                self._fitting[base.digest] = False
        return self._fitting[base.digest]

    def _words_of(self, cube: MemCube) -> list[str]:
        """What a cube is known by: its title, its sources' names and the telling words of its text."""
        if cube.digest not in self._words:
            manifest = cube.manifest
            sources = " ".join(
                Path(source.uri).stem.replace("-", " ").replace("_", " ") for source in manifest.sources
            )
            self._words[cube.digest] = [
                *words_of(manifest.title) * _TITLE_WEIGHT,
                *words_of(sources) * _SOURCE_WEIGHT,
                *_terms(cube, self._loaded.tokenizer),
            ]
        return self._words[cube.digest]


def split_model(text: str, base: str) -> tuple[str, ...]:
    """The cubes that `base+cube+cube` names; raises UnknownModelError for another base.

    >>> split_model("smol+pumps/valves:1.0.0+pumps/seals", "smol")
    ('pumps/valves:1.0.0', 'pumps/seals')
    """
    given, *cubes = text.split("+")
    if given != base:
        forms = f"{base}, {base}+{AUTO} or {base}+namespace/name"
        raise UnknownModelError(f"model: expected {forms}, found {text[:120]!r}")
    if not all(cubes) or (AUTO in cubes and len(cubes) > 1):
        raise InvalidError(f"model: expected {AUTO} alone, or names of cubes joined by +, found {text[:120]!r}")
    return tuple(cubes)


def _is_called(manifest: CubeManifest, wanted: Reference) -> bool:
    return manifest.name == wanted.repository and (wanted.tag in (DEFAULT_TAG, manifest.version))


def _terms(cube: MemCube, tokenizer: Any) -> tuple[str, ...]:
    if isinstance(cube.manifest, ParameterManifest):
        return cube.manifest.terms
    assert isinstance(cube.manifest, ActivationManifest)
    return subject_terms(tokenizer.decode(text_ids(cube.folder, cube.manifest), skip_special_tokens=True))
