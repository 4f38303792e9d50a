"""The review page's server: one dataset, several reviewers, nothing confirmed that is not on the disk.

Loopback by default. Whoever knows the token of the printed address gets in (it becomes a cookie that no other site can
use); requests that name another host are refused, so that no web page elsewhere can reach the server through the
reviewer's browser.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import threading
from collections import Counter, OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from raymat.nodule import InputError
from raymat.places import NotWritten, Unreachable
from raymat.quality.selection import LOW, WEIGHTS, WORDS
from raymat.review.agreement import agreement
from raymat.review.decisions import (
    REJECT,
    WITHDRAW,
    Decision,
    Decisions,
    choosable,
    kind_here,
    no_longer,
    refuse_unscored,
)
from raymat.review.payload import payload
from raymat.store import Store

PAGE = Path(__file__).parent / "page"
KEPT = 12  # nodules ready to be sent, 3 to 20 MB each
READERS = 2  # nodules read at once: the shown one and the next
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


class Gone(Exception):
    """A decision on something that is no longer in the dataset; the message says what."""


# HTTP's of what is refused; 400 for any other.
STATUS = {Gone: 409, NotWritten: 507, Unreachable: 503}


class ReviewSession:
    """A dataset under review: its rows, its decisions, and the nodules that were asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.decisions = Decisions(store)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="nodule")
        self._ready: OrderedDict[str, Future[bytes]] = OrderedDict()
        self.reload()

    def reload(self) -> None:
        """Read the dataset's rows again, as after a build beside the server."""
        self.rows = {row["nodule_id"]: row for row in self.store.outcomes().to_pylist()}
        with self._lock:
            self._ready.clear()

    def table(self, reviewer: str) -> list[dict]:
        """One row per nodule with mattes: what the score says, what the reviewer said, and whether there is a dispute.

        What other reviewers said is shown only for nodules that this one has decided: a second reading is blind.
        """
        self.decisions.refresh()
        current = self.decisions.current()
        return [
            self._table_row(row, current.get(row["nodule_id"], {}), reviewer)
            for row in self.rows.values()
            if row["solves"]
        ]

    def _table_row(self, row: dict, current: dict[str, Decision], reviewer: str) -> dict:
        said = {name: decision.label for name, decision in current.items() if self._fits(decision)}
        others = {name: label for name, label in said.items() if name != reviewer}
        by_score = row["method"] or REJECT
        return {
            "nodule_id": row["nodule_id"],
            "patient_id": row["patient_id"],
            "outcome": row["outcome"],
            "method": row["method"],
            "score": max((solve["score"] for solve in choosable(row)), default=None),
            "mine": said.get(reviewer),
            "others": others if reviewer in said else {},
            "others_count": len(others),
            "against_score": any(label != by_score for label in said.values()),
            "split": len(set(said.values())) > 1,
        }

    def progress(self) -> dict:
        """How many nodules there are, how many each reviewer decided, and how far they agree."""
        self.decisions.refresh()
        current = {
            nodule_id: fitting
            for nodule_id, by in self.decisions.current().items()
            if (fitting := {name: decision for name, decision in by.items() if self._fits(decision)})
        }
        return {
            "nodules": sum(bool(row["solves"]) for row in self.rows.values()),
            "decided": len(current),
            "reviewers": dict(Counter(name for by in current.values() for name in by)),
            "agreement": [asdict(pair) for pair in agreement(current)],
        }

    def message(self, nodule_id: str) -> bytes:
        """The nodule's ``payload``, read once and kept for a while.

        Raises
        ------
        InputError
            There is no such nodule, or it cannot be read.
        """
        with self._lock:
            found = self._ready.get(nodule_id)
            if found is None:
                found = self._ready[nodule_id] = self._pool.submit(self._read, nodule_id)
                if len(self._ready) > KEPT:
                    self._ready.popitem(last=False)
            self._ready.move_to_end(nodule_id)
        try:
            return found.result()
        except BaseException:
            with self._lock:
                self._ready.pop(nodule_id, None)
            raise

    def decide(self, message: dict) -> dict:
        """Record a reviewer's decision; returns what the table says of the nodule afterwards.

        Raises
        ------
        InputError
            The decision is malformed or cannot be written.
        Gone
            The nodule, or the mattes it was made on, are no longer in the dataset, or the dataset is of another kind.
        """
        names = ("decision_id", "nodule_id", "mattes", "kind", "reviewer", "action", "method")
        texts_only = isinstance(message, dict) and all(
            isinstance(message.get(name), str) for name in names if name != "method"
        )
        if not texts_only or set(message) - set(names):
            raise InputError(f"a decision has {', '.join(names)}, all of them texts; reload the page")
        texts: dict[str, Any] = {name: message.get(name) for name in names}
        decision = Decision(**texts, at=self.decisions.now())
        if self._refused(decision) or not self.store.exists(self.rows[decision.nodule_id]["shard"]):
            self.reload()
            problem = self._refused(decision)
            if problem:
                raise Gone(f"{decision.nodule_id}: {problem}; reload the page")
        self.decisions.record(decision)
        current = self.decisions.current().get(decision.nodule_id, {})
        return self._table_row(self.rows[decision.nodule_id], current, decision.reviewer)

    def _refused(self, decision: Decision) -> str | None:
        """Why a new decision cannot be taken; a page that shows another kind asked for something else."""
        problem = no_longer(decision, self.rows)
        if problem is None and decision.action != WITHDRAW:
            kind = kind_here(self.rows[decision.nodule_id])
            if decision.kind != kind:
                return f"was decided for the kind {decision.kind}; the dataset is of the kind {kind} now"
        return problem

    def _fits(self, decision: Decision) -> bool:
        return no_longer(decision, self.rows) is None

    def _read(self, nodule_id: str) -> bytes:
        row = self.rows.get(nodule_id)
        if row is None or not row["solves"]:
            raise InputError(f"{nodule_id}: no nodule with mattes of that name")
        return payload(self.store.read_committed(row["key"], row["shard"]))


def application(session: ReviewSession, token: str, hosts: list[str]) -> Starlette:
    """The web application.

    Parameters
    ----------
    session : what is reviewed
    token : what a visitor must bring
    hosts : names under which the server may be addressed; ``["*"]`` for any
    """

    def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": CONTENT_POLICY})

    def about(request: Request) -> Response:
        quality = {"weights": WEIGHTS, "words": WORDS, "low": LOW}
        return JSONResponse({"dataset": session.store.root, "quality": quality})

    def nodules(request: Request) -> Response:
        return JSONResponse(session.table(request.query_params.get("reviewer", "")))

    def progress(request: Request) -> Response:
        return JSONResponse(session.progress())

    def volume(request: Request) -> Response:
        message = session.message(request.query_params.get("nodule", ""))
        return Response(message, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    async def decide(request: Request) -> Response:
        try:
            message = await request.json()
        except ValueError as error:
            raise InputError("a decision is sent as JSON") from error
        # In a thread: the disk may be slow, and other reviewers must not wait for it.
        return JSONResponse(await run_in_threadpool(session.decide, message))

    def refused(request: Request, error: Exception) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
        return JSONResponse({"error": str(error.args[0]) if error.args else str(error)}, status_code=status)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/about", about),
            Route("/api/nodules", nodules),
            Route("/api/progress", progress),
            Route("/api/volume", volume),
            Route("/api/decisions", decide, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(_Guard, token=token),
        ],
        exception_handlers={InputError: refused, Gone: refused},
    )


class _Guard:
    """Lets in who brings the token, in the address (then as a cookie) or as a bearer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        # Cookies do not know of ports: each server on a host has one of its own.
        cookie = f"raymat-review-{request.url.port or 80}"
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None and self._right(given):
            response: Response = RedirectResponse("/", status_code=303)
            response.set_cookie(cookie, given, httponly=True, samesite="strict", path="/")
        elif self._right(request.cookies.get(cookie)) or self._right(
            request.headers.get("authorization", "").removeprefix("Bearer ")
        ):
            await self.app(scope, receive, send)
            return
        else:
            words = "Open the address that `raymat review` printed: it holds the token that this page asks for.\n"
            response = PlainTextResponse(words, status_code=401)
        await response(scope, receive, send)

    def _right(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())


def serve(dataset: str, host: str = "127.0.0.1", port: int = 8790, token: str | None = None) -> int:
    """Serve the review page of a dataset until interrupted.

    Raises
    ------
    InputError
        There is no dataset with mattes and scores, decisions cannot be read, or the address cannot be used.
    """
    session = ReviewSession(Store.open(dataset))
    refuse_unscored(dataset, session.rows.values())
    here = session.progress()
    if not here["nodules"]:
        raise InputError(f"{dataset}: no nodule has mattes, there is nothing to review")
    if token is not None and not token.isascii():
        raise InputError("--token: plain letters and digits only")
    token = token or secrets.token_urlsafe(24)
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port}: cannot be served on ({error}); choose another --port") from error
    port = listening.getsockname()[1]
    loopback = host == "localhost" or _is_loopback(host)
    application_ = application(session, token, [host, "localhost", "127.0.0.1"] if loopback else ["*"])
    if not loopback:
        print(f"WARNING: served on {host}, so over the network and without encryption")
    print(f"{here['decided']} of {here['nodules']} nodules decided")
    print(f"review         http://{host}:{port}/?token={token}", flush=True)
    server = uvicorn.Server(uvicorn.Config(application_, log_level="warning", timeout_graceful_shutdown=3))
    server.run(sockets=[listening])
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
