"""What a stranger looks for first: licence, citation, changelog, how to contribute, and links that lead somewhere."""

import hashlib
import re
import runpy
import tomllib

import pytest
import yaml

import raymat
from raymat.cli import parser
from raymat.commands import COMMANDS
from raymat.measures.dictionary import MEASURES
from tests.support import REPOSITORY

PAGES = sorted(page for pattern in ("*.md", "benchmarks/*.md", "docs/**/*.md") for page in REPOSITORY.glob(pattern))
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The names by which a page's headings can be linked, as GitHub makes them."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_licence_is_the_whole_apache_2_text():
    assert hashlib.sha256((REPOSITORY / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_package_citation_and_changelog_name_one_version_and_one_address():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == raymat.__version__
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert re.findall(r"^## \[(\d[^\]]*)\]", text("CHANGELOG.md"), flags=re.MULTILINE)[0] == raymat.__version__
    address = citation["repository-code"]
    assert address in text("CHANGELOG.md")
    for name, url in project["urls"].items():
        assert url == address or url.startswith(f"{address}/"), name


def test_the_architecture_names_every_module_and_no_other():
    modules = {path.stem for path in (REPOSITORY / "raymat").glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (REPOSITORY / "raymat").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", text("docs/explanation/architecture.md"), flags=re.MULTILINE)) == modules


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/explanation/architecture.md"])
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`((?:raymat|docs|benchmarks|jobs)/[\w./]*)`", text(page)))
    assert named
    assert not sorted(name for name in named if not (REPOSITORY / name).exists())


def test_each_version_constant_is_where_contributing_says():
    rows = re.findall(r"^\| `([\w.]*(?:VERSION|version)\w*)` \| (.+?) \|", text("CONTRIBUTING.md"), flags=re.MULTILINE)
    assert len(rows) >= 6
    for constant, files in rows:
        name = constant.rpartition(".")[2]
        for file in re.findall(r"`(raymat/[\w/]+\.py)`", files):
            assert re.search(rf"^ *{name}(?:: str)? = ", text(file), flags=re.MULTILINE), f"{constant} in {file}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_lead_to_files_and_headings(page):
    content = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", content):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_every_file_of_a_command_is_in_the_list_of_commands():
    files = {path.stem for path in (REPOSITORY / "raymat/commands").glob("*.py") if "\nHELP = " in path.read_text()}
    assert {command.__name__.rpartition(".")[2] for command in COMMANDS.values()} == files
    assert [name.replace("-", "_") for name in COMMANDS] == [c.__name__.rpartition(".")[2] for c in COMMANDS.values()]


def test_the_page_of_commands_has_every_command_and_option():
    hook = runpy.run_path(str(REPOSITORY / "docs" / "commands_hook.py"))
    sections = hook["on_page_markdown"](text("docs/reference/commands.md")).split("\n## raymat ")[1:]
    commands = parser()._subparsers._group_actions[0].choices
    assert [section.split("\n", 1)[0] for section in sections] == list(commands)
    for section, command in zip(sections, commands.values(), strict=True):
        listed = set(re.findall(r"`(-[\w-]+)`", section))
        assert listed == set(command._option_string_actions) - {"-h", "--help"}


def test_the_page_of_measures_has_every_column():
    hook = runpy.run_path(str(REPOSITORY / "docs" / "measures_hook.py"))
    page = hook["on_page_markdown"](text("docs/reference/measures.md"))
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == list(MEASURES)
