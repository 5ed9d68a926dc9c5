"""What every section of the config has in common: strictness, and the kinds of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**5)]  # of images, layers, batches: more is a slip, and no machine's
Seed = Annotated[int, Field(ge=0, lt=2**64)]  # what randomness is hashed from: larger ones would repeat
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# YAML has lists, a frozen section wants tuples: the container is converted, its entries are not.
Positives = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
Names = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
Steps = Annotated[tuple[Count, ...], Strict(False)]


def repeated(values: Sequence[object]) -> list[object]:
    """Returns the values that occur again after their first place."""
    return [value for i, value in enumerate(values) if value in values[:i]]


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversions, no change after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Yields the settings that cannot stand, alone or together.

        Each as its dotted key within this section, and what is wrong and what to do about it.
        """
        yield from ()

    @model_validator(mode="after")
    def _raise_contradictions(self) -> Section:
        problems = list(self.contradictions())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            context = {"text": text, "problems": problems}
            raise PydanticCustomError("contradiction", "{text}", context)
        return self
