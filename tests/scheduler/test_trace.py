"""A trace is read whole, or refused with the line that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import BadRequest
from appliance.scheduler.replay import TraceRow, read_trace

HEAD = b"time_s,agent,model,duration_s\n"


def read(folder: Path, content: bytes) -> list[TraceRow]:
    (folder / "t.csv").write_bytes(content)
    return read_trace(folder / "t.csv")


def test_rows_are_sorted_by_time_and_other_columns_and_blank_lines_are_passed_over(
    tmp_path: Path,
) -> None:
    content = b"\xef\xbb\xbfmodel,time_s,note,agent,duration_s\r\nm,2,x,a,1\r\n\r\nn,1e0,,b,0.5\r\n"
    assert read(tmp_path, content) == [TraceRow(1.0, "b", "n", 0.5), TraceRow(2.0, "a", "m", 1.0)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "lacks the column"),
        (b"time_s,agent,model\n1,a,m\n", "lacks the column duration_s"),
        (HEAD, "has no requests"),
        (HEAD + b"0,a,m,1\n1,a,m\n", "line 3: duration_s is None"),
        (HEAD + b"soon,a,m,1\n", "line 2: time_s is 'soon'"),
        (HEAD + b"nan,a,m,1\n", "line 2: time_s is 'nan'"),
        (HEAD + b"0,a,m,-1\n", "line 2: duration_s is '-1'"),
        (HEAD + b"0,a,,1\n", "line 2 names no model"),
        (b"\xff\xfe\x00", "not a CSV in UTF-8"),
    ],
)
def test_what_is_no_request_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        read(tmp_path, content)


def test_times_before_zero_are_counted_from_the_first(tmp_path: Path) -> None:
    rows = read(tmp_path, HEAD + b"-1,a,m,1\n-3,b,n,1\n4,a,m,1\n")
    assert [row.time_s for row in rows] == [0.0, 2.0, 7.0]


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="directory"):
        read_trace(tmp_path)
