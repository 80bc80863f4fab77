"""`memgrid model`: bring models to a grid's pool."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from memgrid.cli.control import find_grid
from memgrid.cli.options import GridOption, JsonOption, TokenOption, grid_of, print_json
from memgrid.cube.identity import ModelIdentity, identity_of_folder, model_files
from memgrid.cube.oci import MODEL_ARTIFACT_TYPE
from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid.pool import Pool

app = typer.Typer(no_args_is_help=True, help="Bring models to a grid's pool.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedModel:
    """A model in the pool: what it is called there, and what it is."""

    repository: str
    tag: str
    manifest: Digest
    identity: ModelIdentity

    @property
    def pinned(self) -> str:
        """The name that can never come to mean another model."""
        return f"{self.repository}:{self.tag}@{self.manifest}"


@app.callback()
def model() -> None:
    """Keep `push` a sub-command although it is the only one."""


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder with config.json, *.safetensors and tokenizer.json.")],
    name: Annotated[str | None, typer.Argument(help="Its name in the pool; else the folder's.")] = None,
    tag: Annotated[str, typer.Option(help="Its version.")] = "latest",
    grid: GridOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push a model's weights, configuration and tokenizer; code and pickles never travel."""
    with Pool(find_grid(grid_of(grid)).url, token=token) as pool:
        pushed = push_model(pool, folder, name or folder.resolve().name, tag)
    if as_json:
        print_json(
            {
                "model": pushed.pinned,
                "manifest_digest": pushed.manifest,
                "identity": pushed.identity.digest,
                "parameters": pushed.identity.geometry.parameters,
            }
        )
        return
    typer.echo(f"pushed {pushed.repository}:{tag}")
    typer.echo(f"  {pushed.identity.geometry.parameters:,} parameters, identity {pushed.identity.digest}")


def push_model(pool: Pool, folder: Path, name: str, tag: str = "latest") -> PushedModel:
    """Push the files of a model's folder as an artefact; what the pool has already is not sent again."""
    identity = identity_of_folder(folder)
    repository = f"models/{model_slug(name)}"
    manifest = pool.push_folder(repository, tag, model_files(folder), MODEL_ARTIFACT_TYPE)
    return PushedModel(repository=repository, tag=tag, manifest=manifest, identity=identity)


def model_slug(name: str) -> str:
    """A name as repositories allow it.

    >>> model_slug("models/SmolLM2 135M_Instruct")
    'smollm2-135m_instruct'
    """
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.removeprefix("models/").lower())
    slug = re.sub(r"([._-])[._-]*", r"\1", slug).strip("._-")
    if not slug:
        raise InvalidError(f"model name: expected letters or digits, found {name!r}")
    return slug
