"""What test files share is in ``tests/support``."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def test_no_test_file_imports_from_another_one_or_from_a_conftest():
    guilty = []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                for module in modules:
                    if any(part == "conftest" or part.startswith("test_") for part in module.split(".")):
                        guilty.append(f"{file.relative_to(TESTS)}:{node.lineno} imports from {module}")
    assert guilty == []
