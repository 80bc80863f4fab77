"""Markdown from values: tables, code, and nothing that breaks them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing where there are no rows.

    >>> print(table(["name", "means"], [["a|b", "two\\nlines"]]))
    | name | means |
    | --- | --- |
    | a\\|b | two lines |
    <BLANKLINE>
    """
    lines = [_row([_cell(text) for text in row]) for row in rows]
    if not lines:
        return ""
    return "\n".join([_row(headings), _row(["---"] * len(headings)), *lines]) + "\n"


def code(text: object) -> str:
    """Something as it is typed.

    >>> code("a`b")
    '`` a`b ``'
    """
    content = str(text)
    return f"`` {content} ``" if "`" in content else f"`{content}`"


def paragraphs(text: str | None) -> str:
    """A docstring without its indentation."""
    return inspect.cleandoc(text or "")


def first_paragraph(text: str | None) -> str:
    return " ".join(paragraphs(text).partition("\n\n")[0].split())


def attribute_docs(*classes: type[Any]) -> dict[str, str]:
    """What stands below each attribute in the source of some classes; of equal names the last class's."""
    docs: dict[str, str] = {}
    for each in classes:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in zip(definition.body, definition.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
                assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    # Outside of code a page takes `<name>` for a tag.
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)
