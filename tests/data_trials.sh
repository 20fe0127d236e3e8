#!/bin/sh
# A short training on each file of biomedical text, by the recipe that is meant for it.
#
#   tests/data_trials.sh BINARY DATA BASE [STEPS]
#
# DATA is the folder with medquad, pubmedqa and so on; BASE a model with a chat template. Ends with a line for each file: rows,
# tokens, learnt tokens, first and last loss. Fails where any does not load or train.
set -eu

binary=$1 data=$2 base=$3 steps=${4:-2}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo run --quiet --release --manifest-path "$root/Cargo.toml" --example gene_sets -- \
    "$data/gene_ontology/go_bp_genesets_direct.jsonl" "$data/geneagent/GO_terms.csv" "$work/gene_sets.jsonl"

# name, recipe, then what differs from it
trial() {
    name=$1 recipe=$2
    shift 2
    "$binary" train "$root/recipes/$recipe.yaml" --json --offline --overwrite \
        --set base.model="$base" --set output_dir="$work/out" --set data.cache=off --set training.max_steps="$steps" \
        --set training.micro_batch_size=2 --set training.gradient_accumulation_steps=1 --set training.eval_steps=0 \
        --set data.validation_split=0 --set data.max_seq_len=256 --set data.overlong=truncate "$@" >"$work/events"
    "$binary" data "$root/recipes/$recipe.yaml" --json --offline --show 0 --set base.model="$base" \
        --set data.cache=off --set data.validation_split=0 --set data.max_seq_len=256 --set data.overlong=truncate "$@" >"$work/data"
    python3 - "$name" "$work/events" "$work/data" <<'PYTHON'
import json, sys
name, events, data = sys.argv[1:]
steps = [e for e in map(json.loads, open(events)) if e["event"] == "step"]
told = json.load(open(data))["data"]
kinds = ", ".join(source["kind"] + ": " + source["format"].split(" ")[0] for source in told["sources"])
print(f'{name:32} {kinds:30} {told["rows"]:7} rows {told["tokens"]:9} tokens {told["supervised_tokens"]:9} learnt; '
      f'loss {steps[0]["cross_entropy"]:.3f} to {steps[-1]["cross_entropy"]:.3f}')
PYTHON
}

trial medquad medquad --set data.train="$data/medquad/train.jsonl"
trial pubmedqa pubmedqa --set data.train="$data/pubmedqa/train500.jsonl"
trial bioasq bioasq --set data.train="$data/bioasq/train.jsonl"
trial gene-sets gene-set-process --set data.train="$work/gene_sets.jsonl"
trial gene-sets-of-geneagent gene-set-process --set data.train="$data/geneagent/GO_terms.csv" \
    --set data.template="{user: 'Which process? {{ Genes }}', assistant: '{{ Term_Description }}'}"
trial go-definitions-and-gene-names go-definitions --set data.train="[
    {path: $data/gene_ontology/go_definitions.jsonl, template: {user: 'What is {{ term }}?', assistant: '{{ definition }}'}},
    {path: $data/gene_ontology/human_gene_names.tsv, columns: [symbol, name], weight: 0.5,
     template: {user: '{{ symbol }}?', assistant: '{{ name }}'}}]"
trial mmlu-medical medical-mcq --set data.train="$data/mcq/mmlu_*.jsonl"
trial gene-summaries gene-summaries --set data.train="$data/geneagent/gene_*_spindoctor.txt"
trial gene-pairs gene-summaries --set data.train="$data/gene2vec_ggi/train_text.txt"
