"""The page of the campaign file, and its JSON schema, from the models that check it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from manual.markdown import code, first_paragraph, table
from memgrid.campaign import CampaignFile
from memgrid.campaign_problems import models_in

SCHEMA_FILE = "campaign.schema.json"
_HEAD = f"""\
# Campaign file

Every key that a campaign file can have. How they play together is in [For operators](../operators.md) and, for
`recipe: distill`, in [Distil documents](../distil.md). An unknown key is an error.

Editors that know JSON Schema complete and check keys while you type, with this as the file's first line, or a copy of
[the schema]({SCHEMA_FILE}) beside it:

```yaml
# yaml-language-server: $schema={SCHEMA_FILE}
```

The schema knows forms and bounds; `memgrid campaign validate` also knows what contradicts what.

"""


def page() -> str:
    """Markdown."""
    return _HEAD + "\n".join(_section(path, model) for path, model in mappings("", CampaignFile))


def schema() -> str:
    """JSON Schema of the whole file."""
    return json.dumps(CampaignFile.model_json_schema(), indent=1) + "\n"


def mappings(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every mapping of the file, outermost first, with where it stands."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            is_list = "tuple" in str(field.annotation)
            yield from mappings(f"{path}.{name}".removeprefix(".") + ("[]" if is_list else ""), inner)


def _section(path: str, model: type[BaseModel]) -> str:
    tag = model.model_fields.get("kind")
    kind = f", kind {model.__annotations__['kind'].partition('[')[2].strip(chr(34) + ']')}" if tag else ""
    heading = f"## {code(path) + kind if path else 'The file'}\n"
    rows = [_key(name, field) for name, field in model.model_fields.items()]
    return f"{heading}\n{first_paragraph(model.__doc__)}\n\n" + table(("key", "takes", "default"), rows)


def _key(name: str, field: Any) -> tuple[str, str, str]:
    if field.is_required():
        default = "must be there"
    elif isinstance(field.default, BaseModel):
        default = "as below"
    else:
        default = code(json.dumps(getattr(field.default, "value", field.default)))
    return code(name), field.description or ("which of the kinds below" if name == "kind" else ""), default
