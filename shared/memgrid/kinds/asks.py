"""What bot A is told to write: five families of seed prompts, so that a text is talked about from all sides.

The families are those of "Cartridges" (arXiv 2506.06266): structuring, summarising, question, use case, creative.
Questions have to name what they ask about, for whoever answers them later has the text in memory, not before him.
"""

from __future__ import annotations

STRUCTURING = (
    "Write one message in which a user asks for facts of the text above as a list, a table or JSON. The message must"
    " say which facts. Write only the message.",
    "Ask for one part of the text above to be put into a clear structure. Name the subject and the dates, names or"
    " numbers that must be in it. Write only the request.",
    "Write a short instruction that makes an assistant list everything the text above says about one subject. Name"
    " that subject. Write only the instruction.",
)
SUMMARISING = (
    "Write one message in which a user asks for a summary of one part of the text above. Say precisely which part and"
    " what it is about. Write only the message.",
    "Ask for the main points that the text above makes about one subject of your choice. Name the subject. Write only"
    " the request.",
    "Write a short instruction to explain a passage of the text above in simple words. Say which passage by its"
    " subject. Write only the instruction.",
)
QUESTION = (
    "Write one question about a fact in the text above. Include names, numbers or dates, so that it can be answered"
    " without seeing the text. Write only the question.",
    "Ask one precise question that only somebody who knows the text above can answer. Name the person, thing or place"
    " it is about. Write only the question.",
    "Think of a detail near the end or in the middle of the text above, and write one question about it that makes"
    " clear what is meant. Write only the question.",
    "Write one question that begins with How or Why and is answered by the text above. Name its subject. Write only"
    " the question.",
)
USE_CASE = (
    "Write one message from a person who needs to know something from the text above for a practical task. Say what"
    " the task is. Write only the message.",
    "Imagine someone who works with what the text above describes and has a problem. Write the question they would"
    " ask. Write only the question.",
    "Write one request for help with a decision that depends on facts in the text above. Name those facts' subject."
    " Write only the request.",
)
CREATIVE = (
    "Write one unusual question inspired by the text above, one that compares or connects two things it mentions."
    " Write only the question.",
    "Ask for a short text, such as a letter, a headline or a dialogue, that uses facts of the text above. Name the"
    " subject. Write only the request.",
    "Write one question that starts a conversation about something surprising in the text above. Name what it is."
    " Write only the question.",
)
FAMILIES = (STRUCTURING, SUMMARISING, QUESTION, USE_CASE, CREATIVE)
LINES = 12
"""Each family gets so many places in the frame, its phrasings in turn: 12 is a multiple of 3 and of 4."""


def every_ask() -> tuple[str, ...]:
    """All places in order: a uniform draw among them draws families uniformly, then phrasings.

    >>> len(every_ask()), all(LINES % len(family) == 0 for family in FAMILIES)
    (60, True)
    """
    return tuple(family[line % len(family)] for family in FAMILIES for line in range(LINES))
