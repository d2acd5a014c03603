"""Statements in a process of their own."""

from titans_seq.isolated import end_of


def test_a_statement_that_runs_through_or_raises() -> None:
    assert end_of("import sys; assert sys.argv[1:] == ['a', 'b c']", "a", "b c") is None
    assert end_of("raise ValueError") is None


def test_a_statement_that_ends_its_process() -> None:
    assert end_of("import os, sys; sys.stderr.write('why\\nmore'); sys.stderr.flush(); os.abort()") == "why"
    assert end_of("import os; os._exit(7)") == "status 7"
