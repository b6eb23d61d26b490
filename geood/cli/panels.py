"""Verbs of the command line as `geood --help` lists them: in the order of the work, under headings, told whole.

The library cuts the sentence of a verb to what is left of a line, and lists verbs as they were added. Here they stand
in groups, each verb with its first sentence, which may take several lines.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS = {
    "Begin": ("demo", "init", "check", "doctor"),
    "Train and map": ("train", "plan", "predict", "polygonize"),
    "Look and review": ("project", "report", "audit", "feedback"),
    "Measure": ("evaluate", "submit", "data"),
    "Files": ("info", "export"),
}


class Verbs(TyperGroup):
    """Group of verbs whose help lists them by `PANELS`; a verb of no panel comes last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of the panels."""
        known = [name for names in PANELS.values() for name in names if name in self.commands]
        return known + [name for name in self.commands if name not in known]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs panel by panel, each with the first sentence of its help."""
        shown = {
            name: first_sentence(command.short_help or command.help or "")
            for name in self.list_commands(ctx)
            if not (command := self.commands[name]).hidden
        }
        placed = {name for names in PANELS.values() for name in names}
        panels = PANELS | {"More": tuple(name for name in shown if name not in placed)}
        widest = max(map(len, shown), default=0)
        for title, names in panels.items():
            if rows := [(name.ljust(widest), shown[name]) for name in names if name in shown]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, in one line."""
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].removesuffix(".") + "."
