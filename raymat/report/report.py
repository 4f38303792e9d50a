"""The report: one page with sections about the content of each folder, and its figures as PDF and PNG beside it."""

from __future__ import annotations

import io
import json
import platform
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.figure import Figure

from raymat.evidence import diagnoses, phantom_accuracy, readers_table
from raymat.evidence.files import (
    CLASSIFY_NOTE,
    COMPARISONS,
    EARLIER_MEASUREMENTS,
    EVALUATE_NOTE,
    MEASUREMENTS,
    PREDICTIONS,
    READERS,
    READERS_NOTE,
    TABLE,
    TRIALS,
)
from raymat.evidence.inputs import CHOSEN, chosen_in_words
from raymat.evidence.reader_prediction import CHOSEN_CALIBRATED
from raymat.folder import Folder
from raymat.loading import load
from raymat.matting import METHODS
from raymat.measures.table import DISTRIBUTION_HEAD, distribution_rows, stored_measures
from raymat.methods import ANY
from raymat.nodule import ACCEPTED, OUTCOMES, REJECTED, InputError
from raymat.pictures import evidence
from raymat.pictures.charts import method_histogram
from raymat.pictures.figure import pdf_bytes, png_bytes
from raymat.pictures.measures import distributions
from raymat.pictures.paper import methods_side_by_side
from raymat.report.page import Section, page
from raymat.sources import digest
from raymat.store import PARAMETERS, Store, counts
from raymat.version import __version__
from raymat.words import dotted, markdown_table

DRAWN = 6  # nodules of figure 6
SOFTWARE = ("raymat", "ray", "torch", "monai", "mlflow", "numpy", "scipy", "scikit-learn", "pyarrow", "SimpleITK")


@dataclass(frozen=True)
class Kind:
    """A kind of folder: the file that identifies it, and the function that makes its sections."""

    name: str
    mark: str
    make: Callable[[str, Folder, FigureFolder], list[Section]]


class FigureFolder:
    """Writes every figure as PNG and PDF into the folder beside the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()

    def add(self, name: str, figure: Figure) -> bytes:
        """Write the figure under a unique name; returns its PNG."""
        number, unique = 1, name
        while unique in self.names:
            number += 1
            unique = f"{name}-{number}"
        self.names.add(unique)
        png = png_bytes(figure, dpi=150)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{unique}.png").write_bytes(png)
            (self.folder / f"{unique}.pdf").write_bytes(pdf_bytes(figure))
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror or error})") from error
        return png


def write_report(runs: Sequence[str], out: Path) -> list[str]:
    """Write the page ``out`` and the figures in the folder of its name with ``-figures``.

    Parameters
    ----------
    runs : outputs of ``raymat build``, ``release``, ``readers``, ``classify`` and ``evaluate``, in any number

    Returns
    -------
    list of str
        The kind of each folder.

    Raises
    ------
    InputError
        A folder is none of these or contains no result yet, or the page cannot be written.
    """
    if not runs:
        raise InputError("name the folders for the report")
    figures = FigureFolder(out.with_name(f"{out.stem}-figures"))
    by_kind: dict[str, list[Section]] = defaultdict(list)
    named = []
    for run in runs:
        store = Folder.at(run)
        kind = next((kind for kind in KINDS if store.exists(kind.mark)), None)
        if kind is None:
            known = ", ".join(kind.name for kind in KINDS)
            raise InputError(f"{run}: contains nothing to report; a report is made of outputs of: {known}")
        by_kind[kind.name] += kind.make(run, store, figures)
        named.append(f"{run}: {kind.name}")
    sections = [section for kind in KINDS for section in by_kind[kind.name]]
    sections.append(_software(runs, out))
    lead = f"About {', '.join(named)}. raymat {__version__}."
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page("3D alpha mattes of nodules: the evidence", lead, sections), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return named


# Classification ------------------------------------------------------------------------------------------------------

CLASSIFIED = """
Each input is the only channel of the network, on the same grid around the nodule, with the same augmentation. Each
patient is in one part, the validation nodules end the training, and the test nodules are seen once. **What this can
show**: how well networks of this size, from this number of nodules, predict the readers' rating of malignancy from each
input. **What it cannot show**: a rating is an opinion of the readers who drew the masks, not a biopsy. Size alone
predicts the rating well, so every mask and matte, which shows the size, has an advantage over the image. The column of
size-matched nodules (pairs whose diameters differ by at most a fifth) shows the rest. The mattes were made from the
masks of all readers. A difference smaller than its interval is no evidence of a difference; p values are corrected for
their number.
"""


def _classification(run: str, store: Folder, figures: FigureFolder) -> list[Section]:
    note = json.loads(store.read(CLASSIFY_NOTE))
    command = "; ".join(note.get("commands", []))
    if not store.exists(TABLE):
        raise InputError(f"{run}: no trial has finished yet; run `{command or 'raymat classify'}` first")
    tables = {name: pd.read_csv(_text_stream(store, name)) for name in (TABLE, TRIALS, COMPARISONS)}
    size = tables[TABLE][tables[TABLE]["network"] == diagnoses.SIZE]
    table = tables[TABLE][tables[TABLE]["network"] != diagnoses.SIZE].reset_index(drop=True)
    predictions = store.read_table(PREDICTIONS).to_pandas()
    if "calibrated" not in predictions:
        raise InputError(f"{run}: written by an earlier version; run `{command}` again, which repeats no training")
    nodules = predictions.drop_duplicates("nodule_id")
    section = Section("Benign or malignant, by input")
    section.text(
        f"{len(tables[TRIALS])} trials, {len(nodules)} test nodules of {nodules['patient_id'].nunique()} patients, "
        f"{int(nodules['label'].sum())} of them rated malignant. Seeds "
        f"{', '.join(map(str, sorted(predictions['seed'].unique())))}; repeated splits "
        f"{', '.join(map(str, sorted(predictions['split'].unique())))}; {note['seconds'] / 60:.0f} minutes of "
        "training, summed over the trials."
    )
    section.figure(
        figures.add("figure5", evidence.diagnoses_by_input(table, tables[TRIALS], size)),
        "Figure 5. AUROC on the test nodules by input. Bars: mean over the trials, whiskers their standard deviation, "
        "dots the trials; the axis does not begin at 0. Dashed: logistic regression on volume and diameter.",
        command,
    )
    section.text(CLASSIFIED)
    section.heading("By kind of input")
    section.text(diagnoses.kinds_as_markdown(diagnoses.kinds(predictions)))
    section.text(
        f"Each kind is the mean of its inputs; {chosen_in_words(note.get('kind', ANY))}. The difference to the masks "
        "is taken in the same resamples of patients."
    )
    section.heading("Every input")
    section.text(diagnoses.as_markdown(table, size))
    section.text("Intervals are 95 %, patients resampled; the spread is the standard deviation over trials.")
    if (tables[COMPARISONS]["first"] == CHOSEN).any():
        section.heading("The chosen matte against the other inputs")
        section.text(diagnoses.comparisons_as_markdown(tables[COMPARISONS]))
        section.text(
            "DeLong's test on the trials' averaged scores of the same test nodules; Holm's correction over this table."
        )
    section.figure(
        figures.add("calibration", evidence.calibration_of_inputs(diagnoses.mean_probabilities(predictions))),
        "Calibration of the mean probability over trials; each trial is calibrated on its validation nodules.",
        command,
    )
    section.folded("Every trial", _frame(tables[TRIALS]))
    section.folded("Recipe", _values(note["recipe"]))
    return [section]


# Left-out readers ----------------------------------------------------------------------------------------------------

READERS_WORDS = """
Trimap and mattes are made from three readers of a nodule and compared with the fourth; each reader is the fourth in
turn. Inside the unknown region, where the three disagree or near their border, the matte is read as the probability
that the fourth reader marked the voxel. `mean of three` and `distance of three` know the masks and not the image: the
share of the three masks that contain the voxel, and a ramp of the mean distance to their borders. `& mean` and `&
distance` are averages of a matte with these; nothing is fitted. `chosen` is the matte with the best quality score,
which has seen the same three readers.
"""
# Earlier versions took the best matte of either kind.
CHOSEN_OF_A_KIND = """
A mask says what is lesion, whatever its density. `chosen` is therefore the best matte of the kind membership, and
`chosen, calibrated` the best of the other kind, which has lower values where the lesion is less dense.
"""


def _readers(run: str, store: Folder, figures: FigureFolder) -> list[Section]:
    note = json.loads(store.read(READERS_NOTE))
    name = MEASUREMENTS if store.exists(MEASUREMENTS) else EARLIER_MEASUREMENTS
    if not store.exists(name):
        raise InputError(f"{run}: contains no measurement yet; run `{note.get('command', 'raymat readers')}` first")
    rows = store.read_table(name).to_pandas()
    table = pd.read_csv(_text_stream(store, f"{READERS}.csv"))
    section = Section("The left-out reader")
    section.text(f"{readers_table.counts_in_words(rows)}. Intervals are 95 %, patients resampled.")
    section.figure(
        figures.add("readers", evidence.reader_predictions(table, rows)),
        "How well three readers' masks, their mattes, and both combined predict the fourth reader's mask.",
        note["command"],
    )
    section.text(READERS_WORDS)
    if (table["method"] == CHOSEN_CALIBRATED).any():
        section.text(CHOSEN_OF_A_KIND)
    section.text(readers_table.as_markdown(table))
    section.folded("Against the mean of the three masks, on the same splits", readers_table.gains_as_markdown(table))
    section.folded(
        "Parameters", _values({name: note[name] for name in ("source", "nodules", "outcomes", "parameters")})
    )
    return [section]


# Datasets ------------------------------------------------------------------------------------------------------------


def _dataset(run: str, folder: Folder, figures: FigureFolder) -> list[Section]:
    store = Store(folder.filesystem, folder.root)
    rows = store.outcomes(["nodule_id", "patient_id", "outcome", "method", "reason", "solves", "key"])
    of = counts(rows["outcome"])
    chosen = counts(rows.filter(pc.equal(rows["outcome"], ACCEPTED))["method"])
    section = Section(f"Dataset {Path(run).name}: outcomes and quality")
    how = json.loads(store.read(PARAMETERS)) if store.exists(PARAMETERS) else {}
    section.text(
        f"{rows.num_rows} nodules of {len(rows['patient_id'].unique())} patients from {how.get('source', 'unknown')}."
    )
    section.text(markdown_table(("outcome", "nodules"), [(name, of[name]) for name in OUTCOMES]))
    if chosen:
        section.figure(
            figures.add("chosen-methods", method_histogram(chosen)),
            "How often quality control chose each method.",
            f"raymat report {shlex.quote(run)} -o report.html",
        )
    section.heading("Solves and scores by method")
    section.text(_solves(rows, chosen))
    reasons = rows.filter(pc.not_equal(rows["outcome"], ACCEPTED))
    if reasons.num_rows:
        some = [(row["nodule_id"], row["outcome"], row["reason"] or "") for row in reasons.slice(0, 200).to_pylist()]
        listed = markdown_table(("nodule", "outcome", "reason"), some)
        section.folded(f"The {reasons.num_rows} that were not accepted (200 at most are listed)", listed)
    if how:
        section.folded("Parameters", _values(how))
    return [section, *_measures(run, store, rows, figures), *_mattes(run, figures)]


def _measures(run: str, store: Store, rows, figures: FigureFolder) -> list[Section]:
    """What `raymat measure` stored in the dataset, where that is of the nodules that are accepted now."""
    keys = rows.filter(pc.equal(rows["outcome"], ACCEPTED))["key"].to_pylist()
    table = stored_measures(store, digest(*sorted(keys)))
    if table is None:
        return []
    section = Section(f"Measures of {Path(run).name}")
    section.figure(
        figures.add("measures", distributions(table)),
        "Volume, diameter, mass, solid share, sphericity and width of the border, by nodule.",
        f"raymat measure {shlex.quote(run)}",
    )
    section.text(markdown_table(DISTRIBUTION_HEAD, distribution_rows(table)))
    estimate, low, high = (table[f"volume_{name}_mm3"].drop_null().to_numpy() for name in ("estimate", "low", "high"))
    if len(estimate):
        width = 100 * float(np.median((high - low) / estimate))
        section.text(f"The 90 % interval of the volume is {width:.0f} % of the estimate wide in the median.")
    return [section]


def _solves(rows, chosen) -> str:
    by_method = defaultdict(list)
    for solves in rows["solves"].to_pylist():
        for solve in solves or []:
            by_method[solve["method"]].append(solve)
    head = ["method", "solves", "seconds, median", "not converged", "score: median (10th to 90th percentile)", "chosen"]
    lines = []
    for method in METHODS:
        solves = by_method.get(method)
        if solves:
            low, middle, high = np.nanpercentile([solve["score"] for solve in solves], (10, 50, 90))
            seconds, stopped = np.median([s["seconds"] for s in solves]), sum(not s["converged"] for s in solves)
            score = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            lines.append((method, len(solves), f"{seconds:.2f}", stopped, score, chosen[method]))
    return markdown_table(head, lines)


def _mattes(run: str, figures: FigureFolder) -> list[Section]:
    """Figure 6, and where the true alphas are known how far each method is from it."""
    nodules = load(run, outcomes=(ACCEPTED, REJECTED))
    if not len(nodules):
        return []
    sections, drawn = [], []
    spread = range(0, len(nodules), max(1, len(nodules) // DRAWN))
    for place in list(spread)[:DRAWN]:
        nodule = nodules[place]
        if set(METHODS) <= set(nodule.mattes):
            drawn.append(nodule)
    if drawn:
        section = Section(f"Mattes of {Path(run).name}")
        names = " ".join(shlex.quote(nodule.nodule_id) for nodule in drawn)
        section.figure(
            figures.add("figure6", methods_side_by_side(drawn)),
            f"Figure 6. {len(drawn)} nodules, evenly spread over the dataset: image, the readers' mean mask, the "
            "mattes of all methods; axial, redder is more lesion.",
            f"raymat figure {shlex.quote(run)} {names} --of methods -o figure6.png",
        )
        sections.append(section)
    if nodules[0].true_alpha is not None:
        section = Section(f"Accuracy on phantoms, {Path(run).name}")
        section.text(phantom_accuracy.tables(nodules))
        section.text("Both alphas of a phantom are known: CT drawn from real readers' contours.")
        sections.append(section)
    return sections


def _release(run: str, store: Folder, figures: FigureFolder) -> list[Section]:
    section = Section(f"Datasheet of release {Path(run).name}")
    for name, caption in (("contact_sheet.png", "Nodules of the release"), ("histograms.png", "Sizes and ratings")):
        if store.exists(name):
            section.figure(store.read(name), caption, f"raymat release ... -o {shlex.quote(run)}")
    text = store.read("datasheet.md").decode()
    lines = [line for line in text.splitlines() if not line.startswith(("# ", "!["))]
    section.text("\n".join(line.replace("## ", "### ", 1) if line.startswith("## ") else line for line in lines))
    return [section]


def _evaluation(run: str, store: Folder, figures: FigureFolder) -> list[Section]:
    section = Section("Table 1: errors on the test nodules")
    text = store.read("table.md").decode()
    section.text("\n".join(line for line in text.splitlines() if not line.startswith("# ")))
    note = json.loads(store.read(EVALUATE_NOTE)) if store.exists(EVALUATE_NOTE) else {}
    kind = note.get("kind", ANY)
    for name, caption in EVALUATION_CAPTIONS.items():
        if store.exists(name):
            caption = caption.format(of_kind="" if kind == ANY else f" ({kind})")
            section.figure(store.read(name), caption, note.get("command", f"raymat evaluate ... -o {shlex.quote(run)}"))
    return [section]


def _software(runs: Sequence[str], out: Path) -> Section:
    section = Section("Software and how to make this page")
    command = shlex.join(["raymat", "report", *runs, "-o", str(out)])
    section.text(f"```\n{command}\n```")
    versions = [("Python", platform.python_version()), *((name, _version(name)) for name in SOFTWARE)]
    section.text(markdown_table(("package", "version"), versions))
    section.text(f"The figures are in `{out.stem}-figures/` as PNG and PDF too.")
    return section


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _text_stream(store: Folder, name: str) -> io.BytesIO:
    return io.BytesIO(store.read(name))


def _frame(rows: pd.DataFrame) -> str:
    """A table of numbers as Markdown."""
    lines = [
        [f"{value:.3f}" if isinstance(value, float) else value for value in values]
        for values in rows.itertuples(index=False)
    ]
    return markdown_table(list(rows.columns), lines)


def _values(values: dict) -> str:
    """Nested parameters as a table of dotted names."""
    return markdown_table(("parameter", "value"), dotted(values).items())


OVER_SPLITS = "mean and standard deviation over the repeated splits. Blue: fully automatic."
EVALUATION_CAPTIONS = {
    "errors-chosen-matte.png": f"Errors against the chosen matte{{of_kind}}: {OVER_SPLITS}",
    "errors-true-alpha.png": f"Errors against the true alpha{{of_kind}}: {OVER_SPLITS}",
    "predictions.png": "Figure 7. Test nodules: ground truth and the network's prediction from the image alone.",
    "reliability.png": "Reliability of the masks' probabilities.",
}
# In the order of the page. Measurements of readers lie in a dataset's folder: they are known first.
KINDS = (
    Kind("classification", CLASSIFY_NOTE, _classification),
    Kind("left-out readers", READERS_NOTE, _readers),
    Kind("evaluation", "errors.csv", _evaluation),
    Kind("release", "release.json", _release),
    Kind("dataset", "dataset.json", _dataset),
)
