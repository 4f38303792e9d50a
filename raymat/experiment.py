"""The shape of every command that writes: an output with a lock, a note, and a run in MLflow. No Ray in here.

OUT/build.lock  held while the command works
OUT/NOTE        what the output was made from, and the id of its run: the same command resumes it, another is refused

Texts, tables and figures are written to the output first and logged second, so that a tracking server that goes away
costs none of them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raymat.folder import Folder
from raymat.lock import NAME as LOCK
from raymat.lock import held
from raymat.nodule import InputError
from raymat.tracking import BUILDS, EVIDENCE, TRAININGS, Run, how_to_look
from raymat.version import __version__
from raymat.words import dotted

RUN = "run.json"
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """What a command makes.

    Attributes
    ----------
    verb, noun : "train" begins the run's name, "training" is what messages call the output
    runs : the MLflow experiment of its runs
    note : the file of its note
    refuses : whether an output that was made from other parameters is refused
    adds : whether a later command adds to a finished output, in the same run; else each finished command has its own
    """

    verb: str
    noun: str
    runs: str
    note: str
    refuses: bool = False
    adds: bool = False


BUILD = Kind("build", "dataset", BUILDS, "run.json")
PREDICT = Kind("predict", "dataset of predictions", TRAININGS, "run.json")
READERS = Kind("readers", "measurement of readers", EVIDENCE, "readers.json", adds=True)
TRAIN = Kind("train", "training", TRAININGS, "training.json", refuses=True, adds=True)
TUNE = Kind("tune", "sweep", TRAININGS, "sweep.json", refuses=True, adds=True)
EVALUATE = Kind("evaluate", "evaluation", TRAININGS, "evaluate.json")
BENCHMARK = Kind("benchmark", "benchmark", EVIDENCE, "benchmark.json")
CLASSIFY = Kind("classify", "sweep", EVIDENCE, "classify.json", refuses=True, adds=True)


@dataclass(frozen=True)
class Output:
    """Where a command writes, and where it logs.

    Attributes
    ----------
    path : folder or URI
    tracking_uri : the MLflow store; None for no run
    command : as it was typed, for the record
    """

    path: str
    tracking_uri: str | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What an output is made from.

    Attributes
    ----------
    parameters : logged with the run, nested ones under dotted names
    identity : what must not change from one command on an output to the next, stored in its note
    """

    parameters: Mapping[str, object]
    identity: Mapping[str, object] = field(default_factory=dict)


class Experiment:
    """A command at work in its output, which it holds the lock of.

    Attributes
    ----------
    kind : what it makes
    output : where
    files : the output's
    run : its run in MLflow, which does nothing where none was asked for
    note : what is stored in the note's file
    status : how the run ends where nothing is raised
    """

    def __init__(self, kind: Kind, output: Output, facts: Facts, files: Folder) -> None:
        self.kind, self.output, self.files, self.status = kind, output, files, FINISHED
        self.children: dict[str, Run] = {}
        self.description, self.figures = "", list[str]()
        earlier = self._earlier_note()
        self.is_new = not earlier
        identity = json.loads(json.dumps(facts.identity))
        # An earlier version noted fewer facts: what it did not note cannot be compared.
        changed = next((name for name, value in identity.items() if earlier.get(name, value) != value), None)
        if kind.refuses and earlier and changed:
            raise InputError(
                f"{output.path}: holds a {kind.noun} with another {changed.replace('_', ' ')}; name a new -o, or "
                "repeat the command that began it"
            )
        resumed = kind.adds or not changed
        run = earlier.get("run")
        self.run = Run(
            output.tracking_uri,
            f"{kind.verb} {output.path}",
            dotted(facts.parameters),
            kind.runs,
            continues=run if resumed else None,
            replaces=None if resumed else run,
        )
        self.note: dict[str, Any] = {**(earlier if resumed else {}), **identity}
        self.write_note(**({"run": self.run.id} if self.run.id else {}))

    def _earlier_note(self) -> dict[str, Any]:
        if not self.files.exists(self.kind.note):
            return {}
        return self.files.read_json(self.kind.note)

    def write_note(self, **facts: object) -> None:
        """Add facts to the note."""
        self.note |= facts
        self.json(self.kind.note, self.note)

    def describe(self, text: str) -> None:
        """Say on the run's page what the work is (one sentence), where it is, and which command resumes it."""
        command = shlex.join(self.output.command) if self.output.command else f"raymat {self.kind.verb} ..."
        self.description = (
            f"{text} In `{self.output.path}`, by raymat {__version__}; the same command resumes it:\n\n    {command}"
        )
        self.run.describe(self.description)

    def conclude(self, text: str) -> None:
        """Say on the run's page what came out, before all else, and show the figures that were logged."""
        figures = "\n\n".join(self.run.show(name) for name in self.figures)
        self.run.describe(f"{text}\n\n{self.description}\n\n{figures}")

    def input(self, dataset: str, digest: str, kind: str = "") -> None:
        """Log the input: its path or name, its digest, and the kind of alpha that is used of it."""
        self.run.dataset(dataset, dataset, digest, kind)

    # Written to the output, then logged -------------------------------------------------------------------------------

    def json(self, name: str, value: object) -> None:
        """Write a value as JSON; it is not logged."""
        self.files.write_json(name, value)

    def text(self, name: str, text: str) -> None:
        """Write and log a text."""
        self.files.write(name, text.encode())
        self.run.text(name, text)

    def table(self, name: str, rows: pa.Table) -> None:
        """Write and log a table as CSV."""
        self.text(name, as_csv(rows))

    def figure(self, name: str, figure, pdf: bool = False) -> None:
        """Write and log a matplotlib figure as PNG; with ``pdf`` the output has it as PDF too."""
        # Imported here: matplotlib takes a second and 25 MiB, and only commands that draw need it.
        from raymat.pictures.figure import pdf_bytes, png_bytes

        self.files.write(name, png_bytes(figure))
        if pdf:
            self.files.write(f"{name.removesuffix('.png')}.pdf", pdf_bytes(figure))
        self.run.figure(name, figure)
        self.figures.append(name)

    # Parts of the work that have runs of their own --------------------------------------------------------------------

    def child(self, folder: str, name: str, parameters: Mapping[str, object]) -> Run:
        """The run of a part of the work, below the command's own: a new one, or that of an interrupted command.

        It ends with ``end_child``; else as the command does, or as KILLED where the command ends without it.
        """
        if folder not in self.children:
            run = self.run.child(name, dotted(parameters), self._run_of(folder))
            if run.id:
                self.json(f"{folder}/{RUN}", {"run": run.id})
            self.children[folder] = run
        return self.children[folder]

    def end_child(self, folder: str) -> None:
        """A part of the work is finished."""
        self.children.pop(folder).end()

    def end_if_open(self, folder: str) -> None:
        """End the run of a part whose result was stored by a command that was killed before it ended the run."""
        identifier = self._run_of(folder) if self.run.uri else None
        if identifier:
            self.run.end_if_open(identifier)

    def _run_of(self, folder: str) -> str | None:
        note = f"{folder}/{RUN}"
        return str(self.files.read_json(note)["run"]) if self.files.exists(note) else None

    def forget(self) -> None:
        """Delete the note of a command that failed before it left anything, so that it binds no later one."""
        if self.is_new and self.files.listing("") in ([self.kind.note], sorted([LOCK, self.kind.note])):
            self.files.delete(self.kind.note)

    def end(self, status: str) -> None:
        """End the run and those of its parts."""
        for run in self.children.values():
            run.end(KILLED if status == FINISHED else status)
        self.run.end(status)


@contextlib.contextmanager
def experiment(
    kind: Kind, output: Output, facts: Facts, say: Say = print, files: Folder | None = None
) -> Iterator[Experiment]:
    """A command holds its output's lock and has a run, which ends in any case.

    Parameters
    ----------
    kind : what the command makes
    output : where
    facts : what it is made from
    say : called with the line that says where the run is to be seen
    files : the output's, where they are open already

    Raises
    ------
    InputError
        Another command is at work in the output, the output holds something made from other parameters, or the MLflow
        store cannot be used; nothing has been done by then.
    """
    files = files or Folder.at(output.path)
    with held(files):
        work = Experiment(kind, output, facts, files)
        try:
            yield work
        except KeyboardInterrupt:
            work.end(KILLED)
            raise
        except BaseException as error:
            work.end(FAILED)
            if isinstance(error, InputError) and kind.refuses:
                work.forget()
            raise
        work.end(work.status)
        if not kind.adds:
            for name in ("run", *facts.identity):
                work.note.pop(name, None)
            if work.note:
                work.write_note()
            else:
                files.delete(kind.note)
        if work.run.uri:
            say(f"MLflow  {how_to_look(work.run.uri, work.run.page)}")


def as_csv(rows: pa.Table) -> str:
    """A table as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows.column_names)
    for batch in rows.to_batches(max_chunksize=1_000):
        lines = zip(*batch.to_pydict().values(), strict=True)
        writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return out.getvalue()
