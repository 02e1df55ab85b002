"""Tables in plain text and HTML."""

from __future__ import annotations

from starfire_cli.markup import RecordTable


def test_numbers_go_to_the_right_and_names_to_the_left():
    table = RecordTable(
        title="a title",
        head=("layer", "weights", "what"),
        rows=[("0", "9", "x"), ("10", "1,234", "yy")],
        total=("all", "1,243", ""),
        notes=["a note"],
    )
    assert table.text().splitlines() == [
        "a title",
        "layer  weights  what",
        "0            9  x",
        "10       1,234  yy",
        "all      1,243",
        "a note",
    ]


def test_a_table_without_rows_is_its_head():
    table = RecordTable(title="t", head=("a", "b"), rows=[])
    assert table.text() == "t\na  b"
    assert "<tfoot>" not in table.html()


def test_html_is_escaped():
    table = RecordTable(title="<t>", head=("a",), rows=[("<b>",)], notes=["<n>"])
    assert "<b>" not in table.html() and "&lt;n&gt;" in table.html() and "&lt;t&gt;" in table.html()
