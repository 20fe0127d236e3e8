"""Writes the files of tests/reported/cases/rows: tables as pyarrow, DuckDB and datasets write them.

pip install pyarrow==26.0.1 duckdb==2.0.1 datasets==5.2.0 pandas==3.1.1
python tests/parity/reported_rows.py
"""

import datetime
import decimal
import json
import uuid
from pathlib import Path

import duckdb
import numpy
import pandas
import pyarrow
import pyarrow.parquet
from datasets import Dataset

FOLDER = Path(__file__).parent.parent / "reported" / "cases" / "rows"
NOT_TEXT = b"\x89PNG\xff\xfe"


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name, properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


# Two tools with other parameters; arguments three deep, a list with a null of its own, and no arguments at all.
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "Fold it."},
            {
                "role": "assistant",
                "content": "At once.",
                "tool_calls": [call("fold", {"protein": {"chain": {"id": "A"}, "sites": [1, None, 3]}})],
            },
            {"role": "tool", "content": "ok", "name": "fold"},
            {"role": "assistant", "content": "Folded."},
        ],
        "tools": [tool("fold", {"protein": {"type": "object", "enum": ["x", None]}})],
    },
    {
        "messages": [
            {"role": "user", "content": "Stop."},
            {"role": "assistant", "tool_calls": [call("stop", {})]},
            {"role": "tool", "content": "ok"},
            {"role": "assistant", "content": "Stopped."},
        ],
        "tools": [tool("stop", {})],
    },
]


def main():
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CALLS))
    table = pyarrow.Table.from_pylist(CALLS)
    pyarrow.parquet.write_table(table, FOLDER / "calls.parquet")
    # What pandas and datasets write of the same table: the nulls are in JSON now.
    Dataset(table).to_json(FOLDER / "calls-of-datasets.jsonl")

    rows = ["a", "b"]
    columns = {
        "instruction": pyarrow.array(rows),
        "output": pyarrow.array(["c", "d"]),
        "image": pyarrow.array([{"bytes": NOT_TEXT, "path": "x.png"}] * 2),
        "hash": pyarrow.array([NOT_TEXT[:4]] * 2, pyarrow.binary(4)),
        "pages": pyarrow.array([[NOT_TEXT], []], pyarrow.list_(pyarrow.binary())),
        "half": pyarrow.array([numpy.float16(1.5)] * 2, pyarrow.float16()),
        "price": pyarrow.array([decimal.Decimal("1.25")] * 2, pyarrow.decimal128(30, 2)),
        "moment": pyarrow.array([datetime.datetime(2024, 1, 2, 3, 4, 5)] * 2, pyarrow.timestamp("ns")),
        "time": pyarrow.array([datetime.time(1, 2, 3)] * 2, pyarrow.time64("us")),
        "nothing": pyarrow.nulls(2),
        "scores": pyarrow.array([[("x", 1.0)], []], pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        "kind": pyarrow.array(rows).dictionary_encode(),
        "vector": pyarrow.array([[1.0, 2.0]] * 2, pyarrow.list_(pyarrow.float32(), 2)),
        "__index_level_0__": pyarrow.array([5, 6]),
    }
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, FOLDER / "unneeded.parquet", use_deprecated_int96_timestamps=True, **{
        "compression": {path: "brotli" if path == "price" else "zstd" for path in leaves(table.schema)}
    })

    base = duckdb.connect()
    base.execute(
        f"""copy (select 'a' as instruction, 'b' as output, interval 3 days as age, uuid '{uuid.UUID(int=2**127 + 5)}' as id,
        170141183460469231731687303715884105727::hugeint as huge, '{{"x": 1}}'::json as meta, '\\xFF\\x00'::blob as raw,
        time '01:02:03' as at, [interval 1 day] as ages, {{'x': interval 1 day}} as inner, 7::utinyint as tiny, 'B'::enum('A', 'B') as letter)
        to '{FOLDER / "duckdb.parquet"}' (format parquet)"""
    )
    # A turn with a picture's bytes and an interval beside its text.
    base.execute(
        f"""copy (select [{{'role': 'user', 'content': 'a', 'at': interval 1 day, 'picture': '\\xFF\\x00'::blob}},
        {{'role': 'assistant', 'content': 'b', 'at': null, 'picture': null}}] as messages)
        to '{FOLDER / "turns.parquet"}' (format parquet)"""
    )
    pandas.DataFrame({"instruction": rows, "output": ["c", "d"]}).to_csv(FOLDER / "pandas.csv")


def leaves(schema):
    """The paths of the columns of a Parquet file with this schema."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(schema.empty_table(), sink)
    parquet = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet.names))]


if __name__ == "__main__":
    main()
