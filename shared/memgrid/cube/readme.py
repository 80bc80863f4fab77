"""README.md of a cube: a Hugging Face model card, written from the manifest alone."""

from __future__ import annotations

import re
from typing import Any

import yaml

from memgrid.cube.manifest import CubeManifest, LayoutKind, SourceText
from memgrid.text import bytes_text, flops_text

_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")


def render_readme(manifest: CubeManifest) -> bytes:
    """The card of a cube whose manifest has every field but `files`, in which the card itself will stand."""
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=True, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{_body(manifest)}".encode()


def _front_matter(manifest: CubeManifest) -> dict[str, Any]:
    licence = manifest.licence.lower() if _SPDX.fullmatch(manifest.licence) else "other"
    return {
        "base_model": manifest.base.name,
        "base_model_relation": "adapter",
        "library_name": "memgrid",
        "license": licence,
        "tags": ["memgrid", "memcube", "kv-cache", manifest.kind.value, manifest.layout.kind.value],
    }


def _body(manifest: CubeManifest) -> str:
    layout, store_dtype = manifest.layout, manifest.numerics.store_dtype.value
    if layout.kind is LayoutKind.CHAINED:
        how = "chunks continue each other: attaching is exact up to the rounding of the stored numbers"
    else:
        how = "chunks were read apart: attaching re-rotates them, which is lossy"
    sources = "\n".join(_source_line(source) for source in manifest.sources)
    return f"""# {_inline(manifest.title)}

A MemCube: the KV cache of a text, computed once for {_inline(manifest.base.name)}, checked, and signed.

| | |
| --- | --- |
| base model | {_inline(manifest.base.name)}, weights `{manifest.base.weights}` |
| tokens | {manifest.token_count} |
| payload | {bytes_text(manifest.payload_bytes)} in {len(manifest.chunks)} files, {store_dtype} |
| layout | {layout.kind.value}: {how} |
| computing it takes | {flops_text(manifest.cost.flops)}, which attaching it saves |
| checked by | {manifest.validation.min_replicas} agreeing replicas ({_inline(manifest.validation.policy)}) |
| licence | {_inline(manifest.licence)} |

```python
from memgrid import Pool

cube = Pool().pull("{manifest.name}:{manifest.version}")
cache = cube.attach(model)
output = model.generate(**cube.prompt(tokenizer, "your question"), past_key_values=cache)
```

## Sources

{sources}
"""


def _source_line(source: SourceText) -> str:
    size, licence = bytes_text(source.size_bytes), _inline(source.licence)
    return f"- {_inline(source.uri)}, {size}, licence {licence}, `{source.digest}`"


def _inline(text: str) -> str:
    """Text from outside on one line of Markdown, where it can't become markup of its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
