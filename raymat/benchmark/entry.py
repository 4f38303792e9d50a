"""The files of an entry: one matte per nodule, in one folder or one per repeated split, and what it learnt from.

DIR/NODULE_ID.nii.gz             one folder for all splits: a method that learnt from no patient of the release
DIR/split-0/NODULE_ID.nii.gz     one folder per split: a method that was trained for each split
DIR/trained-on.txt               patients (or nodules) that the method learnt from, one per line; in either folder
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymat.nodule import InputError
from raymat.places import is_uri
from raymat.splits import REPETITIONS
from raymat.words import counted, file_name, utf8

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
VOXELS = (".raw", ".zraw", ".raw.gz", ".raw.bz2")  # beside .nhdr and .mhd
LEARNT_FROM = "trained-on.txt"
SPLIT = re.compile(r"split-(\d+)")
NAMED = 5


@dataclass(frozen=True)
class Mattes:
    """The files of one folder.

    Attributes
    ----------
    folder : its path
    files : nodule's id to its matte
    problems : nodule's id to why none of its files can be taken
    extra : a file's or folder's path to why it is left aside
    learnt_from : lines of ``trained-on.txt``; None where there is no such file
    """

    folder: Path
    files: Mapping[str, Path]
    problems: Mapping[str, str]
    extra: Mapping[Path, str]
    learnt_from: tuple[str, ...] | None = None


def find_mattes(path: str, ids: Sequence[str], splits: Sequence[int] | None = None) -> dict[int, Mattes]:
    """The mattes of an entry by split; one folder for all splits is the same for each.

    Parameters
    ----------
    path : folder of the entry
    ids : of all nodules of the release
    splits : to judge; None for all that the entry has

    Raises
    ------
    InputError
        There is no such folder, it holds mattes beside folders of splits, a split is missing, or no file is called
        as a nodule is.
    """
    if is_uri(path):
        raise InputError(f"{path}: mattes are read from a folder of this machine; copy them to one")
    folder = Path(path).expanduser().absolute()  # workers may begin in another folder
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; name the one that holds one matte per nodule")
    by_split = {int(match[1]): file for file in _listed(folder) if (match := SPLIT.fullmatch(file.name))}
    unknown = [number for number in {*by_split, *(splits or ())} if number not in range(REPETITIONS)]
    if unknown:
        raise InputError(f"{path}: no split {min(unknown)}; the splits of a release are 0 to {REPETITIONS - 1}")
    if not by_split:
        mattes = _mattes_in(folder, ids)
        found = dict.fromkeys(range(REPETITIONS) if splits is None else splits, mattes)
    else:
        if any(file.name.lower().endswith(ENDINGS) for file in _listed(folder) if file not in by_split.values()):
            raise InputError(
                f"{path}: holds mattes beside folders of splits; a method that learnt from patients of the release has "
                "all of its mattes in split-0, split-1, ..., any other method has one folder without them"
            )
        missing = sorted(set(splits or ()) - set(by_split))
        if missing:
            raise InputError(f"{path}: no folder split-{missing[0]}; leave the split out of --splits, or add it")
        found = {number: _mattes_in(by_split[number], ids) for number in splits or sorted(by_split)}
    if not any(mattes.files or mattes.problems for mattes in found.values()):
        some = ", ".join(sorted(utf8(file.name) for file in _listed(folder))[:NAMED])
        raise InputError(
            f"{path}: no matte of a nodule of the release in it; a file is called {expected_file(ids[0])}, here are: "
            f"{some or 'no files'}"
        )
    return found


def refuse_training_on_tests(
    mattes: Mapping[int, Mattes], tests: Mapping[int, Collection[str]], patient_of: Mapping[str, str]
) -> None:
    """Raise InputError where an entry says that it learnt from a patient on whom it is judged.

    Parameters
    ----------
    mattes : of each split
    tests : the test patients of each split
    patient_of : nodule's id to its patient, of the whole release
    """
    patients = {_plain(nodule_id): patient for nodule_id, patient in patient_of.items()}
    patients |= {_plain(patient): patient for patient in patient_of.values()}
    for split, one in mattes.items():
        known = {patients.get(_plain(line)) for line in one.learnt_from or ()}
        both = sorted(patient for patient in tests[split] if patient in known)
        if both:
            raise InputError(
                f"{one.folder / LEARNT_FROM}: the method learnt from {counted(len(both), 'patient')} whom split "
                f"{split} tests ({', '.join(both[:NAMED])}{', ...' if len(both) > NAMED else ''}); train one for each "
                'split on release.split(N, "training"), with mattes in split-N folders, or judge only splits that do '
                "not test them (--splits)"
            )


def learnt_in_words(mattes: Mapping[int, Mattes]) -> str:
    """What the entry says it learnt from; nothing of it can be checked but that it names no test patient."""
    lists = [one.learnt_from for one in mattes.values()]
    if any(one is None for one in lists):
        return "not stated"
    names = {name for one in lists for name in one or ()}
    own = len({one.folder for one in mattes.values()}) > 1
    named = "1 patient or nodule" if len(names) == 1 else f"{len(names)} patients or nodules"
    return f"{named}{', by split' if own else ''}" if names else "nobody"


def _mattes_in(folder: Path, ids: Sequence[str]) -> Mattes:
    by_name = {file_name(nodule_id): nodule_id for nodule_id in ids}
    # Of two ids of which one begins another, the longer one is meant by a name that begins with both.
    folded = {name.casefold(): by_name[name] for name in sorted(by_name, key=len, reverse=True)}
    files: defaultdict[str, list[Path]] = defaultdict(list)
    extra, learnt_from = {}, None
    for file in _listed(folder):
        ending = next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")
        stem = file.name[: len(file.name) - len(ending)]
        if file.name == LEARNT_FROM:
            learnt_from = _lines(file)
        elif file.is_dir():
            extra[file] = "a folder; put the mattes into the folder above, without folders of their own"
        elif not ending and not file.name.lower().endswith(VOXELS):
            extra[file] = f"no volume that can be read; mattes are {', '.join(ENDINGS)}"
        elif ending and stem not in by_name:
            meant = next((known for plain, known in folded.items() if stem.casefold().startswith(plain)), ids[0])
            extra[file] = f"called as no nodule of the release is; a matte is called {expected_file(meant)}"
        elif ending:
            files[by_name[stem]].append(file)
    several = {name: found for name, found in files.items() if len(found) > 1}
    problems = {
        name: f"{' and '.join(file.name for file in found)} are both of this nodule; delete all but one"
        for name, found in several.items()
    }
    one_each = {name: found[0] for name, found in files.items() if name not in several}
    return Mattes(folder, one_each, problems, extra, learnt_from)


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files, which systems leave, are no part of an entry."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _lines(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); write one patient per line, in UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def expected_file(nodule_id: str) -> str:
    """The name of a nodule's matte; endings of other formats do as well."""
    return f"{file_name(nodule_id)}.nii.gz"


def _plain(name: str) -> str:
    return name.strip().casefold()
