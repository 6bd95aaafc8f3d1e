"""A table in HTML: every text escaped, a caption where there is one."""

from latentaug.table import html_table


def test_texts_are_escaped_and_rows_are_in_order() -> None:
    shown = html_table(["a", "b & c"], [["<1>", "2"], ["3", "4"]], "what <it> is")
    assert shown.startswith("<table><caption>what &lt;it&gt; is</caption><thead><tr><th>a</th><th>b &amp; c</th>")
    assert shown.endswith("<tr><td>&lt;1&gt;</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></tbody></table>")
    assert "caption" not in html_table(["a"], [])
