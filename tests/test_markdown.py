"""Tables in Markdown."""

from reg4pru_monai.markdown import markdown_table


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert markdown_table([["", "a|b"], ["c", "1"]]) == "|  | a\\|b |\n| --- | --: |\n| c | 1 |"
