"""The model card of a parameter cube: what it learnt, how well between both anchors, and how to use it."""

from __future__ import annotations

from typing import Any

from memgrid.cube.info import adapter_text
from memgrid.cube.manifest import ParameterManifest
from memgrid.specs import AdapterKind
from memgrid.text import bytes_text, flops_text, inline

LOSS_PLOT_FILE = "plots/loss.svg"
QUALITY_PLOT_FILE = "plots/quality.svg"


def parameter_front(manifest: ParameterManifest) -> dict[str, Any]:
    """What the card says to machines, beside what all cards say."""
    method = "cartridge" if manifest.adapter.kind is AdapterKind.PREFIX else "lora"
    return {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["memgrid", "memcube", "context-distillation", manifest.kind.value, method],
    }


def parameter_body(manifest: ParameterManifest, sources: str) -> str:
    """The card below its front matter; `sources` is the list of texts, as Markdown."""
    base, size = inline(manifest.base.name), bytes_text(manifest.payload_bytes)
    return f"""# {inline(manifest.title)}

A MemCube: {adapter_text(manifest.adapter)} that makes {base} answer as if it had read a text of
{manifest.token_count} tokens. Trained by distillation on a memgrid, checked, and signed.

![Quality between the two anchors]({QUALITY_PLOT_FILE})

{_quality_table(manifest)}

The model that read the text wrote the answers, so it gets every one of them right; the cube never saw these
{manifest.quality.items} conversations. The cube closes **{manifest.quality.gap_closed:.0%}** of the gap.

| | |
| --- | --- |
| base model | {base}, weights `{manifest.base.weights}` |
| adapter | {adapter_text(manifest.adapter)}, {manifest.numerics.store_dtype.value} |
| size | {size}, {manifest.compression:.1f} times smaller than the KV cache of the text |
| making it took | {flops_text(manifest.cost.flops)} in {manifest.cost.units} units of work |
| checked by | {inline(manifest.validation.policy)} |
| licence | {inline(manifest.licence)} |

## Use

With memgrid, which also checks the signature and that the model is the right one, and attaches several cubes at once:

```python
from memgrid import Pool

memory = Pool().pull("{manifest.name}:{manifest.version}").attach(model)
output = model.generate(**memory.prompt(tokenizer, "your question"))
```

With plain PEFT:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "path/to/this/folder")
chat = [{{"role": "user", "content": "your question"}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt)
```

## Training

![Loss while training]({LOSS_PLOT_FILE})

Every number behind both plots is in `eval/report.json`; who computed what, when, and what was checked is in the
signed `memcube.intoto.jsonl`.

## Sources

{sources}
"""


def _quality_table(manifest: ParameterManifest) -> str:
    quality = manifest.quality
    return f"""| {quality.items} held-out conversations | without the text | with this cube | with the text |
| --- | ---: | ---: | ---: |
| NLL of the answers, nats a token | {quality.nll_none:.3f} | **{quality.nll_cube:.3f}** | {quality.nll_text:.3f} |
| KL from the model that read the text | {quality.kl_none:.3f} | **{quality.kl_cube:.3f}** | 0 |
| answer tokens that come first | {quality.correct_none:.1%} | **{quality.correct_cube:.1%}** | 100% |
| answers that come out whole | {quality.exact_none:.1%} | **{quality.exact_cube:.1%}** | 100% |"""
