"""The page of all commands, from the command line's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from manual.markdown import code, paragraphs, table
from memgrid.cli.main import build_app

_HEAD = """\
# Commands

Every command of `memgrid`, as `memgrid COMMAND --help` tells it. `--grid` and `--token` may also stand before the
command. Those that tell something have `--json`. [Exit codes](../reference.md#exit-codes) say how a command ended.

"""


def page() -> str:
    """Markdown."""
    root: Any = typer.main.get_command(build_app())
    return _HEAD + "\n".join(_section(words, command) for words, command in leaves("memgrid", root))


def leaves(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        if not inner.hidden:
            yield from leaves(f"{words} {name}", inner)


def _section(words: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument" and not each.hidden]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join([words, *map(_metavar, arguments)])
    return "\n".join([
        f"## {words}\n",
        f"```\n{usage}\n```\n",
        paragraphs(command.help) + "\n",
        table(("argument", "means"), [(code(_metavar(each)), each.help or "") for each in arguments]),
        table(("option", "takes", "default", "means"), [_option(each) for each in options]),
    ])  # fmt: skip


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    many = "…" if argument.nargs == -1 and not name.endswith("…") else ""
    return f"{name}{many}" if argument.required else f"[{name}{many}]"


def _option(option: Any) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in [*option.opts, *option.secondary_opts])
    variable = f" ({code('$' + option.envvar)})" if option.envvar else ""
    default = option.default if option.show_default is not False and not callable(option.default) else None
    shown = "" if default is None or default is False or default == () else code(getattr(default, "value", default))
    return names + variable, _takes(option), shown, option.help or ""


def _takes(option: Any) -> str:
    if option.is_flag:
        return ""
    least, most = getattr(option.type, "min", None), getattr(option.type, "max", None)
    bounds = (f" from {least:g}" if least is not None else "") + (f" to {most:g}" if most is not None else "")
    choices = getattr(option.type, "choices", None)
    return ", ".join(map(str, choices)) if choices else option.type.name.replace("range", "").strip() + bounds
