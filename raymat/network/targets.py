"""Where to predict: what a detector or a person says of places in scans, from tables, boxes and label maps.

``places_of`` reads a file of any of the formats, which it knows by the content; ``raymat.network.images`` finds the
scans of the places and makes targets of them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raymat.channels import files_of
from raymat.errors import InputError
from raymat.volume import Grid
from raymat.words import counted

Triple = tuple[float, float, float]

CENTRES = ("coordX", "coordY", "coordZ")
LPS, RAS = COORDINATES = ("LPS", "RAS")
CCCWHD, XYZXYZ = BOXES = ("cccwhd", "xyzxyz")
COMPONENT, LABEL = PER = ("component", "label")
PROBABILITIES = ("probability", "score", "class")  # columns, the first that a table has
OTHER_NAMES = {"seriesinstanceuid": "seriesuid", "diameter": "diameter_mm"}
LARGEST_MM = 150.0  # no lesion is larger; a lung is
NO_DETECTOR = (
    "raymat predict mattes lesions and does not find them: name their places with --center X Y Z or --targets FILE, "
    "from a detector (MONAI's lung_nodule_ct_detection, TotalSegmentator's lung_nodules, nnU-Net, nnDetection) or "
    "drawn by hand; see the guide on 3DMM"
)


@dataclass(frozen=True)
class Reading:
    """How a file of places is read.

    Attributes
    ----------
    min_probability : places that a detector thinks less likely are left out; None for all, but those of class 0
    coordinates : "LPS" as in DICOM and LUNA16, or "RAS" as 3D Slicer shows them; a label map has its own
    boxes : "cccwhd", centre and sides, or "xyzxyz", two corners
    labels : values of a label map, or segments, that are lesions; all where there are none
    per : "component" or "label": what one target is of a label map. None for one per component of a mask, and one per
        label where there are several
    """

    min_probability: float | None = None
    coordinates: str = LPS
    boxes: str = CCCWHD
    labels: tuple[int, ...] = ()
    per: str | None = None


@dataclass(frozen=True)
class Place:
    """A lesion as a file says it.

    Attributes
    ----------
    scan : the series or image that the file names; "" where it names none
    label : what tells it from the others of the scan ("3")
    centre : (z, y, x) mm, patient coordinates (LPS)
    sides : (z, y, x) mm of the box around the lesion, along the patient's axes; None where unknown
    probability : that it is a lesion, 0 to 1; None where unknown
    where : how a message names it ("annotations.csv: line 3")
    problem : why nothing can be predicted here; empty where it can
    """

    scan: str
    label: str
    centre: Triple
    sides: Triple | None = None
    probability: float | None = None
    where: str = ""
    problem: str = ""

    def checked(self) -> Place:
        """The place, with its problem where its box is larger than any lesion."""
        if self.sides and max(self.sides) > LARGEST_MM and not self.problem:
            sides = " x ".join(f"{side:.0f}" for side in self.sides[::-1])
            problem = (
                f"{sides} mm (x, y, z) is no lesion but a lung or all of the scan: in a label map choose the values of "
                "lesions with --labels, or one target per component with --per component; boxes of two corners need "
                "--boxes xyzxyz"
            )
            return replace(self, problem=problem)
        return self


@dataclass(frozen=True)
class Places:
    """The places of a file.

    Attributes
    ----------
    path : of the file
    found : the places
    said : lines for the person who watches: what was read of the file, what was left out
    grid : of a label map; None of any other file
    """

    path: str
    found: list[Place]
    said: list[str] = field(default_factory=list)
    grid: Grid | None = None


@dataclass(frozen=True)
class Target:
    """A place in a scan.

    Attributes
    ----------
    target_id, patient_id : str
    image : path of a volume, or of a DICOM tree where ``series`` is given
    series : SeriesInstanceUID, or ""
    centre : (z, y, x) mm, patient coordinates (LPS)
    sides, probability, where, problem : see ``Place``
    channels : paths of the volumes of the channels beside the image, for a network of several
    """

    target_id: str
    patient_id: str
    image: str
    series: str
    centre: Triple
    sides: Triple | None = None
    probability: float | None = None
    where: str = ""
    problem: str = ""
    channels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How a message names it: its id, and the line or component that it is."""
        return f"{self.target_id} ({self.where})" if self.where else self.target_id


# What a file is -----------------------------------------------------------------------------------------------------


def places_of(path: str, reading: Reading) -> Places:
    """The places of a table (CSV), of boxes (JSON), or of a label map or DICOM Segmentation.

    Raises
    ------
    InputError
        The file is missing, of no such format or damaged, it names no place, a place is not finite or named twice, or
        none is as likely as asked for.
    """
    # Boxes and label maps bring libraries that a table does not need.
    from raymat.network.detections import places_of_boxes
    from raymat.network.label_maps import places_of_label_map, places_of_segmentation

    readers: dict[str, Callable[[str, Reading], Places]] = {
        "table": places_of_rows,
        "boxes": places_of_boxes,
        "label map": places_of_label_map,
        "segmentation": places_of_segmentation,
    }
    kind = kind_of_file(path)
    refuse_unused(path, kind, reading)
    places = readers[kind](path, reading)
    _refuse_twice(places)
    return replace(places, found=[place.checked() for place in places.found])


def kind_of_file(path: str) -> str:
    """What a file is by its first bytes: "table", "boxes", "label map" or "segmentation".

    Raises
    ------
    InputError
        It cannot be read, or is none of them.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name the file in it that has the lesions") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if head[128:132] == b"DICM":
        return "segmentation"
    gzip, nrrd, nifti, meta = head[:2] == b"\x1f\x8b", head[:4] == b"NRRD", head[344:347], b"NDims" in head[:512]
    if gzip or nrrd or meta or nifti in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "label map"
    if head[:2] in (b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(
            f"{path}: a pickle, which may run any code and is not read: nnDetection's boxes become a label map with "
            "`nndet_boxes2nii`"
        )
    if b"\0" in head:
        raise InputError(
            f"{path}: is none of the formats of lesions: a table (CSV), boxes (JSON of MONAI), a label map (NIfTI, "
            "NRRD, MetaImage) or a DICOM Segmentation"
        )
    return "boxes" if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{") else "table"


def refuse_unused(path: str, kind: str, reading: Reading) -> None:
    """Raise InputError where an option was given that files of this kind have no use for."""
    in_space = kind in ("label map", "segmentation")
    unused = {
        "--min-probability": in_space and reading.min_probability is not None,
        "--coordinates": in_space and reading.coordinates != LPS,
        "--boxes": kind != "boxes" and reading.boxes != CCCWHD,
        "--labels": not in_space and bool(reading.labels),
        "--per": not in_space and reading.per is not None,
    }
    for option, given in unused.items():
        if given:
            raise InputError(f"{path}: is a {kind}, for which there is no {option}; leave it out")


def _refuse_twice(places: Places) -> None:
    seen: dict[tuple[str, Triple, Triple | None], Place] = {}
    for place in places.found:
        key = place.scan, place.centre, place.sides
        if key in seen:
            raise InputError(f"{place.where}: the same place as {seen[key].where}; leave one of them")
        seen[key] = place


def from_coordinates(xyz: Sequence[float], coordinates: str) -> Triple:
    """A point (x, y, z) mm of LPS or RAS as (z, y, x) in LPS."""
    x, y, z = xyz
    return (z, -y, -x) if coordinates == RAS else (z, y, x)


def likely_of(path: str, places: list[Place], reading: Reading, by_class: bool = False) -> Places:
    """The places that are as likely as asked for; of a table with classes, those of class 0 are left out by default.

    Raises
    ------
    InputError
        There are no probabilities to judge by, or none is as large.
    """
    least = reading.min_probability
    if least is None and by_class:
        least = 0.5
    if least is None:
        return Places(path, places, [f"{path}: {counted(len(places), 'place')}"])
    known = [place.probability for place in places if place.probability is not None]
    if len(known) < len(places):
        raise InputError(f"{path}: has no probabilities, so that --min-probability cannot choose; leave it out")
    kept = [place for place in places if place.probability is not None and place.probability >= least]
    if not kept:
        raise InputError(
            f"{path}: none of its {counted(len(places), 'place')} has a probability of at least {least:g}; the largest "
            f"is {max(known):g}: choose a lower --min-probability"
        )
    rule = "of a class above 0" if by_class and reading.min_probability is None else f"of a probability >= {least:g}"
    return Places(path, kept, [f"{path}: {len(kept)} of {counted(len(places), 'place')}, those {rule}"])


# Tables -------------------------------------------------------------------------------------------------------------


def places_of_rows(path: str, reading: Reading) -> Places:
    """The places of a CSV table with ``coordX, coordY, coordZ`` in mm.

    ``seriesuid`` names the scan (LUNA16), ``diameter_mm`` the size, ``probability``, ``score`` or ``class`` how likely
    it is. Names of columns may be in any case.
    """
    rows = list(_rows(path, CENTRES, reading))
    seen: dict[str, int] = {}
    places = []
    for row in rows:
        scan = str(row.cells.get("seriesuid") or "").strip()
        if "seriesuid" in row.cells and not scan:
            raise InputError(f"{row.where}: seriesuid is empty")
        seen[scan] = seen.get(scan, 0) + 1
        places.append(Place(scan, str(seen[scan]), row.centre, row.sides, row.probability, row.where))
    return likely_of(path, places, reading, by_class=bool(rows) and rows[0].likely_by == "class")


def targets_of_table(path: str, reading: Reading | None = None) -> list[Target]:
    """Targets of a CSV table with the columns ``case_id, image, coordX, coordY, coordZ`` (and ``patient_id``).

    Images are paths relative to the table; coordinates are mm in the patient (LPS), as in LUNA16. Further columns as
    for ``places_of_rows``.
    """
    reading = reading or Reading()
    folder = Path(path).absolute().parent
    targets = {}
    for row in _rows(path, ("case_id", "image", *CENTRES), reading):
        name, (image, *others) = row.cells["case_id"], [str(folder / file) for file in files_of(row.cells["image"])]
        patient = row.cells.get("patient_id") or name
        channels = tuple(others)
        target = Target(name, patient, image, "", row.centre, row.sides, row.probability, row.where, channels=channels)
        targets[row.where] = target
    places = [Place(t.image, t.target_id, t.centre, t.sides, t.probability, t.where) for t in targets.values()]
    likely = likely_of(path, places, reading)
    checked = [place.checked() for place in likely.found]
    return [replace(targets[place.where], problem=place.problem) for place in checked]


@dataclass(frozen=True)
class _Row:
    where: str
    cells: dict[str, str]
    centre: Triple
    sides: Triple | None
    probability: float | None
    likely_by: str


def _rows(path: str, needed: Sequence[str], reading: Reading) -> Iterator[_Row]:
    names, rows = _table(path, needed)
    likely_by = next((name for name in PROBABILITIES if name in names), "")
    for number, cells in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        centre = [_number(cells[name]) for name in CENTRES]
        if not all(map(math.isfinite, centre)):
            raise InputError(f"{where}: {', '.join(CENTRES)} must be three numbers, mm")
        if not all(cells[name] for name in needed):
            raise InputError(f"{where}: {', '.join(needed)} must all be given")
        sides = probability = None
        if cells.get("diameter_mm"):
            diameter = _number(cells["diameter_mm"])
            if not 0 < diameter < math.inf:
                raise InputError(f"{where}: diameter_mm is {cells['diameter_mm']!r}, not a length in mm")
            sides = (diameter, diameter, diameter)
        if likely_by:
            probability = _number(cells[likely_by])
            if not 0 <= probability <= 1:
                raise InputError(f"{where}: {likely_by} is {cells[likely_by]!r}, not a number from 0 to 1")
        yield _Row(where, cells, from_coordinates(centre, reading.coordinates), sides, probability, likely_by)


def _table(path: str, needed: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file, by their usual names; empty rows, which spreadsheets leave, are left out."""
    usual = {name.lower(): name for name in needed} | OTHER_NAMES
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            names = [usual.get(name.strip().lower(), name.strip().lower()) for name in table.fieldnames or ()]
            missing = [name for name in needed if name not in names]
            if missing:
                raise InputError(f"{path}: no column {', '.join(missing)}; it needs {', '.join(needed)}")
            table.fieldnames = names
            rows = [row for row in table if any(str(row[name] or "").strip() for name in names)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise InputError(f"{path}: has no rows: nothing to predict")
    return names, rows


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
