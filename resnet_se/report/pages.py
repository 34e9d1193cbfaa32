"""Numbers, tables and blocks as text: Markdown, one HTML page, LaTeX, CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
STYLED = {  # cells that the HTML page sets off: their class
    "better": "better",
    "worse": "worse",
    **dict.fromkeys(("within noise", "–", NOT_MEASURED), "dim"),
}


@dataclass
class Table:
    """Cells as text; `left` columns are aligned left, the others right."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: Sequence[int] = (0,)


@dataclass
class Block:
    """A heading (h1–h3), paragraph (p), list (ul), table or figure.

    `items` are a list's, or the short form of a heading, or the name of a figure.
    """

    kind: str
    text: str = ""
    items: Sequence[str] = ()
    table: Table | None = None
    drawn: dict[str, bytes] | None = None


# --- numbers -----------------------------------------------------


def number(value: float | None, digits: int = 0, unit: float = 1) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def accuracy(spread: tuple[float, float | None] | None) -> str:
    """`94.10 ± 0.12`, in per cent; one seed has no deviation."""
    if spread is None:
        return "–"
    mean, std = spread
    return f"{100 * mean:.2f} ± {'–' if std is None else f'{100 * std:.2f}'}"


def points(value: float) -> str:
    text = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


# --- formats -----------------------------------------------------


def markdown(blocks: list[Block]) -> str:
    parts = []
    for block in blocks:
        if block.kind[0] == "h":
            parts.append(f"{'#' * int(block.kind[1])} {_md(block.text)}")
        elif block.kind == "p":
            parts.append(_md(block.text))
        elif block.kind == "ul":
            parts.append("\n".join(f"- {_md(item)}" for item in block.items))
        elif block.kind == "table":
            parts.append(_md_table(block.table))
        else:
            parts.append(f"![{_md(block.text)}](figures/{block.items[0]}.png)")
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([|*]|<(?=[a-zA-Z/!?]))", r"\\\1", text).replace("\n", " ")


def _md_table(table: Table) -> str:
    rule = [":--" if i in table.left else "--:" for i in range(len(table.head))]
    lines = [[_md(cell) for cell in row] for row in (table.head, *table.rows)]
    lines.insert(1, rule)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_md(table.caption)}:\n\n{text}" if table.caption else text


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Dicts of equal keys, under a line of the keys."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        cells = row.values()
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in cells)
    return out.getvalue()


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
}


def latex(tables: Iterable[Table]) -> str:
    r"""Floats that need `\usepackage{graphicx}` only."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    parts = [r"% \usepackage{graphicx}, UTF-8"]
    for table in tables:
        align = "".join("l" if i in table.left else "r" for i in range(len(table.head)))
        lines = [" & ".join(map(escape, row)) + r" \\" for row in table.rows]
        head = " & ".join(map(escape, table.head)) + r" \\ \hline"
        parts += [
            r"\begin{table}",
            rf"\caption{{{escape(table.caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            head,
            *lines,
            r"\end{tabular}}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --soft: #f4f6f9;
  --line: #d9dee6; --dim: #5b6576; --link: #1d4ed8;
  --better: #1a7f37; --worse: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14181f;
  --soft: #1d232d; --line: #343c49; --dim: #9aa5b5; --link: #8ab4ff;
  --better: #4cc46f; --worse: #ff8577; }
  figure img { filter: invert(0.92) hue-rotate(180deg); } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 84rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1rem 0 0.5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.6rem;
  padding-top: 0.8rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }
p, ul { max-width: 56rem; } ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
li { margin: 0.15rem 0; } a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 1rem 0; }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 3px; }
.wide { overflow-x: auto; margin: 0.8rem 0; border: 1px solid var(--line);
  border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.8rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.5rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
th { background: var(--soft); color: var(--dim); font-weight: 600; }
.l { text-align: left; } .free { white-space: normal; min-width: 14rem; }
td:first-child { position: sticky; left: 0; background: var(--paper); }
@media (max-width: 40rem) { td:first-child { max-width: 9rem; min-width: 0;
  white-space: normal; overflow-wrap: anywhere; } }
tbody tr:hover td { background: var(--soft); }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; } .dim { color: var(--dim); }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { max-width: 100%; min-width: 34rem; border-radius: 6px; }
.pair { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.pair img { width: 100%; min-width: 0; }
figcaption, .note { color: var(--dim); font-size: 0.9rem; }
"""


def html_page(blocks: list[Block]) -> str:
    """One file that loads nothing: the style and the pictures stand in it."""
    title = next(b.text for b in blocks if b.kind == "h1")
    parts, nav = [], []
    small = False  # confusion matrices stand side by side
    for block in blocks:
        matrix = block.kind == "figure" and block.items[0].startswith("confusion")
        if matrix != small:
            parts.append('<div class="pair">' if matrix else "</div>")
            small = matrix
        if block.kind == "h2":
            anchor = f"s{len(nav)}"
            short = block.items[0] if block.items else block.text
            nav.append(f'<a href="#{anchor}">{_inline(short)}</a>')
            parts.append(f'<h2 id="{anchor}">{_inline(block.text)}</h2>')
        elif block.kind == "ul":
            items = "\n".join(f"<li>{_inline(item)}</li>" for item in block.items)
            parts.append(f"<ul>\n{items}\n</ul>")
        elif block.kind == "table":
            parts.append(_html_table(block.table))
        elif block.kind == "figure":
            data = b64encode(block.drawn["svg"]).decode()
            text = _inline(block.text)
            parts.append(
                f'<figure><img alt="{html.escape(block.text)}" '
                f'src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        else:
            parts.append(f"<{block.kind}>{_inline(block.text)}</{block.kind}>")
    if small:
        parts.append("</div>")
    after_title = 1 + next(i for i, p in enumerate(parts) if p.startswith("<h1"))
    parts.insert(after_title, f"<nav>{' '.join(nav)}</nav>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _inline(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _html_table(table: Table) -> str:
    def row(tag: str, cells: list[str]) -> str:
        made = []
        for i, cell in enumerate(cells):
            names = ["l"] if i in table.left else []
            if tag == "td" and i in table.left and len(cell) > 42:
                names.append("free")
            styled = STYLED.get(cell.removesuffix(" (one seed)"))
            names += [styled] if styled else []
            kind = f' class="{" ".join(names)}"' if names else ""
            made.append(f"<{tag}{kind}>{_inline(cell)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    caption = f'<p class="note">{_inline(table.caption)}</p>' if table.caption else ""
    body = "\n".join(row("td", cells) for cells in table.rows)
    return (
        f'{caption}<div class="wide"><table><thead>{row("th", table.head)}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
