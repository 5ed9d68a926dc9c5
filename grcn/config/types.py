"""Defines the common base of config sections: strictness, number types, and the roles of settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**5)]  # of images, layers, batches: more is a typo, and fits no machine
Seed = Annotated[int, Field(ge=0, lt=2**64)]  # randomness is hashed from it: larger ones would repeat
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean, per step
# YAML has lists, a frozen section needs tuples: the container is converted, its entries are not.
Positives = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
Names = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
Steps = Annotated[tuple[Count, ...], Strict(False)]


class FrozenNames(dict[str, str]):
    """A hashable mapping of names to names, for frozen sections; it must not change."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


NamesByName = Annotated[dict[str, str], AfterValidator(FrozenNames)]


def repeated(values: Sequence[object]) -> list[object]:
    """Returns the values that occur again after their first occurrence."""
    return [value for i, value in enumerate(values) if value in values[:i]]


@dataclass(frozen=True)
class Role:
    """The effect of a setting; one without any decides only how, how fast and where a run is carried out.

    Attributes:
        training: it changes the weights at the end of a training.
        detection: it changes the detections of a detector with given weights.
        measure: it changes the images or figures of an evaluation.
    """

    training: bool = False
    detection: bool = False
    measure: bool = False


MODEL = Role(training=True, detection=True)
TRAINING = Role(training=True)
DETECTION = Role(detection=True)
DATA = Role(training=True, measure=True)
MEASURE = Role(measure=True)
HOW = Role()


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversions, no change after reading.

    A setting has the :class:`Role` in its annotation, or else its section's.
    """

    role: ClassVar[Role]

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def check(self) -> Iterator[tuple[str, str]]:
        """Yields invalid settings, alone or in combination: the dotted key within this section, and problem and fix."""
        yield from ()

    @model_validator(mode="after")
    def _raise_problems(self) -> Section:
        problems = list(self.check())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            context = {"text": text, "problems": problems}
            raise PydanticCustomError("contradiction", "{text}", context)
        return self


def roles_of(kind: type[Section], prefix: str = "") -> dict[str, Role]:
    """Returns the role of each setting of a section, by dotted key; covers all variants of a section."""
    found: dict[str, Role] = {}
    for name, field in kind.model_fields.items():
        inner = section_kinds(field.annotation)
        is_list = get_args(field.annotation)[1:2] == (...,)  # of sections, as tuple[PaperRowConfig, ...]: one setting
        if inner and not is_list:
            for variant in inner:
                found |= roles_of(variant, f"{prefix}{name}.")
        else:
            named = [item for item in field.metadata if isinstance(item, Role)]
            found[prefix + name] = named[0] if named else kind.role
    return found


def section_kinds(annotation: Any) -> list[type[Section]]:
    """Returns the sections named in a type such as ``A | B`` or ``tuple[A, ...]``."""
    if parts := get_args(annotation):
        return [kind for part in parts for kind in section_kinds(part)]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return []
