"""Talk to a model with cubes, line by line: what is typed, what it does, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memgrid.cube.cube import MemCube
from memgrid.cube.info import CubeInfo
from memgrid.errors import InvalidError, MemgridError
from memgrid.serving.answering import Answerer, Finish
from memgrid.serving.choosing import Shelf
from memgrid.serving.sampling import Settings
from memgrid.text import bytes_text


class Command(NamedTuple):
    """What follows a slash."""

    usage: str
    help: str
    run: Callable[[Chat, str], None]


class Chat:
    """A conversation and the cubes it is held with; `is_auto` lets each question choose its own."""

    def __init__(
        self, answerer: Answerer, shelf: Shelf, console: Console, settings: Settings, *, system: str | None = None
    ) -> None:
        self._answerer, self._shelf, self._console, self._settings = answerer, shelf, console, settings
        self._first = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = list(self._first)
        self.cubes: list[MemCube] = []
        self.is_auto = False
        self.is_over = False

    def run(self, lines: Iterable[str]) -> None:
        """Take line after line until they end or somebody leaves; one that fails says so, and the next is taken."""
        for line in lines:
            try:
                self.take(line.strip())
            except MemgridError as error:
                self._say(f"[red]{escape(str(error))}[/red]")
            except KeyboardInterrupt:
                self._say("\n[dim]stopped[/dim]")
            if self.is_over:
                return

    def take(self, line: str) -> None:
        """A question, or a command behind a slash."""
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        word, _, rest = line[1:].partition(" ")
        if word not in COMMANDS:
            raise InvalidError(f"/{word}: no such command; /help lists them")
        COMMANDS[word].run(self, rest.strip())

    def add(self, name: str) -> None:
        """Answer with this cube too, from here on."""
        if not name:
            raise InvalidError("/add: expected namespace/name, or a cube's folder")
        cube = self._shelf.add(name)
        if cube.digest in {each.digest for each in self.cubes}:
            raise InvalidError(f"/add: {cube.manifest.name} is there already")
        self.cubes.append(cube)
        self.is_auto = False

    def drop(self, name: str) -> None:
        """Answer without this cube, or without any when none is named."""
        kept = [cube for cube in self.cubes if name and cube.manifest.name != name.partition(":")[0]]
        if name and len(kept) == len(self.cubes):
            in_use = ", ".join(cube.manifest.name for cube in self.cubes) or "none"
            raise InvalidError(f"/drop: {name} is not in use; in use: {in_use}")
        self.cubes = kept
        if len(self._turns) > len(self._first):
            self._say("[dim]what was said so far stays in the conversation; /reset begins anew[/dim]")

    def auto(self, _: str) -> None:
        """Choose by relevance from here on, or no longer."""
        self.is_auto = not self.is_auto
        self.cubes = []
        self._say(f"[dim]from here on {'each question chooses its cube' if self.is_auto else 'no cubes'}[/dim]")

    def show(self, _: str) -> None:
        """The cubes in use and those at hand."""
        in_use = {cube.digest for cube in self.cubes}
        table = Table(box=None, header_style="bold")
        for heading in ("", "cube", "version", "kind", "size", "gap closed", "title"):
            table.add_column(heading)
        for cube in [*self.cubes, *(each for each in self._shelf.at_hand() if each.digest not in in_use)]:
            table.add_row("in use" if cube.digest in in_use else "", *_facts(cube.info()))
        self._console.print(table if table.row_count else "no cubes for this model on this machine")

    def compare(self, question: str) -> None:
        """The same question by itself, without cubes and then with them."""
        asked = question or next((turn["content"] for turn in reversed(self._turns) if turn["role"] == "user"), "")
        if not asked:
            raise InvalidError("/compare: expected a question, here or before")
        turns = [*self._first, {"role": "user", "content": asked}]
        cubes = self._cubes_for(turns)
        self._say("[bold]without cubes[/bold]")
        self._stream(turns, [])
        self._say(f"[bold]with {escape(', '.join(cube.manifest.name for cube in cubes) or 'none either')}[/bold]")
        self._stream(turns, cubes)

    def reset(self, _: str) -> None:
        """Begin a new conversation with the same cubes."""
        self._turns = list(self._first)

    def leave(self, _: str) -> None:
        self.is_over = True

    def help(self, _: str) -> None:
        for command in COMMANDS.values():
            self._say(f"[bold]{escape(command.usage):24}[/bold] {escape(command.help)}")

    def _ask(self, question: str) -> None:
        turns = [*self._turns, {"role": "user", "content": question}]
        cubes = self._cubes_for(turns)
        answer = self._stream(turns, cubes)
        # An answer that was stopped stays part of the conversation; one that failed does not, and is asked again.
        self._turns = [*turns, {"role": "assistant", "content": answer}]

    def _cubes_for(self, turns: list[dict[str, str]]) -> list[MemCube]:
        if not self.is_auto:
            return self.cubes
        choice = self._shelf.about(turns)
        self._say(f"[dim]auto: {escape(choice.why)}[/dim]")
        return list(choice.cubes)

    def _stream(self, turns: list[dict[str, str]], cubes: list[MemCube]) -> str:
        pieces: list[str] = []
        answer = self._answerer.answer(turns, cubes, self._settings)
        try:
            for piece in answer:
                if isinstance(piece, Finish):
                    self._console.print("" if piece.reason == "stop" else f"[dim] … ({piece.reason})[/dim]")
                else:
                    pieces.append(piece)
                    self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self._say("[dim] … (stopped)[/dim]")
        finally:
            answer.close()
        return "".join(pieces).strip()

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


COMMANDS = {
    "cubes": Command("/cubes", "the cubes in use, and those on this machine", Chat.show),
    "add": Command("/add NAME", "answer with this cube too: namespace/name[:tag] or a folder", Chat.add),
    "drop": Command("/drop [NAME]", "answer without this cube, or without any", Chat.drop),
    "auto": Command("/auto", "let each question choose its own cube, or no longer", Chat.auto),
    "compare": Command("/compare [QUESTION]", "the same question without cubes and with them", Chat.compare),
    "reset": Command("/reset", "forget the conversation, keep the cubes", Chat.reset),
    "help": Command("/help", "this list", Chat.help),
    "quit": Command("/quit", "leave; so does the end of input", Chat.leave),
}


def _facts(info: CubeInfo) -> tuple[str, ...]:
    closed = f"{info.quality['gap_closed']:.0%}" if info.quality else ""
    return info.name, info.version, info.kind, bytes_text(info.bytes), closed, info.title
