"""`memgrid chat`: ask a model with cubes, and see what they change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from memgrid.cli.options import GridOption, trusted_keys
from memgrid.errors import InvalidError
from memgrid.pool.client import Pool
from memgrid.units import ComputeDtype

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A model's folder, or its name.", show_default=False)]
CubesOption = Annotated[
    list[str] | None,
    typer.Option("--cube", "-c", help="namespace/name[:tag] or a cube's folder; may be given several times."),
]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1, max=1 << 20, help="The longest answer.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest word each time.")]
TopPOption = Annotated[float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest words of this share.")]
DtypeOption = Annotated[ComputeDtype, typer.Option(help="What to compute in.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda:0, …; else the first GPU if there is one.")]
KeyOption = Annotated[
    list[str] | None, typer.Option("--key", help="Trust this Ed25519 public key (hex) instead of the known grids'.")
]


def chat(
    model: ModelOption,
    cube: CubesOption = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let each question choose among the cubes here.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes chance repeatable.")] = None,
    dtype: DtypeOption = ComputeDtype.AUTO,
    device: DeviceOption = None,
    key: KeyOption = None,
    grid: GridOption = None,
) -> None:
    """Talk to a model with cubes attached; /help lists what else can be typed. Questions may come through a pipe."""
    if auto and cube:
        raise InvalidError("chat: expected --cube or --auto, found both")
    from memgrid.serving.answering import Answerer
    from memgrid.serving.choosing import Shelf
    from memgrid.serving.loading import load
    from memgrid.serving.repl import Chat
    from memgrid.serving.sampling import Settings

    is_person = sys.stdin.isatty()
    console = Console()
    loaded = load(model, dtype=dtype, device=device)
    settings = Settings(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with Pool(grid) as pool:
        shelf = Shelf(loaded, pool, keys=trusted_keys(key))
        talk = Chat(Answerer(loaded), shelf, console, settings, system=system)
        for name in cube or []:
            talk.add(name)
        talk.is_auto = auto
        if is_person:
            held = ", ".join(each.manifest.name for each in talk.cubes) or ("chosen by question" if auto else "none")
            greeting = f"{loaded.name}, cubes: {held}; /help for commands, Ctrl-D to leave"
            console.print(greeting, style="dim", markup=False, highlight=False)
        talk.run(_typed(console) if is_person else sys.stdin)


def _typed(console: Console) -> Iterator[str]:
    """Lines as a person types them; Ctrl-C clears a line, Ctrl-D ends."""
    with suppress(ImportError):  # not on every system
        import readline  # noqa: F401 - being imported gives input() its line editing
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            console.print()
        except EOFError:
            console.print()
            return
