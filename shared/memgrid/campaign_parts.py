"""What every mapping of a campaign file has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A mapping of the file. The description of a field is what its errors say they expected."""

    model_config = ConfigDict(extra="forbid", frozen=True)
