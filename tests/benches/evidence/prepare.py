#!/usr/bin/env python3
"""Data, tasks and recipes of EVIDENCE.md, into a folder that the commands there run in. Standard library alone.

    python3 tests/benches/evidence/prepare.py --data ../shared/data --model MODEL --out target/evidence

Of each source a fixed part is taken: no row that is evaluated on is trained on.
"""

import argparse
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
CHOICES = """\
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
MMLU = """\
include: _choices
task: medical_mmlu
dataset_kwargs: {data_files: {test: mmlu.jsonl}}
description: "The following are multiple choice questions (with answers) about medicine and biology.\\n\\n"
"""
PUBMEDQA = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Abstract: {{{{contexts | join('\\n')}}}}\\nQuestion: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: balanced_accuracy}}]
metadata: {{version: 1.0}}
"""
RECIPE = """\
base:
  model: {model}
lora: {{r: 16, lora_alpha: 32, target_modules: all-linear}}
objective: {{type: bft, group_size: {group_size}}}
data:
{data}
training:
  {length}
  micro_batch_size: {rows}
  learning_rate: 2e-4
  lr_scheduler: cosine
  warmup_ratio: 0.03
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} rows")


def medquad(data: Path, out: Path) -> str:
    """Every seventh question with an answer of up to 1,200 characters; a tenth of the diseases is held out."""
    rows = [row for row in rows_of(data / "medquad" / "train.jsonl")[::7] if len(row["answer"]) <= 1200]
    diseases = sorted({row["focus"] for row in rows})
    held_out = set(diseases[::10])
    write(out / "medquad_train.jsonl", (row for row in rows if row["focus"] not in held_out))
    write(out / "medquad_held_out.jsonl", (row for row in rows if row["focus"] in held_out))
    return "  train: medquad_train.jsonl\n  validation: medquad_held_out.jsonl\n  format: question_answer\n  max_seq_len: 512"


def pubmedqa(data: Path, out: Path) -> str:
    """Three of ten abstracts are held out: their rows are measured on, and their yes, no or maybe is a task."""
    rows = rows_of(data / "pubmedqa" / "train500.jsonl")
    held_out = [row for i, row in enumerate(rows) if i % 10 < 3]
    write(out / "pubmedqa_all.jsonl", rows)
    write(out / "pubmedqa_train.jsonl", (row for i, row in enumerate(rows) if i % 10 >= 3))
    write(out / "pubmedqa_held_out.jsonl", held_out)
    return (
        "  train: pubmedqa_train.jsonl\n  validation: pubmedqa_held_out.jsonl\n  format: question_answer\n  max_seq_len: 1024"
    )


def gene_sets(data: Path, out: Path) -> str:
    """Sets of 3 to 60 genes that GeneAgent's table does not hold; a tenth is held out."""
    with (data / "geneagent" / "GO_terms.csv").open(encoding="utf-8", newline="") as lines:
        known = {value for row in csv.DictReader(lines) for value in row.values() if value and value.startswith("GO:")}
    rows = [
        row
        for row in rows_of(data / "gene_ontology" / "go_bp_genesets_direct.jsonl")
        if row["id"] not in known and 3 <= len(row["genes"]) <= 60
    ]
    write(out / "genes_train.jsonl", (row for i, row in enumerate(rows) if i % 10 != 0))
    write(out / "genes_held_out.jsonl", (row for i, row in enumerate(rows) if i % 10 == 0))
    return """\
  train: genes_train.jsonl
  validation: genes_held_out.jsonl
  template:
    user: |-
      Which biological process do these human genes share? Answer with its name.

      {{ genes | join(', ') }}
    assistant: "{{ term }}"
  max_seq_len: 512"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the biomedical data")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="the base (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to fill")
    parser.add_argument("--small", action="store_true", help="as much as two cores of a CPU do in two hours")
    args = parser.parse_args()
    out: Path = args.out
    tasks = out / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    questions = [row for name in SUBJECTS for row in rows_of(args.data / "mcq" / f"mmlu_{name}.jsonl")]
    write(out / "mmlu.jsonl", questions[:: 10 if args.small else 1])
    (tasks / "_choices").write_text(CHOICES, encoding="utf-8")
    (tasks / "medical_mmlu.yaml").write_text(MMLU, encoding="utf-8")
    for name, file in (("pubmedqa_500", "pubmedqa_all.jsonl"), ("pubmedqa_150", "pubmedqa_held_out.jsonl")):
        (tasks / f"{name}.yaml").write_text(PUBMEDQA.format(name=name, file=file), encoding="utf-8")
    for name, make, group_size, epochs, (steps, rows, measured) in (
        ("medquad", medquad, 64, 1, (24, 8, 2)),
        ("pubmedqa", pubmedqa, 64, 3, (12, 8, 2)),
        ("genes", gene_sets, 8, 1, (24, 16, 4)),
    ):
        section = make(args.data, out)
        length = f"epochs: {epochs}"
        if args.small:
            length = f"max_steps: {steps}"
            section = section.replace("_held_out", "_measured")
            write(out / f"{name}_measured.jsonl", rows_of(out / f"{name}_held_out.jsonl")[::measured])
        rows = rows if args.small else 16
        recipe = RECIPE.format(
            model=args.model, group_size=group_size, data=section, length=length, rows=rows
        )
        (out / f"{name}.yaml").write_text(recipe, encoding="utf-8")


if __name__ == "__main__":
    main()
