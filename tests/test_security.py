"""What others could reach, read or bring in."""

import ast
import os
import pickle
import stat
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from tests.support import REPOSITORY


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and all its descendants listen."""
    found = set()
    for member in [process, *process.children(recursive=True)]:
        for connection in member.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


@pytest.mark.ray
def test_a_local_cluster_listens_on_loopback_alone_and_its_token_is_its_owners(ray_cluster):
    @ray_cluster.remote
    def work() -> int:
        return os.getpid()

    assert ray_cluster.get(work.remote()) != os.getpid()
    assert listening(psutil.Process()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    token = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


class Trap:
    """What makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_with_pickled_objects_is_refused_before_it_is_read(tmp_path, nested):
    trap = pa.array([pickle.dumps(Trap(tmp_path / "sprung"))], pa.large_binary())
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), trap)
    if nested:
        column = pa.StructArray.from_arrays([column], ["inside"])
    row = {"case_id": ["a"], "patient_id": ["p"], "image": ["i.nii"], "masks": ["m.nii"], "note": column}
    pq.write_table(pa.table(row), tmp_path / "cases.parquet")
    with pytest.raises(InputError, match="column note holds objects"):
        list(CasesSource(str(tmp_path / "cases.parquet")).plan())
    assert not (tmp_path / "sprung").exists()


def test_nothing_here_unpickles():
    """Every call that could make an object from a file's bytes says that it must not, or is not there."""
    for file in [*(REPOSITORY / "raymat").rglob("*.py"), *(REPOSITORY / "jobs").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                if names == {"pickle", "UnpicklingError"}:
                    continue  # what torch refuses a checkpoint with
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, file
            if isinstance(node, ast.Call):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load", "pd.read_pickle"), f"{file}:{node.lineno}"
                assert called != "torch.load" or said.get("weights_only") == "True", f"{file}:{node.lineno}"
                assert called != "np.load" or said.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
