"""A table of texts, and how it is written as Markdown and as LaTeX. Nothing is computed here.

HTML is not here: the page's template shows the same tables, and escapes them itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# LaTeX takes [ and * after a line break for arguments of it, so that both are put into braces.
_LATEX = {
    **{character: f"\\{character}" for character in "{}#$%&_"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}", "[": "{[}", "*": "{*}"},
    **{"±": r"$\pm$", "→": r"$\to$", "λ": r"$\lambda$", "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--"},
}
_MARKDOWN = {character: f"\\{character}" for character in "\\`*_{}[]<>|#~"} | {"&": "&amp;"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of texts under a header. align: `l` (text), `r` (number) or `p` (sentence) for each column."""

    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.header)]
        if wrong or len(self.align) != len(self.header) or set(self.align) - set("lrp"):
            raise ValueError(
                f"align (letters of lrp) and each row must have {len(self.header)} entries, but got "
                f"align={self.align!r} and {len(wrong)} rows of another length"
            )


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table: what was measured, what is claimed of it, and remarks. judged: claims that could be compared."""

    title: str
    head: str
    measured: Grid
    claims: Grid
    remarks: tuple[str, ...]
    judged: int


def markdown(title: str, tables: Sequence[Table]) -> str:
    """A page of Markdown; every text is escaped."""
    parts = [f"# {markdown_text(title)}"]
    for table in tables:
        parts += [f"## {markdown_text(table.title)}", markdown_text(table.head)]
        parts += [markdown_grid(grid) for grid in (table.measured, table.claims) if grid.rows]
        parts += [markdown_text(remark) for remark in table.remarks]
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """A `table` environment for each, to be read with \\input; needs booktabs and T1 fonts. Every text is escaped."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}"]
    for table in tables:
        caption = _escape(f"{table.title}. {table.head}", _LATEX)
        remarks = [f"\\par {_escape(remark, _LATEX)}" for remark in table.remarks]
        parts += ["\\begin{table}[p]", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}"]
        grids = [_latex_grid(grid) for grid in (table.measured, table.claims) if grid.rows]
        parts += [f"\\caption{{{caption}}}", "\n\\par\\medskip\n".join(grids), *remarks, "\\end{table}", ""]
    return "\n".join(parts)


def _escape(text: str, characters: Mapping[str, str]) -> str:
    """One line, since a line break ends a row in Markdown and a blank line a paragraph in LaTeX."""
    one_line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()
    return "".join(characters.get(character, character) for character in one_line)


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return _escape(text, _MARKDOWN)


def markdown_grid(grid: Grid) -> str:
    """A table of Markdown; every text is escaped."""
    lines = [[_escape(cell, _MARKDOWN) for cell in row] for row in (grid.header, *grid.rows)]
    lines.insert(1, ["---:" if align == "r" else "---" for align in grid.align])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex_grid(grid: Grid) -> str:
    header, *rows = (" & ".join(_escape(cell, _LATEX) for cell in row) + " \\\\" for row in (grid.header, *grid.rows))
    columns = "".join(r"p{0.24\textwidth}" if align == "p" else align for align in grid.align)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", header, "\\midrule", *rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])
