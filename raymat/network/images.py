"""The scans that places lie in: volumes by their names, series of a DICOM tree by their UIDs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from raymat.errors import InputError
from raymat.network.targets import Place, Places, Target
from raymat.sources.dicom import Series, index_tree, slab_grid
from raymat.sources.series import Scan, patient_meant, scan_of
from raymat.volume import Grid, read_grid
from raymat.words import counted

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
NAMED = 5


@dataclass(frozen=True)
class Found:
    """Targets, and the scans of their series.

    Attributes
    ----------
    targets : in the order of the places, those of one scan together
    scans : SeriesInstanceUID to scan
    said : lines for the person who watches
    """

    targets: list[Target]
    scans: Mapping[str, Scan] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def stem_of(path: str) -> str:
    """The name of a volume's file without its ending."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return next((name[: -len(ending)] for ending in VOLUME_ENDINGS if name.lower().endswith(ending)), name)


def _names_of(place: Place) -> list[str]:
    """What may be the scan's name in what a file says of it: a UID, a path, or a path with the UID as a folder."""
    parts = PurePosixPath(place.scan.replace("\\", "/")).parts
    return [stem_of(part) for part in reversed(parts)]


def in_volumes(path: str, places: Places) -> Found:
    """Targets in a volume, or in the volumes of a folder by the names that the places have.

    Raises
    ------
    InputError
        There is no such volume, none of the places is of it, or a label map lies elsewhere than it.
    """
    if Path(path).is_dir():
        files = {
            stem_of(file.name): str(file.absolute())
            for file in sorted(Path(path).iterdir())
            if file.name.lower().endswith(VOLUME_ENDINGS)
        }
        if not files:
            raise InputError(f"{path}: holds no volume ({', '.join(VOLUME_ENDINGS)}); for DICOM files say --dicom")
        if any(not place.scan for place in places.found):
            if len(files) > 1:
                raise InputError(
                    f"{places.path}: does not say which of the {len(files)} volumes in {path} it is of; name one "
                    "of them with --image"
                )
            return in_volumes(next(iter(files.values())), places)
        return Found(_grouped([_in_folder(path, files, place) for place in places.found]))
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    stem, image = stem_of(path), str(Path(path).absolute())
    kept, said = _of_scan(places, lambda place: stem in _names_of(place), path)
    if places.grid:
        said += _placed(places, read_grid(path), path)
    return Found([_target(stem, stem, image, "", place) for place in kept], said=said)


def _in_folder(folder: str, files: Mapping[str, str], place: Place) -> Target:
    stem = next((name for name in _names_of(place) if name in files), "")
    if stem:
        return _target(stem, stem, files[stem], "", place)
    name = stem_of(place.scan)
    problem = f"{folder}: holds no volume of the name {name}"
    return _target(name, name, str(Path(folder) / name), "", place, problem)


def in_tree(root: str, places: Places, series: str | None = None) -> Found:
    """Targets in the series of a DICOM tree: that of ``series``, else the one a place names, else the only one.

    Raises
    ------
    InputError
        There is no such folder or series, a place names none of several, or a label map lies elsewhere than the series.
    """
    named = {name for place in places.found for name in _names_of(place)}
    nameless = any(not place.scan for place in places.found)
    tree = index_tree(root, {series} if series else None if nameless else named)
    if series and series not in tree.series:
        raise InputError(f"{root}: holds no images of series {series} (--series); it has {_listed(list(tree.others))}")
    known = tree.series
    one_name = len({place.scan for place in places.found}) == 1
    if not series and not nameless and not known and one_name and len(tree.others) == 1:
        # The detector ran on a copy that goes by another name.
        known = index_tree(root, tree.others).series
    if series or nameless or (one_name and len(known) == 1):
        uid = series or _only(root, places, known)
        kept, said = _of_scan(places, lambda place: uid in _names_of(place), f"series {uid}")
        scan = scan_of(known[uid])
        if places.grid and (grid := _grid_of(scan)):
            said += _placed(places, grid, f"series {uid}")
        targets = [_target(uid, patient_meant(known[uid]) or uid, root, uid, place) for place in kept]
        return Found(targets, {uid: scan}, said)
    targets = [_in_series(root, known, place) for place in places.found]
    return Found(
        _grouped(targets), {uid: scan_of(known[uid]) for uid in sorted({t.series for t in targets} & {*known})}
    )


def _only(root: str, places: Places, known: Mapping[str, Series]) -> str:
    uids = [uid for uid, series in known.items() if series.slices or series.broken]
    if not uids:
        raise InputError(f"{root}: holds no series of images")
    if len(uids) > 1:
        raise InputError(
            f"{places.path}: does not say which of the {len(uids)} series in {root} it is of; name it with --series: "
            f"{_listed(uids)}"
        )
    return uids[0]


def _in_series(root: str, known: Mapping[str, Series], place: Place) -> Target:
    uid = next((name for name in _names_of(place) if name in known), "")
    if uid:
        return _target(uid, patient_meant(known[uid]) or uid, root, uid, place)
    name = stem_of(place.scan)
    problem = f"{root}: holds no images of series {name}; --series UID takes the places of one series alone"
    return _target(name, name, root, name, place, problem)


def _listed(uids: Sequence[str]) -> str:
    return ", ".join(uids[:NAMED]) + (" ..." if len(uids) > NAMED else "") if uids else "none"


def _of_scan(places: Places, belongs: Callable[[Place], bool], scan: str) -> tuple[list[Place], list[str]]:
    """The places of one scan: that name it or none; all, where they name one scan alone, whatever its name."""
    named = {place.scan for place in places.found if place.scan}
    kept = [place for place in places.found if not place.scan or belongs(place)]
    if kept:
        left = len(places.found) - len(kept)
        said = [f"{places.path}: {len(kept)} of {counted(len(places.found), 'place')}, those of {scan}"] if left else []
        return kept, said
    if len(named) == 1:
        return places.found, [f"{places.path}: its places are of {named.pop()}, which is taken for {scan}"]
    raise InputError(f"{places.path}: names {len(named)} scans ({_listed(sorted(named))}), and none of them is {scan}")


def _placed(places: Places, scan: Grid, name: str) -> list[str]:
    """A line where a label map has another grid than its scan; InputError where its header has lost its place."""
    own = places.grid
    assert own is not None
    apart = float(np.abs(_ends(own) - _ends(scan)).max())
    if sorted(own.shape) == sorted(scan.shape):
        if apart > max(*own.spacing, *scan.spacing):
            raise InputError(
                f"{places.path}: has as many voxels as {name} along each axis, but lies up to {apart:.1f} mm "
                "elsewhere: its header has lost the place of the scan; copy origin, spacing and direction (NIfTI: the "
                "affine) from it"
            )
        return []
    return [f"{places.path}: has another grid than {name}; its places are taken by patient coordinates"]


def _ends(grid: Grid) -> np.ndarray:
    """The lowest and the highest corner in the patient, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    at = grid.to_patient(corners)
    return np.stack([at.min(axis=0), at.max(axis=0)])


def _grid_of(scan: Scan) -> Grid | None:
    """The grid of all slices of a scan; None where they have none together, as where some are missing."""
    try:
        return slab_grid(scan.slices) if len(scan.slices) > 1 else None
    except InputError:
        return None


def _target(name: str, patient: str, image: str, series: str, place: Place, problem: str = "") -> Target:
    return Target(
        f"{name}-{place.label}",
        patient,
        image,
        series,
        place.centre,
        place.sides,
        place.probability,
        place.where,
        problem or place.problem,
    )


def _grouped(targets: list[Target]) -> list[Target]:
    """The targets of one scan together, so that it is read once."""
    first: dict[tuple[str, str], int] = {}
    for target in targets:
        first.setdefault((target.image, target.series), len(first))
    return sorted(targets, key=lambda target: first[target.image, target.series])
