"""What bot A is told to write: five families of questions, so that a text is talked about from all sides.

The families are those of "Cartridges" (arXiv 2506.06266): structuring, summarising, question, use case, creative.
What makes a family are the first words that its questions are given. Small models need both: told to write "a request
for a list", SmolLM2-135M-Instruct writes about requests; told only to write a question, it writes about writing. With
one plain instruction for all families, 58 % of its questions named something from the text; with an instruction of
their own for each family 33 %; with none but the user's turn (arXiv 2406.08464) 54 % (24 to 48 questions each).
"""

from __future__ import annotations

ASK = "Write one question about a fact in the text above."
LEAD = "Question:\n"
"""How bot A's reply is made to begin, before the first words of the question itself."""
STRUCTURING = (
    "List the names of the people",
    "List the dates",
    "List all facts about the",
    "Give all numbers about the",
    "Make a table of the",
    "Name three facts about the",
)
SUMMARISING = (
    "Summarize what is known about the",
    "Tell me more about the",
    "What are the main facts about the",
    "Explain the",
    "Explain how",
    "Describe the",
)
QUESTION = (
    "What is the",
    "Who",
    "When did",
    "Where is",
    "What happened",
    "How many",
    "How much",
    "Which",
    "In what year",
    "What",
    "Why did",
    "How does",
)
USE_CASE = (
    "I want to know",
    "I need to find out",
    "Can you tell me",
    "What should I know about the",
    "How can I",
    "Who do I ask about the",
)
CREATIVE = (
    "Why",
    "Is it true that",
    "What is the difference between the",
    "What would happen if the",
    "Write a short article about the",
    "Write a headline about the",
)
FAMILIES = (STRUCTURING, SUMMARISING, QUESTION, USE_CASE, CREATIVE)
_PLACES = 12
"""Each family gets so many places in the frame, its phrasings in turn: all have 6 or 12."""


def every_opening() -> tuple[str, ...]:
    """The first words at every place: a uniform draw among them draws families uniformly, then phrasings.

    >>> len(every_opening()), all(_PLACES % len(family) == 0 for family in FAMILIES)
    (60, True)
    """
    return tuple(family[place % len(family)] for family in FAMILIES for place in range(_PLACES))
