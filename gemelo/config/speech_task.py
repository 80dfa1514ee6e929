"""Speech task: recognition (ASR) or translation (AST), as an instruction of Gemma 3n's.

The words are those of the model's announcement and documentation; a chain of thought transcribes
before it translates, in one answer, as they recommend. Nothing here needs a model, so what is wrong
with a task is an error before one is loaded.

    Task("es", "English").instruction     # "Translate this audio from Spanish into English:"
"""

from __future__ import annotations

from dataclasses import dataclass

from gemelo.config.languages import language_name
from gemelo.errors import InputError


@dataclass(frozen=True)
class Task:
    """What is to be written: the words as they are, or in another language.

    Languages are ISO 639-1 codes or English names; one that is unknown is an error.
    chain_of_thought transcribes before it translates, in one answer.
    """

    language: str | None = None
    translate_to: str | None = None
    chain_of_thought: bool = False

    @property
    def instruction(self) -> str:
        """The words before the sound. Raises InputError for a language that nobody knows, and for a
        chain without a translation."""
        source = None if self.language is None else language_name(self.language)
        target = None
        if self.translate_to is not None:
            target = language_name(self.translate_to, "translate_to")
        if self.chain_of_thought:
            if target is None:
                raise InputError(
                    "a chain of thought transcribes, then translates: say what into (translate_to)"
                )
            source = f" in {source}" if source else ""
            return (
                f"Transcribe the following speech segment{source}, then translate it into {target}:"
            )
        if target is not None:
            source = f" from {source}" if source else ""
            return f"Translate this audio{source} into {target}:"
        return f"Transcribe this audio{f' into {source}' if source else ''}:"
