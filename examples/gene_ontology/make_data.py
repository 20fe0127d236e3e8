#!/usr/bin/env python3
"""Make train.jsonl and validation.jsonl: instruction rows from the Gene Ontology.

Two kinds of rows, each `{"instruction": ..., "input": ..., "output": ...}`:

* term -> definition:      "Define the biological process term."
* genes -> process name:   "Name the biological process that these genes share."

A GO id is held out as a whole. Held-out ids (1 in 100, by sha256 of the id) make
validation.jsonl; they are in neither train.jsonl nor the base model's pretraining text.
Ids named in --leave-out go nowhere at all. No random state: the same input gives the
same files, byte for byte.

    python make_data.py --source RAW --leave-out RAW/GO_terms.csv --out .

RAW holds go_bp_genesets_direct.jsonl, one `{"id", "term", "definition", "genes"}` a line.
Standard library only.
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path

DEFINE = "Define the biological process term."
NAME = "Name the biological process that these genes share."


def digest(text):
    """A number that depends on the text alone, spread evenly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(go_id):
    """True for the GO ids kept for validation: 1 in 100."""
    return digest(go_id) % 100 == 0


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_left_out(path):
    """The ids in the `GO` column of a CSV file; none without a file."""
    if path is None:
        return set()
    with open(path, encoding="utf-8", newline="") as file:
        return {row["GO"] for row in csv.DictReader(file)}


def rows_of(entry, max_genes, max_words):
    """The rows that one GO entry gives: none, one or two."""
    definition = entry["definition"]
    if definition and len(definition.split()) <= max_words:
        yield {"instruction": DEFINE, "input": entry["term"], "output": definition}
    # Which genes stay depends on the id and the gene, not on the alphabet.
    genes = sorted(entry["genes"], key=lambda gene: digest(entry["id"] + gene))[:max_genes]
    yield {"instruction": NAME, "input": ", ".join(sorted(genes)), "output": entry["term"]}


def write_jsonl(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {len(text.encode())} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the raw jsonl files")
    parser.add_argument("--leave-out", type=Path, help="CSV with a GO column: ids to use nowhere")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--train-ids", type=int, default=1100, help="GO ids in train.jsonl")
    parser.add_argument("--max-genes", type=int, default=12)
    parser.add_argument("--max-words", type=int, default=60, help="longest definition")
    args = parser.parse_args()

    left_out = read_left_out(args.leave_out)
    entries = [e for e in read_jsonl(args.source / "go_bp_genesets_direct.jsonl") if e["id"] not in left_out]
    entries.sort(key=lambda e: digest("order " + e["id"]))
    validation_entries = [e for e in entries if is_held_out(e["id"])]
    train_entries = [e for e in entries if not is_held_out(e["id"])][: args.train_ids]

    args.out.mkdir(parents=True, exist_ok=True)
    for name, chosen in [("train", train_entries), ("validation", validation_entries)]:
        rows = [row for e in chosen for row in rows_of(e, args.max_genes, args.max_words)]
        rows.sort(key=lambda row: digest(row["input"]))  # mixes the two kinds
        write_jsonl(args.out / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
