"""What test files share is in ``tests/support``."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def test_no_test_file_imports_from_another_one_or_from_a_conftest():
    guilty = []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = f"{'.' * node.level}{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for name in (module + alias.name for alias in node.names):
                    if name.startswith((".", "tests.")) and not name.startswith("tests.support."):
                        guilty.append(f"{file.relative_to(TESTS)}:{node.lineno} imports {name}")
    assert guilty == []
