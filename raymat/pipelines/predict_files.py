"""What ``raymat predict`` writes beside its dataset: measures, a sheet per scan, a DICOM Segmentation per series.

A sheet or a segmentation is written again when the predictions of its scan have changed. One that cannot be written
says so and costs no prediction.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymat.experiment import Experiment, Output
from raymat.learning import Data
from raymat.loading import Nodules
from raymat.measures.table import STORED, TableFile, stored_measures
from raymat.methods import MEANINGS
from raymat.network.images import stem_of
from raymat.network.targets import Target
from raymat.nodule import InputError, Nodule
from raymat.pipelines.measure import MeasureJob, measure_all
from raymat.sources import digest
from raymat.sources.series import Scan
from raymat.words import counted, file_name, utf8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = "measures.csv"
SHEETS, SEGMENTATIONS = "sheets", "segmentations"
BORDER = 0.5  # probability at which a mask ends
DRAWN = "drawn.json"  # file to the digest of the predictions that it shows


@dataclass(frozen=True)
class Beside:
    """What is written, and where.

    Attributes
    ----------
    path : of the dataset of predictions
    shown : whether sheets and segmentations are written too
    workers, address : of the measuring, see ``raymat.pipelines.measure``
    """

    path: str
    shown: bool
    workers: int = 1
    address: str | None = None


def write_beside(
    what: Beside,
    keys: Mapping[Target, str],
    scans: Mapping[str, Scan],
    output: Experiment,
    say: Callable[[str], None],
) -> None:
    """Write the files of the predictions, and log the sheets.

    Parameters
    ----------
    keys : target to the key of its prediction, of all targets
    scans : of their series
    """
    data = Data.open(what.path)
    _measure(what, data, output, say)
    if not what.shown:
        return
    drawn = output.files.read_json(DRAWN) if output.files.exists(DRAWN) else {}
    new = []
    by_scan = _by_scan(keys, data.nodules)
    called = Counter(Path(image).name for image, _ in by_scan)
    for (image, series), targets in by_scan.items():
        of = digest(*(keys[target] for target in targets))
        # Volumes of several folders may have one name.
        scan = file_name(series or (Path(image).name if called[Path(image).name] == 1 else image))
        sheet, segmentation = f"{SHEETS}/{scan}.png", f"{SEGMENTATIONS}/{scan}.seg.dcm"
        if drawn.get(sheet) != of or not output.files.exists(sheet):
            title = f"{targets[0].patient_id}, series ...{series[-8:]}" if series else Path(image).name
            output.figure(sheet, _drawn(data.nodules, targets, utf8(title)))
            drawn[sheet] = of
            new.append(sheet)
        if series and (drawn.get(segmentation) != of or not output.files.exists(segmentation)):
            ids = [target.target_id for target in targets]
            written, problems = _segment(data.nodules, ids, scans[series], image, segmentation, output)
            for problem in problems:
                say(f"not in the segmentation: {problem}")
            if written:
                drawn[segmentation] = of
                new.append(segmentation)
    for folder, what_they_are in ((SHEETS, "sheet"), (SEGMENTATIONS, "segmentation")):
        names = [name for name in new if name.startswith(folder)]
        if names:
            say(f"{counted(len(names), what_they_are)}  {output.files.path(names[0] if len(names) == 1 else folder)}")
    output.json(DRAWN, drawn)


def _by_scan(targets: Iterable[Target], nodules: Nodules) -> dict[tuple[str, str], list[Target]]:
    """Image and series to their targets that were predicted."""
    predicted = set(nodules.ids)
    found: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        if target.target_id in predicted:
            found.setdefault((target.image, target.series), []).append(target)
    return found


def _measure(what: Beside, data: Data, output: Experiment, say: Callable[[str], None]) -> None:
    table = stored_measures(output.files, data.digest)
    if table is None or not output.files.exists(MEASURES):
        stored = Output(f"{what.path.rstrip('/')}/{STORED}")
        try:
            table, _ = measure_all(MeasureJob(what.path, stored, what.workers, what.address), _quiet(say))
        except InputError as error:
            say(f"no measures: {error}")
            return
        TableFile(output.files, MEASURES).write(table)
        say(f"measures  {output.files.path(MEASURES)}")


def _quiet(say: Callable[[str], None]) -> Callable[[str], None]:
    """Say what could not be measured, and no more."""
    return lambda line: say(line) if line.startswith("failed") else None


def _drawn(nodules: Nodules, targets: list[Target], title: str) -> Figure:
    """The sheet of a scan: image, outlines of the union and overlap masks, the chosen matte of each target."""
    # matplotlib takes a second.
    from raymat.pictures.sheet import contact_sheet

    return contact_sheet((_shown(nodules[one.target_id], one) for one in targets), title, "masks")


def _shown(nodule: Nodule, target: Target) -> Nodule:
    """The nodule as the sheet has it: masks in the place of readers, mattes alone, what the detector said."""
    masks = [nodule.mattes[name] >= BORDER for name in nodule.mattes if name.endswith(("-union", "-overlap"))]
    about = [f"at {', '.join(f'{at:.0f}' for at in target.centre[::-1])} mm"]
    if target.probability is not None:
        about.append(f"probability {target.probability:.2f}")
    if target.sides:
        about.append(f"box {' x '.join(f'{side:.0f}' for side in target.sides[::-1])} mm")
    stem = target.series or stem_of(target.image)
    return replace(
        nodule,
        nodule_id=f"nodule {target.target_id.removeprefix(f'{stem}-')}",
        patient_id="",
        readers=[mask.astype(np.uint8) for mask in masks if mask.any()],
        candidates=[matte for matte in nodule.candidates if matte.kind in MEANINGS or matte.method == nodule.method],
        reason="; ".join([*about, *nodule.notes]),
    )


def _segment(
    nodules: Nodules, ids: list[str], scan: Scan, root: str, name: str, output: Experiment
) -> tuple[bool, list[str]]:
    """Write one segmentation with a segment per nodule; whether it was written, and why nodules are left out."""
    # highdicom takes half a second.
    from raymat.export.dicom_seg import write_segmentation

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.seg.dcm"
        try:
            problems = write_segmentation([nodules[one] for one in ids], scan, root, path)
        except InputError as error:
            return False, [str(error)]
        output.files.write(name, path.read_bytes())
    return True, problems
