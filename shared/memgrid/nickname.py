"""The name a volunteer goes by in public: made from its account's id, so that nobody has to be asked for one."""

from __future__ import annotations

import hashlib

_KINDS = """
amber azure bold brave bright brisk calm clear coral crimson curious deft eager early fair fleet fond free
gentle gilded glad golden green hardy honest humble indigo ivory jade keen kind lively lucid lunar mellow
merry misty modest noble novel olive patient pearl placid plucky proud quick quiet rapid rosy rustic sage
scarlet serene silver steady still sunny swift tidal vivid warm wise
""".split()  # noqa: SIM905 - a list of one word a line would fill two screens
_ANIMALS = """
badger bear beaver bison bittern crane curlew deer dolphin dove eagle egret elk falcon ferret finch fox
gannet gecko goose grebe hare hawk heron horse ibex ibis jay kestrel kite lark linnet lynx magpie marten
merlin mole moose newt orca osprey otter owl panda petrel pika plover puffin rabbit raven robin salmon seal
shrike sparrow stoat stork swan teal tern turtle walrus wolf wren
""".split()  # noqa: SIM905 - a list of one word a line would fill two screens


def nickname(account_id: str) -> str:
    """Two words and four digits, always the same for an account; nothing can be learnt from it.

    >>> nickname("5f1c") == nickname("5f1c") != nickname("5f1d")
    True
    """
    seed = hashlib.sha256(account_id.encode()).digest()
    kind, animal = _KINDS[seed[0] % len(_KINDS)], _ANIMALS[seed[1] % len(_ANIMALS)]
    return f"{kind}-{animal}-{int.from_bytes(seed[2:4]) % 10000:04}"
