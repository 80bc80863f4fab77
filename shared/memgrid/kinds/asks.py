"""What bot A is told to write: five families of seed prompts, so that a text is talked about from all sides.

The families are those of "Cartridges" (arXiv 2506.06266): structuring, summarising, question, use case, creative. A
seed prompt comes with the first words of what it asks for. Small models, told only to write a question, talk about
the task instead; made to begin with "When did", they ask when something did (measured on SmolLM2-135M-Instruct:
about one question in four made sense without given words, about three in four with them).
"""

from __future__ import annotations

_QUESTION = "Write one question about a fact in this text."
_PRECISE = "Write one precise question about a name, a number or a date in this text."
_REASON = "Write one question about how or why something in this text is as it is."
_LIST = "Write one request for a list of facts in this text."
_TABLE = "Write one request to put facts of this text in order."
_SUMMARY = "Write one request to summarize a part of this text."
_EXPLAIN = "Write one request to explain something in this text in simple words."
_TASK = "Write one question of a person who needs the facts in this text."
_DECISION = "Write one request for advice that depends on the facts in this text."
_SURPRISE = "Write one surprising question about this text."
_PIECE = "Write one request for a short piece of writing that uses the facts in this text."

STRUCTURING = (
    (_LIST, "List the names of"),
    (_LIST, "List the dates"),
    (_LIST, "List all facts about"),
    (_TABLE, "Give all numbers about"),
    (_TABLE, "Make a table of"),
    (_TABLE, "Write down in order"),
)
SUMMARISING = (
    (_SUMMARY, "Summarize what is known about"),
    (_SUMMARY, "Tell me about the"),
    (_SUMMARY, "What are the main points about"),
    (_EXPLAIN, "Explain the"),
    (_EXPLAIN, "Explain how"),
    (_EXPLAIN, "Describe the"),
)
QUESTION = (
    (_QUESTION, "What is the"),
    (_QUESTION, "Who"),
    (_QUESTION, "When did"),
    (_QUESTION, "Where is"),
    (_QUESTION, "What happened"),
    (_PRECISE, "How many"),
    (_PRECISE, "How much"),
    (_PRECISE, "Which"),
    (_PRECISE, "In what year"),
    (_PRECISE, "What"),
    (_REASON, "Why did"),
    (_REASON, "How does"),
)
USE_CASE = (
    (_TASK, "I want to know"),
    (_TASK, "I need to find out"),
    (_TASK, "Can you tell me"),
    (_DECISION, "How can I"),
    (_DECISION, "What do I have to know about"),
    (_DECISION, "Is it possible to"),
)
CREATIVE = (
    (_SURPRISE, "Why"),
    (_SURPRISE, "Is it true that"),
    (_SURPRISE, "What is the difference between"),
    (_SURPRISE, "What would happen if"),
    (_PIECE, "Write a short article about"),
    (_PIECE, "Write a headline about"),
)
FAMILIES = (STRUCTURING, SUMMARISING, QUESTION, USE_CASE, CREATIVE)
LEAD = "Question:\n"
"""How bot A's reply is made to begin, before the first words of the question itself."""
_PLACES = 12
"""Each family gets so many places in the frame, its phrasings in turn: all have 6 or 12."""


def every_ask() -> tuple[tuple[str, str], ...]:
    """Seed prompt and first words of every place: a uniform draw among them draws families uniformly, then phrasings.

    >>> len(every_ask()), all(_PLACES % len(family) == 0 for family in FAMILIES)
    (60, True)
    """
    return tuple(family[place % len(family)] for family in FAMILIES for place in range(_PLACES))
