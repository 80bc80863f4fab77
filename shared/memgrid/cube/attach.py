"""Put cubes to work in a model, several at once where that is possible, and take them off without a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from memgrid.cube.caches import append, new_cache
from memgrid.cube.chunk_past import ChunkPast, link_for
from memgrid.cube.manifest import ADAPTER_FILE, ActivationManifest, ParameterManifest, Wrap
from memgrid.cube.prefix_past import PrefixPast
from memgrid.cube.wrap import chat_ids, digest_of_template, digest_of_tokenizer, question_ids, turns_of
from memgrid.errors import DoesNotFitError, InvalidError, NotVerifiedError
from memgrid.specs import AdapterKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import BatchEncoding, DynamicCache

    from memgrid.cube.cube import MemCube

_MARK = "_memgrid_attached"
"""Where a model remembers whose weights are at work in it; a dictionary of models would keep them alive."""


class _Past(Protocol):
    """Keys and values that come before every prompt."""

    def token_ids(self, filler: int) -> list[int]: ...
    def layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


def attach(model: Any, cubes: MemCube | Sequence[MemCube], link: str | None = None) -> Attachment:
    """Put one cube or several to work in `model`.

    Together go: trained prefixes, in the order given; any number of LoRAs; one activation cube; LoRAs with either.
    `link` is how an activation cube's chunks are joined (its layout's own way when left out). Raises NotVerifiedError
    for a cube that was not verified, DoesNotFitError for another model, InvalidError for a mix that does not go.
    """
    parts = [cubes] if not isinstance(cubes, Sequence) else list(cubes)
    if not parts or len({cube.digest for cube in parts}) != len(parts):
        raise InvalidError("attach: expected cubes, each once")
    for cube in parts:
        if not cube.is_trusted:
            raise NotVerifiedError(f"{cube.manifest.name}: call verify(trusted_keys) before attaching")
        cube.check_fits(model)
    past = _past_of(parts, model, link)
    loras = [cube for cube in parts if _is_adapter(cube, AdapterKind.LORA)]
    return Attachment(model, parts, past, loras)


class Attachment:
    """Cubes at work in a model, until `detach`.

        with cube.attach(model) as memory:
            output = model.generate(**memory.prompt(tokenizer, "When does the valve open?"))

    Prefixes and texts work through the prompts made here; LoRAs work in the model itself, so while one is attached
    every call of the model feels it.
    """

    def __init__(self, model: Any, cubes: Sequence[MemCube], past: _Past | None, loras: Sequence[MemCube]) -> None:
        self.model = model
        self.cubes = tuple(cubes)
        self._past = past
        self._hooks = ExitStack()
        self._is_attached = True
        if loras:
            _refuse_another(model, None)
            self._hook(loras)

    @property
    def names(self) -> str:
        return ", ".join(cube.manifest.name for cube in self.cubes)

    @property
    def positions(self) -> int:
        """How many positions of the context the cubes take."""
        return 0 if self._past is None else len(self._past.token_ids(0))

    def prompt(self, tokenizer: Any, question: str | Sequence[Mapping[str, str]]) -> BatchEncoding:
        """What `model.generate` takes for a question, or for a conversation so far (role and content each).

        `input_ids` and `attention_mask` [1, n] on the model's device and, where the cubes take positions, a fresh
        `past_key_values`, which generating uses up: make a prompt for each call. The ids begin with one for each
        position of the cubes. Raises DoesNotFitError when `tokenizer` is not the base model's.
        """
        import torch
        from transformers import BatchEncoding

        ids = torch.tensor([self.ids(tokenizer, question)], device=self.model.device)
        encoding = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return BatchEncoding(encoding if self._past is None else {**encoding, "past_key_values": self.cache()})

    def ids(self, tokenizer: Any, question: str | Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of such a prompt alone, for whoever keeps a cache of their own; raises as `prompt` does."""
        self._check_usable()
        self._check_tokenizer(tokenizer)
        turns, wrap = turns_of(question), self._wrap()
        own = chat_ids(tokenizer, turns) if wrap is None else question_ids(tokenizer, turns, wrap)
        return [*([] if self._past is None else self._past.token_ids(own[0])), *own]

    def cache(self) -> DynamicCache:
        """A fresh cache holding the cubes' positions, empty when they have none; for calling the model by oneself."""
        self._check_usable()
        cache = new_cache()
        for layer, (k, v) in enumerate(() if self._past is None else self._past.layers()):
            append(cache, layer, k, v)
        return cache

    def detach(self) -> None:
        """Leave the model as it was, to the bit; a second call does nothing."""
        if self._is_attached and getattr(self.model, _MARK, None) is self:
            delattr(self.model, _MARK)
        self._is_attached = False
        self._hooks.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    def _hook(self, loras: Sequence[MemCube]) -> None:
        from memgrid.distill.adapters import load_adapter, lora_hooks

        with ExitStack() as stack:
            for cube in loras:
                assert isinstance(cube.manifest, ParameterManifest)
                spec = cube.manifest.adapter
                adapter = load_adapter(cube.folder / ADAPTER_FILE, spec, self.model)
                stack.enter_context(lora_hooks(self.model, adapter.tensors, alpha=spec.alpha, rank=spec.rank))
            # Only once every one of them is known to fit.
            self._hooks = stack.pop_all()
        setattr(self.model, _MARK, self)

    def _check_usable(self) -> None:
        if not self._is_attached:
            raise InvalidError(f"{self.names}: detached; attach again")
        _refuse_another(self.model, self)

    def _check_tokenizer(self, tokenizer: Any) -> None:
        base, wrap = self.cubes[0].manifest.base, self._wrap()
        if digest_of_tokenizer(tokenizer) != base.tokenizer:
            raise DoesNotFitError(f"tokenizer: not the one of {base.name} ({base.tokenizer})")
        if wrap is not Wrap.PLAIN and digest_of_template(tokenizer) != base.chat_template:
            raise DoesNotFitError(f"chat_template: not the one of {base.name} ({base.chat_template})")

    def _wrap(self) -> Wrap | None:
        """How the text that is attached stands in the conversation; None when there is no text in it."""
        manifests = (cube.manifest for cube in self.cubes)
        return next((each.layout.wrap for each in manifests if isinstance(each, ActivationManifest)), None)


def detach(model: Any) -> None:
    """Take off whatever LoRAs are at work in `model`, for when nobody has hold of the attachment any more."""
    attached = getattr(model, _MARK, None)
    if attached is not None:
        attached.detach()


def _refuse_another(model: Any, own: Attachment | None) -> None:
    """Two attachments that change weights would each answer with the other's memory mixed in, and nobody told."""
    attached = getattr(model, _MARK, None)
    if attached is not None and attached is not own:
        raise InvalidError(
            f"{attached.names}: at work in this model; detach() it first, or attach all cubes in one call"
        )


def _past_of(cubes: Sequence[MemCube], model: Any, link: str | None) -> _Past | None:
    texts = [cube for cube in cubes if isinstance(cube.manifest, ActivationManifest)]
    prefixes = [cube for cube in cubes if _is_adapter(cube, AdapterKind.PREFIX)]
    if len(texts) > 1 or (texts and prefixes):
        names = ", ".join(cube.manifest.name for cube in [*texts, *prefixes])
        raise InvalidError(f"attach: {names}: a text's KV cache goes alone or with LoRAs, not with another past")
    if link is not None and not texts:
        raise InvalidError(f"link: only an activation cube has chunks to join, found {link!r}")
    if texts:
        manifest = texts[0].manifest
        assert isinstance(manifest, ActivationManifest)
        return ChunkPast(texts[0].folder, manifest, model, link_for(manifest, link))
    pairs = [(cube.folder, cube.manifest) for cube in prefixes if isinstance(cube.manifest, ParameterManifest)]
    return PrefixPast(pairs, model) if pairs else None


def _is_adapter(cube: MemCube, kind: AdapterKind) -> bool:
    return isinstance(cube.manifest, ParameterManifest) and cube.manifest.adapter.kind is kind
