"""Training, validation and test by patient, 7:1:2, drawn again for each repetition (paper, section 6.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymat.nodule import InputError

SHARES = (7, 1, 2)
REPETITIONS = 4
PARTS = ("training", "validation", "test")
FEWEST = len(PARTS)


@dataclass(frozen=True)
class Split:
    """The patients of each part, sorted; no patient is in two."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of_parts(cls, parts: Mapping[str, str]) -> Split:
        """From each patient's part, one of ``PARTS``."""
        return cls(*(tuple(sorted(p for p, part in parts.items() if part == name)) for name in PARTS))

    @property
    def parts(self) -> dict[str, str]:
        """Each patient's part, one of ``PARTS``."""
        return {patient: name for name in PARTS for patient in getattr(self, name)}

    def of(self, patients: Iterable[str]) -> Split:
        """The split of those patients alone; whom it does not know is learnt from.

        Raises
        ------
        InputError
            Nobody would be left to learn from, or to validate.
        """
        known, held = set(patients), {*self.validation, *self.test}
        if not known - held or not known.intersection(self.validation):
            raise InputError(
                f"of {len(known)} patients {len(known - held)} would be learnt from and "
                f"{len(known.intersection(self.validation))} would validate: build a larger dataset"
            )
        parts = (known - held, known.intersection(self.validation), known.intersection(self.test))
        return Split(*(tuple(sorted(part)) for part in parts))

    def outside_tests(self, splits: Iterable[Split]) -> Split | None:
        """The split without the patients that any of ``splits`` tests; None where training or validation is empty.

        What is chosen on its validation part has seen no patient on whom one of those splits will be judged.
        """
        tested = {patient for split in splits for patient in split.test}
        training, validation = (tuple(p for p in part if p not in tested) for part in (self.training, self.validation))
        return Split(training, validation, self.test) if training and validation else None


def split_patients(patients: Iterable[str], repetition: int = 0, shares: tuple[int, int, int] = SHARES) -> Split:
    """Deal patients out to training, validation and test.

    A patient's place in the draw is a digest of its name and the repetition: the same on every machine and for every
    order of the input, and a patient who joins the dataset moves few others.

    Parameters
    ----------
    patients : ids; several nodules of one patient count once, and go to one part together
    repetition : 0, 1, 2, ... for independent draws
    shares : training : validation : test, whole numbers above 0

    Raises
    ------
    InputError
        Fewer than three patients, which leaves a part empty.
    """
    unique = set(patients)
    if len(unique) < FEWEST:
        raise InputError(
            f"{len(unique)} patients cannot be split into {', '.join(PARTS)}: at least {FEWEST} are needed, and "
            "some dozens for numbers that mean anything. Build a larger dataset"
        )
    drawn = sorted(unique, key=lambda patient: (_draw(patient, repetition), patient))
    total, n = sum(shares), len(drawn)
    # Rounded, but no part is left empty.
    tests = max(1, round(n * shares[2] / total))
    validations = max(1, round(n * shares[1] / total))
    tests = min(tests, n - 1 - validations)
    parts = drawn[tests + validations :], drawn[tests : tests + validations], drawn[:tests]
    return Split(*(tuple(sorted(part)) for part in parts))


def _draw(patient: str, repetition: int) -> str:
    return hashlib.blake2b(f"{repetition}/{patient}".encode(), digest_size=16).hexdigest()
