"""Tables in Markdown, for pages, the model card and descriptions of runs."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells, the first row its head; all columns but the first to the right. A ``|`` in a cell stays one."""
    first, *rest = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [first, ["---", *["--:"] * (len(first) - 1)], *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
