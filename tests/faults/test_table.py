"""The fault table of the documents is that of the tests."""

from __future__ import annotations

import pytest

from tests.faults import table


def test_the_table_in_the_documents_is_current(request: pytest.FixtureRequest) -> None:
    today = table.markdown()
    if request.config.getoption("--update-docs"):
        table.write(today)
    assert table.written() == today, "run: make docs"


def test_every_module_of_the_table_has_rows() -> None:
    table.markdown()
    assert {row.module for row in table.ROWS} == {m.rpartition(".")[2] for m in table.MODULES}
    assert all(row.times > 0 and row.injected and row.happened for row in table.ROWS)
