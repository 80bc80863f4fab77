"""A MemCube on disk: open it, verify it, attach it to a model, ask it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgrid.cube.info import CubeInfo
from memgrid.cube.manifest import MANIFEST_BYTES_MAX, MANIFEST_FILE, PROVENANCE_FILE, CubeManifest
from memgrid.cube.provenance import Provenance, check_provenance
from memgrid.digest import Digest, digest_of, digest_of_file
from memgrid.errors import InvalidError, NotVerifiedError

if TYPE_CHECKING:
    from memgrid.cube.attach import Attachment


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What verifying a cube established: these bytes, said by this key to have come about like this."""

    digest: Digest
    files: int
    size_bytes: int
    provenance: Provenance


class MemCube:
    """A cube's folder with its manifest read; payloads are only touched when they are needed.

    `Pool.pull` hands out verified cubes. For a folder from elsewhere:

        cube = MemCube.open(Path("my-cube"))
        cube.verify([grid_key])
        with cube.attach(model) as memory:
            output = model.generate(**memory.prompt(tokenizer, "…?"))
    """

    def __init__(self, folder: Path, manifest: CubeManifest, manifest_bytes: bytes) -> None:
        self.folder = folder
        self.manifest = manifest
        self._manifest_bytes = manifest_bytes
        self.is_trusted = False

    @staticmethod
    def open(folder: Path | str, *, trusted: bool = False) -> MemCube:
        """Read a cube's manifest; raises InvalidError when the folder holds none.

        `trusted` is for a cube of one's own making: it may be attached without verification.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.is_file():
            raise InvalidError(f"{folder}: no {MANIFEST_FILE} here: this is no cube")
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise InvalidError(f"{path}: larger than {MANIFEST_BYTES_MAX} bytes")
        content = path.read_bytes()
        cube = MemCube(Path(folder), CubeManifest.from_bytes(content), content)
        cube.is_trusted = trusted
        return cube

    @property
    def digest(self) -> Digest:
        """The cube's identity: the sha256 of its memcube.json."""
        return digest_of(self._manifest_bytes)

    @property
    def path(self) -> str:
        """The folder as text, for libraries that want it so."""
        return str(self.folder)

    def verify(self, trusted_keys: Iterable[bytes]) -> Verification:
        """Check every byte against the manifest, and the manifest against a trusted key's signature.

        `trusted_keys` are raw Ed25519 public keys. Raises NotVerifiedError naming the first file that fails; a file
        that the manifest does not list fails too, since other programs might load it.
        """
        provenance_path = self.folder / PROVENANCE_FILE
        if not provenance_path.is_file():
            raise NotVerifiedError(f"{PROVENANCE_FILE}: missing; nobody has signed this cube")
        if (self.folder / MANIFEST_FILE).read_bytes() != self._manifest_bytes:
            raise NotVerifiedError(f"{MANIFEST_FILE}: has changed since the cube was opened")
        provenance = check_provenance(provenance_path.read_bytes(), self._manifest_bytes, trusted_keys)
        listed = self._listed_files()
        self._refuse_unlisted({MANIFEST_FILE, PROVENANCE_FILE, *listed})
        for name, (digest, size_bytes) in listed.items():
            self._check_file(name, digest, size_bytes)
        self.is_trusted = True
        total_bytes = sum(size_bytes for _, size_bytes in listed.values())
        return Verification(digest=self.digest, files=len(listed), size_bytes=total_bytes, provenance=provenance)

    def check_fits(self, model: Any) -> None:
        """Raises DoesNotFitError naming the field in which `model` differs from the cube's base model.

        The first time this hashes the model's weights (a second a gigabyte); later calls remember.
        """
        from memgrid.cube.fit import check_fits

        check_fits(self.manifest.base, model)

    def attach(self, model: Any, link: str | None = None) -> Attachment:
        """Put this cube to work in a model; `memgrid.attach(model, [a, b])` does so with several.

        Raises NotVerifiedError for a cube that was not verified, DoesNotFitError for another model, InvalidError
        for a `link` policy that the layout does not have.
        """
        from memgrid.cube.attach import attach

        return attach(model, self, link)

    def info(self) -> CubeInfo:
        """The cube's price tag and label."""
        return CubeInfo.of(self.manifest)

    def _listed_files(self) -> dict[str, tuple[Digest, int]]:
        return {file.title or "": (file.digest, file.size_bytes) for file in self.manifest.listed()}

    def _refuse_unlisted(self, allowed: set[str]) -> None:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_dir() and name not in allowed and not name.startswith("."):
                raise NotVerifiedError(f"{name}: not part of the signed cube")

    def _check_file(self, name: str, digest: Digest, size_bytes: int) -> None:
        path = self.folder / name
        if not path.is_file():
            raise NotVerifiedError(f"{name}: missing")
        if path.stat().st_size != size_bytes:
            raise NotVerifiedError(f"{name}: {path.stat().st_size} bytes, the manifest says {size_bytes}")
        if digest_of_file(path) != digest:
            raise NotVerifiedError(f"{name}: its content is not what was signed")
