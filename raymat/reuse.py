"""What a build keeps of what is committed: whole nodules, their mattes, or their prepared arrays.

A nodule's key begins with a digest of all that its prepared arrays depend on, and each of its mattes has a key of its
own (``raymat.steps.BuildParameters``). So a committed nodule of another key is still of use where that beginning is the
same: its arrays are, and every matte whose key is. What a dataset of format 1 holds is known by the keys of that time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.compute as pc

from raymat import format_1
from raymat.methods import PRECONDITIONERS, SOLVERS, solver_of
from raymat.nodule import ACCEPTED, FAILED, REJECTED, InputError, Nodule
from raymat.places import Unreachable
from raymat.prepare import PREPARE_VERSION
from raymat.sources import NoduleRef, digest
from raymat.steps import MATTES_DIGITS, PREPARED_DIGITS, BuildParameters
from raymat.store import Store


def kept(committed: Nodule, ref: NoduleRef, parameters: BuildParameters) -> Nodule:
    """A committed nodule as the beginning of what is asked for: prepared, with those mattes that are still valid.

    Raises
    ------
    InputError
        It was prepared from another input or in another way, or it was not kept whole.
    """
    key, key_1 = parameters.key(ref), ""
    methods = tuple(matte.method for matte in committed.candidates)
    if committed.image is None or committed.trimap is None:
        raise InputError(f"{ref.nodule_id}: was not kept whole")
    if committed.key[:PREPARED_DIGITS] != key[:PREPARED_DIGITS]:
        key_1 = solve_key_1(ref, texts_1(parameters, methods))
        if committed.key[: format_1.SOLVE_KEY_LENGTH] != key_1:
            raise InputError(f"{ref.nodule_id}: was prepared from another input or in another way")
    mattes = {matte.method: matte for matte in committed.candidates}
    candidates = []
    for method in parameters.matting.methods:
        wanted, matte = parameters.matte_key(key, method), mattes.get(method)
        if matte and (solved_as_now(method, parameters) if key_1 else matte.key == wanted):
            unscored = replace(matte, key=wanted, key_1=matte.key_1 or key_1, scores={}, score=float("nan"))
            candidates.append(unscored)
    undecided = replace(committed, key=key, kind=parameters.kind, outcome=None, stage=None, reason=None, method=None)
    return replace(undecided, candidates=candidates)


def texts_1(parameters: BuildParameters, methods: tuple[str, ...]) -> tuple[object, ...]:
    """What the keys of format 1 were made of that is no nodule's own, for these methods in this order."""
    new = ("prior", "preconditioner", "epsilon")  # which format 1 does not know
    matting = {name: value for name, value in asdict(parameters.matting).items() if name not in new}
    matting |= {"methods": methods}
    steps = (repr(sorted(step.items())) for step in (parameters.prepare.to_dict(), matting))
    return parameters.min_readers, *steps, PREPARE_VERSION, format_1.SOLVED_BY


def solve_key_1(ref: NoduleRef, texts: tuple[object, ...]) -> str:
    """The first part of a nodule's key in a dataset of format 1; ``texts`` of ``texts_1``."""
    return digest(ref.nodule_id, ref.fingerprint, ref.problem, *texts)[: format_1.SOLVE_KEY_LENGTH]


def solved_as_now(method: str, parameters: BuildParameters) -> bool:
    """Whether a method's mattes of format 1, which knows no prior, are those that are asked for."""
    solver = solver_of(method)
    same = solver in SOLVERS and SOLVERS[solver].identity == format_1.SOLVERS.get(solver)
    matting = parameters.matting
    return same and not matting.prior and matting.preconditioner == PRECONDITIONERS[0] and matting.epsilon is None


class Committed:
    """What is committed in a dataset, in the eyes of one build.

    Attributes
    ----------
    standing : the keys that are not to be done again
    tried : all keys
    nodule_ids : of all committed nodules
    """

    def __init__(self, store: Store, parameters: BuildParameters, retry_failed: bool) -> None:
        self.store, self.parameters = store, parameters
        index = store.index(["nodule_id", "key", "outcome", "shard", "shape"])
        self.nodule_ids = index["nodule_id"].combine_chunks()
        self.tried = index["key"].combine_chunks()
        failed = pc.equal(index["outcome"], FAILED)
        self.standing = self.tried.filter(pc.invert(failed)) if retry_failed else self.tried
        whole = pc.and_(pc.is_in(index["outcome"], pa.array([ACCEPTED, REJECTED])), pc.is_valid(index["shape"]))
        self._whole = index.filter(whole).select(["key", "shard"]).combine_chunks()
        self._beginnings = pc.utf8_slice_codeunits(self._whole["key"], 0, PREPARED_DIGITS).combine_chunks()
        lists = sorted(self._method_lists()) if self._any_of_format_1() else []
        self._texts_1 = {methods: texts_1(parameters, methods) for methods in lists}
        self._lacking: dict[str, int] = {}

    def _method_lists(self) -> set[tuple[str, ...]]:
        """In which orders methods may have been asked for in format 1: nodules without mattes do not show it."""
        return {*self.store.method_lists(), self.parameters.matting.methods, format_1.METHODS}

    def _any_of_format_1(self) -> bool:
        return bool(pc.any(pc.equal(pc.utf8_length(self.tried), format_1.KEY_LENGTH)).as_py())

    def shards(self, todo: pa.Table) -> tuple[pa.Array, list[int]]:
        """Where each row of the manifest has a committed nodule of use, and how many mattes those lack.

        Returns
        -------
        shards : a name per row; null where there is none
        lacking : a number per row that has one, in no particular order
        """
        beginnings = pc.utf8_slice_codeunits(todo["key"], 0, PREPARED_DIGITS).combine_chunks()
        place = pc.index_in(beginnings, self._beginnings)
        lacking = [self._lacks(number) for number in place.drop_null().to_pylist()]
        for methods, texts in self._texts_1.items():
            keys = pa.array([solve_key_1(ref, texts) for ref in refs_of(todo)], pa.string())
            found = pc.index_in(keys, self._beginnings)
            valid = sum(m in self.parameters.mattes and solved_as_now(m, self.parameters) for m in methods)
            new = pc.and_(pc.is_null(place), pc.is_valid(found))
            lacking += [len(self.parameters.mattes) - valid] * (pc.sum(new).as_py() or 0)
            place = pc.coalesce(place, found)
        return self._whole["shard"].combine_chunks().take(place), lacking

    def _lacks(self, number: int) -> int:
        """How many of the mattes asked for a committed nodule does not have; looked up once for all that are alike."""
        row = self._whole.slice(number, 1).to_pylist()[0]
        alike = row["key"][PREPARED_DIGITS : PREPARED_DIGITS + MATTES_DIGITS]
        if alike not in self._lacking:
            wanted = set(self.parameters.mattes.values())
            try:
                rows = self.store.outcomes_of_shard(row["shard"]).to_pylist()
            except Unreachable:
                raise
            except (InputError, FileNotFoundError):
                return len(wanted)  # a damaged file, which says nothing of those that are alike
            solves = [solve for other in rows if other["key"] == row["key"] for solve in other["solves"]]
            self._lacking[alike] = len(wanted - {(solve["key"] or "")[PREPARED_DIGITS:] for solve in solves})
        return self._lacking[alike]


def refs_of(rows: pa.Table) -> Iterable[NoduleRef]:
    """The references of rows of a manifest."""
    names = [name for name in rows.column_names if name in NoduleRef.__dataclass_fields__]
    return (NoduleRef(**row) for row in rows.select(names).to_pylist())
