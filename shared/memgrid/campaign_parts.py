"""What every mapping of a campaign file has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

CONTRADICTION = "contradiction"
"""The error type of keys that are each well-formed and can't be meant together."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number as YAML has it: no text that looks like one, no truth value, no infinity."""


def matching(fits: Callable[[str], object]) -> AfterValidator:
    """A validator of texts by their form; what was expected stands in the field's description."""

    def check(text: str) -> str:
        if not fits(text):
            raise PydanticCustomError("form", "does not have the expected form")
        return text

    return AfterValidator(check)


class Part(BaseModel):
    """A mapping of the file. The description of a field is what its errors say they expected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def contradiction(key: str, expected: str, found: Any) -> PydanticCustomError:
    """An error at `key` of the mapping whose validator raises it; `key` may lead on into it, as in `train.steps`."""
    context = {"key": key, "expected": expected, "found": str(found)}
    return PydanticCustomError(CONTRADICTION, "expected {expected}, found {found}", context)
