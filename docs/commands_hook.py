"""Puts the options of every command on the page of commands, from the parser of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

MARK = "<!-- options -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page's Markdown, its mark replaced by one section per command; called by MkDocs."""
    if MARK not in markdown:
        return markdown
    # The parser needs only the standard library, so the site is built without raymat's requirements. MkDocs restores
    # sys.path after it has loaded a hook: set here.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from raymat.cli import parser

    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    sections = (section(name, helps[name], command) for name, command in commands.choices.items())
    return markdown.replace(MARK, "\n\n".join(sections))


def section(name: str, summary: str, command: argparse.ArgumentParser) -> str:
    """A heading, the summary, and a table of the options of one command."""
    summary = f"{summary[:1].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}"
    lines = [f"## raymat {name}", "", summary, "", "| option | meaning |", "| --- | --- |"]
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        titled = group.title not in ("positional arguments", "options")
        if actions and titled:
            lines.append(f"| **{group.title}** | {group.description or ''} |")
        lines += [f"| {spelling(action)} | {meaning(action, command)} |" for action in actions]
    return "\n".join(lines)


def spelling(action: argparse.Action) -> str:
    """How an option is written, with the name of its value."""
    names = action.option_strings or [str(action.metavar or action.dest)]
    value = "" if action.nargs == 0 or not action.option_strings else value_of(action)
    return ", ".join(f"`{name}`" for name in names) + (f" `{value}`" if value else "")


def value_of(action: argparse.Action) -> str:
    """What stands for an option's value; empty for a switch."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return ""
    if action.choices:
        return ", ".join(map(str, action.choices))
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or action.dest.upper()


def meaning(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    """An option's help, with its default, fit for a table."""
    text = command._get_formatter()._expand_help(action) if action.help else ""
    required = " Required." if action.required and action.option_strings else ""
    return f"{text.replace('|', chr(92) + '|')}{required}"
