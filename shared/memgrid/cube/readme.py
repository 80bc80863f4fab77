"""README.md of a cube: a Hugging Face model card, written from the manifest alone."""

from __future__ import annotations

import re
from typing import Any

import yaml

from memgrid.cube.manifest import ActivationManifest, CubeManifest, LayoutKind, ParameterManifest, SourceText
from memgrid.cube.readme_parameter import parameter_body, parameter_front
from memgrid.text import bytes_text, flops_text, inline

_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")


def render_readme(manifest: CubeManifest) -> bytes:
    """The card of a cube whose manifest has every field but this card's own entry in `files`."""
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=True, allow_unicode=True, width=1000)
    if isinstance(manifest, ParameterManifest):
        body = parameter_body(manifest, _sources(manifest))
    else:
        assert isinstance(manifest, ActivationManifest)
        body = _activation_body(manifest)
    return f"---\n{front}---\n\n{body}".encode()


def _front_matter(manifest: CubeManifest) -> dict[str, Any]:
    licence = manifest.licence.lower() if _SPDX.fullmatch(manifest.licence) else "other"
    common = {"base_model": manifest.base.name, "base_model_relation": "adapter", "license": licence}
    if isinstance(manifest, ParameterManifest):
        return common | parameter_front(manifest)
    assert isinstance(manifest, ActivationManifest)
    tags = ["memgrid", "memcube", "kv-cache", manifest.kind.value, manifest.layout.kind.value]
    return {**common, "library_name": "memgrid", "tags": tags}


def _activation_body(manifest: ActivationManifest) -> str:
    layout, store_dtype = manifest.layout, manifest.numerics.store_dtype.value
    if layout.kind is LayoutKind.CHAINED:
        how = "chunks continue each other: attaching is exact up to the rounding of the stored numbers"
    else:
        how = "chunks were read apart: attaching re-rotates them, which is lossy"
    return f"""# {inline(manifest.title)}

A MemCube: the KV cache of a text, computed once for {inline(manifest.base.name)}, checked, and signed.

| | |
| --- | --- |
| base model | {inline(manifest.base.name)}, weights `{manifest.base.weights}` |
| tokens | {manifest.token_count} |
| payload | {bytes_text(manifest.payload_bytes)} in {len(manifest.chunks)} files, {store_dtype} |
| layout | {layout.kind.value}: {how} |
| computing it takes | {flops_text(manifest.cost.flops)}, which attaching it saves |
| checked by | {manifest.validation.min_replicas} agreeing replicas ({inline(manifest.validation.policy)}) |
| licence | {inline(manifest.licence)} |

```python
from memgrid import Pool

memory = Pool().pull("{manifest.name}:{manifest.version}").attach(model)
output = model.generate(**memory.prompt(tokenizer, "your question"))
```

## Sources

{_sources(manifest)}
"""


def _sources(manifest: CubeManifest) -> str:
    return "\n".join(_source_line(source) for source in manifest.sources)


def _source_line(source: SourceText) -> str:
    size, licence = bytes_text(source.size_bytes), inline(source.licence)
    return f"- {inline(source.uri)}, {size}, licence {licence}, `{source.digest}`"
