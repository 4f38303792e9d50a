"""Reviewers' decisions in the dataset, one small file each, and what they come to for a nodule.

    OUT/review/<time>-<id>.json    one decision: who, on which nodule, what

A decision is never changed: a later one of the same reviewer takes its place, and taking one back is a decision, too.
So several reviewers, and several servers, write beside each other without a lock, and a server that is killed has lost
nothing that it had confirmed.

A decision names the mattes that it was made on by the digests of their bytes. A choice stands as long as the chosen
matte has the same bytes, whatever becomes of the others. A rejection says that none of the mattes shown will do; it
stands as long as one of them is left as it was, since then image, readers and trimap are the same, too, and nobody's
"no" turns into a release by itself. Mattes that came later, or that changed, do not undo it: the nodule stays out until
a reviewer looks again.

A dataset is of a kind of alpha (``raymat.methods.ALPHA_KINDS``), and only mattes of that kind can be chosen in it.
Where it is built again with another kind, the choice of a matte that is not of that kind no longer fits; a rejection
stands.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from raymat import format_1
from raymat.methods import ALPHA_KINDS, ANY, kind_of
from raymat.nodule import ACCEPTED, REJECTED, InputError
from raymat.store import Store

FOLDER = "review"
CHOOSE, REJECT, WITHDRAW = ACTIONS = ("choose", "reject", "withdraw")
READ_AT_ONCE = 16  # of an object store, whose answer is waited for
LONGEST_NAME = 80

RULE = (
    "A reviewer's decision stands over the score. Of several reviewers the majority decides between a matte and "
    "rejection, then, among those who accept, the matte most of them chose (of equals, the one of the higher score). "
    "Where as many reject as accept the nodule is left out. Nodules without a decision follow their score: the best "
    "matte of the dataset's kind where it reaches the floor, else rejected."
)


@dataclass(frozen=True)
class Decision:
    """What one reviewer said of one nodule.

    Attributes
    ----------
    decision_id : made by who decides, so that the same decision sent twice is one
    nodule_id : str
    mattes : which mattes were looked at (``mattes_of``)
    reviewer : name
    action : "choose", "reject", or "withdraw", which takes back what the reviewer said before
    method : the chosen matte's, with "choose"
    at : time of the decision, ns since 1970
    kind : of the dataset when the decision was made, one of ``raymat.methods.ALPHA_KINDS``: which mattes could be
        chosen. Decisions of earlier versions have none and count for any kind.
    """

    decision_id: str
    nodule_id: str
    mattes: str
    reviewer: str
    action: str
    method: str | None
    at: int
    kind: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-zA-Z-]{8,64}", self.decision_id):
            raise InputError(f"a decision's id has 8 to 64 letters and digits, not {self.decision_id!r}")
        if not self.reviewer.strip() or len(self.reviewer) > LONGEST_NAME or not self.reviewer.isprintable():
            raise InputError(f"a reviewer needs a name of up to {LONGEST_NAME} printable letters")
        if self.action not in ACTIONS:
            raise InputError(f"unknown action {self.action!r}; there are {', '.join(ACTIONS)}")
        if (self.action == CHOOSE) != (self.method is not None):
            raise InputError("a decision names a method if, and only if, it chooses one")
        if self.kind not in (None, *ALPHA_KINDS):
            raise InputError(f"unknown kind of alpha {self.kind!r}; there are {', '.join(ALPHA_KINDS)}")

    @property
    def label(self) -> str:
        """What was decided, in one word: a method, or "reject"."""
        return self.method or self.action


def mattes_of(row: Mapping) -> str:
    """What a decision keeps of the mattes it is made on: "method:digest" of each, by space.

    Of a nodule committed in format 1, which has no digests, it is the first part of the nodule's key.

    Parameters
    ----------
    row : the nodule's row of ``raymat.store.OUTCOME``
    """
    if not all(solve["digest"] for solve in row["solves"]):
        return str(row["key"][: format_1.SOLVE_KEY_LENGTH])
    return " ".join(f"{solve['method']}:{solve['digest']}" for solve in row["solves"])


def kind_here(row: Mapping) -> str:
    """The kind of alpha of the nodule's dataset; "any" where it was committed before datasets were of a kind."""
    return row["kind"] or ANY


def choosable(row: Mapping) -> list[Mapping]:
    """The solves of a nodule whose mattes can be chosen: those of the dataset's kind."""
    kind = kind_here(row)
    return [solve for solve in row["solves"] if kind in (solve["kind"] or kind_of(solve["method"]), ANY)]


def unchanged(decision: Decision, row: Mapping) -> set[str]:
    """The methods whose mattes have the same bytes as when the decision was made."""
    if ":" in decision.mattes:
        shown = set(decision.mattes.split(" "))
        return {solve["method"] for solve in row["solves"] if f"{solve['method']}:{solve['digest']}" in shown}
    same_key = row["key"][: format_1.SOLVE_KEY_LENGTH] == decision.mattes
    return {solve["method"] for solve in row["solves"] if same_key or solve["key_1"] == decision.mattes}


class Decisions:
    """All decisions of a dataset, in the order they were made; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._names: set[str] = set()
        self._by_name: dict[str, Decision] = {}
        self._ids: set[str] = set()
        self._latest = 0
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Read what others have written since.

        Raises
        ------
        InputError
            A decision cannot be read.
        """
        names = self.store.listing(FOLDER, ".json")
        with self._lock:
            unknown = [name for name in names if name not in self._names]
            with ThreadPoolExecutor(READ_AT_ONCE) as pool:
                for name, decision in zip(unknown, pool.map(self._read, unknown), strict=True):
                    self._keep(name, decision)

    def record(self, decision: Decision) -> None:
        """Write a decision; when this returns it is on the disk or in the object store. The same one again is no error.

        Raises
        ------
        InputError
            It cannot be written (disk full, no permission); it is then not recorded.
        """
        with self._lock:
            if decision.decision_id in self._ids:
                return
            name = f"{FOLDER}/{decision.at:020d}-{decision.decision_id}.json"
            self.store.write(name, json.dumps(asdict(decision), ensure_ascii=False).encode())
            self._keep(name, decision)

    def now(self) -> int:
        """A time for a new decision, later than all before it."""
        with self._lock:
            return max(time.time_ns(), self._latest + 1)

    def all(self) -> list[Decision]:
        """Every decision, taken back or not, in the order they were made."""
        with self._lock:
            return [self._by_name[name] for name in sorted(self._by_name)]

    def current(self) -> dict[str, dict[str, Decision]]:
        """Nodule id to reviewer to the decision that stands."""
        return standing(self.all())

    def _keep(self, name: str, decision: Decision) -> None:
        # The same decision may stand twice, where two servers were asked to write it: the first counts.
        self._names.add(name)
        if decision.decision_id not in self._ids:
            self._by_name[name] = decision
            self._ids.add(decision.decision_id)
            self._latest = max(self._latest, decision.at)

    def _read(self, name: str) -> Decision:
        try:
            return Decision(**json.loads(self.store.read(name)))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.store.path(name)}: this decision cannot be read ({error}); restore it or remove the file"
            ) from error


def standing(decisions: Iterable[Decision]) -> dict[str, dict[str, Decision]]:
    """Nodule id to reviewer to the decision that stands, of decisions in the order they were made."""
    latest: dict[str, dict[str, Decision]] = defaultdict(dict)
    for decision in decisions:
        if decision.action == WITHDRAW:
            latest[decision.nodule_id].pop(decision.reviewer, None)
        else:
            latest[decision.nodule_id][decision.reviewer] = decision
    return {nodule_id: by_reviewer for nodule_id, by_reviewer in latest.items() if by_reviewer}


@dataclass(frozen=True)
class Verdict:
    """What becomes of a nodule.

    Attributes
    ----------
    outcome : that of the build, or what the reviewers made of it
    method : the matte to use; None where the nodule is left out
    by : "reviewers", "score", or "build" for nodules that never had a matte
    reviewers : who decided, sorted
    reason : why it is left out; None where accepted
    """

    outcome: str
    method: str | None
    by: str
    reviewers: tuple[str, ...] = ()
    reason: str | None = None


def verdict(row: Mapping, decisions: Mapping[str, Decision]) -> Verdict:
    """What ``RULE`` makes of a nodule that has mattes.

    Parameters
    ----------
    row : the nodule's row of ``raymat.store.OUTCOME``
    decisions : reviewer to the decision that stands
    """
    if not decisions:
        by = "score" if row["outcome"] in (ACCEPTED, REJECTED) else "build"
        return Verdict(row["outcome"], row["method"], by, (), row["reason"])
    reviewers = tuple(sorted(decisions))
    chosen = Counter(decision.method for decision in decisions.values() if decision.method is not None)
    accept = chosen.total()
    reject = len(decisions) - accept
    said = ", ".join(f"{name}: {decisions[name].label}" for name in reviewers)
    if reject >= accept:
        words = f"rejected by {', '.join(reviewers)}" if not accept else f"reviewers disagree ({said})"
        return Verdict(REJECTED, None, "reviewers", reviewers, words)
    scores = {solve["method"]: solve["score"] for solve in row["solves"]}
    method = max(sorted(chosen), key=lambda name: (chosen[name], scores[name]))
    return Verdict(ACCEPTED, method, "reviewers", reviewers)


def no_longer(decision: Decision, rows: Mapping[str, Mapping]) -> str | None:
    """Why a decision does not fit the dataset; None where it does."""
    row = rows.get(decision.nodule_id)
    if row is None:
        return "the dataset has no such nodule any more"
    methods = [solve["method"] for solve in row["solves"]]
    if not methods:
        return f"the nodule has no mattes any more ({row['outcome']}: {row['reason']})"
    if decision.method is not None and decision.method not in methods:
        return f"there is no matte {decision.method}; there are {', '.join(methods)}"
    if decision.method is not None and decision.method not in [solve["method"] for solve in choosable(row)]:
        return f"chooses a {kind_of(decision.method)} matte; the dataset is of the kind {kind_here(row)} now"
    same = unchanged(decision, row)
    if decision.method is not None and decision.method not in same:
        return f"its matte {decision.method} was solved again since, with another result"
    if not same:
        return "its mattes were solved again since, all with another result"
    return None


def refuse_unscored(dataset: str, rows: Iterable[Mapping]) -> None:
    """Raise InputError where a matte has no score, as those that a network has predicted.

    Parameters
    ----------
    dataset : for the message
    rows : of ``raymat.store.OUTCOME``
    """
    for row in rows:
        if any(math.isnan(solve["score"]) for solve in row["solves"]):
            raise InputError(
                f"{dataset}: {row['nodule_id']} has a matte without a score, which quality control has not seen: a "
                "dataset of predictions is neither reviewed nor released, look at its volumes or `raymat export` it"
            )
