"""`memgrid serve`: an OpenAI-compatible address for a model with cubes."""

from __future__ import annotations

from typing import Annotated

import typer

from memgrid.cli.chat import CubesOption, DeviceOption, DtypeOption, KeyOption, ModelOption
from memgrid.cli.options import GridOption, trusted_keys
from memgrid.errors import InvalidError
from memgrid.pool.client import Pool
from memgrid.units import ComputeDtype

KEY_VARIABLE = "MEMGRID_API_KEY"


def serve(
    model: ModelOption,
    cube: CubesOption = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY_VARIABLE, help="What clients must send as their API key.", show_default=False),
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, max=1000, help="How many questions may wait.")] = 8,
    pull: Annotated[bool, typer.Option("--pull", help="Let clients have cubes pulled that are not here.")] = False,
    dtype: DtypeOption = ComputeDtype.AUTO,
    device: DeviceOption = None,
    key: KeyOption = None,
    grid: GridOption = None,
) -> None:
    """Serve /v1/chat/completions and /v1/models. Clients ask for MODEL, MODEL+auto or MODEL+namespace/name[+…]."""
    try:
        from memgrid.serving.running import run
        from memgrid.serving.server import is_loopback
    except ModuleNotFoundError as error:
        raise InvalidError(f"memgrid serve needs {error.name}: pip install 'memgrid[serve]'") from None
    if not is_loopback(host) and not api_key:
        raise InvalidError(f"--host {host}: others could reach it; set an API key in {KEY_VARIABLE}")
    from memgrid.serving.choosing import Shelf
    from memgrid.serving.loading import load

    loaded = load(model, dtype=dtype, device=device)
    with Pool(grid) as pool:
        shelf = Shelf(loaded, pool, may_pull=True, keys=trusted_keys(key))
        for name in cube or []:
            shelf.add(name)
        shelf.may_pull = pull
        run(loaded, shelf, host=host, port=port, api_key=api_key, waiting_max=waiting)
