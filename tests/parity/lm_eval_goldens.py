#!/usr/bin/env python3
"""Run lm-evaluation-harness on a model folder and local tasks, and write what it found for each item, as golden files.

    python3 -m venv .venv-eval
    .venv-eval/bin/pip install torch==2.15.0 transformers==5.23.0 gguf==0.19.0 safetensors==0.8.0 datasets==5.2.0 "lm_eval[hf]==0.4.13"
    cd ROOT        # the tasks name their data relative to the working directory

    # the embedded base, and its weights with a tokenizer that adds BOS
    python tests/parity/lm_eval_goldens.py --model examples/gene_ontology/base --runs tiny --out tests/golden/eval/tiny.json
    python tests/parity/lm_eval_goldens.py --model examples/gene_ontology/base --tokenizer tests/golden/eval/bos --runs bos --out tests/golden/eval/bos.json

    # real weights on the whole of shared/data/mcq and pubmedqa; `--first` cuts what is written, not what is run
    python tests/parity/lm_eval_goldens.py --gguf ../shared/models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf --work FOLDER \\
        --tasks tests/golden/eval/tasks_shared --runs shared --out full.json --compact tests/golden/eval/smollm2.json --first 60

    # how the harness's own medical tasks render rows with the real data sets' fields
    python tests/parity/lm_eval_goldens.py --prompts tests/golden/eval/prompts.json

The name of this file is not `lm_eval.py`, as Python would then import it instead of the harness. Everything is float32 on the CPU,
batch size 1. The weights are converted to float32 in a temporary folder; the tokenizer there is of class PreTrainedTokenizerFast, so it is
tokenizer.json as it stands (LlamaTokenizer of transformers 5 builds another one from the vocabulary). Shape of a file:

    versions, model, tokenizer, bootstrap_iters
    runs[]
      name, options      of simple_evaluate (apply_chat_template, num_fewshot, limit …)
      results            per task and group: METRIC,FILTER and its stderr, as in results_*.json; n-shot, higher_is_better, task_hashes
      items{TASK: []}    in the order of samples_*.jsonl: all documents, then all again for the next filter
        id, gold         gold is the target as text, its first 60 characters
        ll, greedy       of each request: with acc_mutual_info those with an empty context behind
        text, filtered   of generate_until instead: the answer, and what the filter makes of it; `filter` its name
        prompt           the first 12 digits of prompt_hash
        metrics          METRIC -> value; pred (argmax of ll) is ours
"""

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_CACHE=tempfile.mkdtemp(), LMEVAL_LOG_LEVEL="ERROR")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden/eval"
VERSIONS = ("lm_eval", "transformers", "torch", "datasets", "tokenizers", "jinja2")
LONGEST_GOLD = 60
"""Longer targets are cut in the files: the texts of loglikelihood_rolling."""
PUBMEDQA_FIRST = 100
CHAT = {"apply_chat_template": True, "system_instruction": "You answer in one letter."}
RUNS = {
    "tiny": [
        ("plain", ["eq_group", "eq_letters_two_shot", "eq_continuation", "eq_spaces", "eq_statements", "eq_several_answers", "eq_prefix",
                   "eq_long", "eq_last_word", "eq_texts", "eq_generate", "eq_generate_several"], {}),
        ("chat, several turns", ["eq_letters_two_shot", "eq_prefix", "eq_generate"], {**CHAT, "fewshot_as_multiturn": True}),
        ("chat, one turn", ["eq_letters_two_shot", "eq_statements"], {**CHAT, "fewshot_as_multiturn": False}),
        ("system instruction without chat template", ["eq_yes_no", "eq_letters"], {"system_instruction": "Answer.", "limit": 3}),
        ("--num_fewshot 1, --limit 0.1", ["eq_letters"], {"num_fewshot": 1, "limit": 0.1}),
    ],
    "bos": [("plain", ["eq_yes_no", "eq_letters_two_shot", "eq_continuation", "eq_spaces", "eq_long", "eq_texts", "eq_generate"], {})],
    "shared": [("plain", ["eq_mmlu_medical", "eq_pubmedqa"], {})],
    "mmlu": [("plain", ["eq_mmlu_medical"], {})],
    "pubmedqa": [("plain", ["eq_pubmedqa"], {})],
}
BUILT_IN = {
    "medqa_4options": ("medqa/medqa.yaml", {"test": "medqa_4options", "train": "medqa_4options", "validation": "medqa_4options"}, 0),
    "medmcqa": ("medmcqa/medmcqa.yaml", {"validation": "medmcqa", "train": "medmcqa"}, 0),
    "pubmedqa": ("pubmedqa/pubmedqa.yaml", {"test": "pubmedqa", "train": "pubmedqa", "validation": "pubmedqa"}, 0),
}
for subject in ("anatomy", "professional_medicine"):
    splits = {"test": f"mmlu_{subject}", "dev": f"mmlu_{subject}_dev"}
    for shots in (0, 2):
        BUILT_IN[f"mmlu_{subject}/{shots}"] = (f"mmlu/default/mmlu_{subject}.yaml", splits, shots)
        BUILT_IN[f"mmlu_{subject}_continuation/{shots}"] = (f"mmlu/continuation/mmlu_{subject}.yaml", splits, shots)


def versions():
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def prepared(model, tokenizer, folder):
    """A folder with the weights in float32 and the tokenizer as its tokenizer.json says."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    for name in ("added_tokens_decoder", "legacy", "sp_model_kwargs"):
        settings.pop(name, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(tokenizer / "tokenizer.json", folder)
    if (model / "generation_config.json").exists():
        shutil.copy(model / "generation_config.json", folder)


def prepared_gguf(file, folder):
    """The same of a GGUF file, as the benches dequantize it. Made once."""
    if not (folder / "tokenizer.json").exists():
        sys.path.insert(0, str(HERE.parent / "benches"))
        from gguf_to_hf import dequantized, read_tokenizer

        folder.mkdir(parents=True, exist_ok=True)
        dequantized(file).save_pretrained(folder)
        read_tokenizer(file).save_pretrained(folder)


def number(value, digits=6):
    """A number for a golden file: numpy's as Python's, rounded."""
    if isinstance(value, (tuple, list, np.ndarray)):
        return [number(one, digits) for one in value]
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    return round(float(value), digits) if isinstance(value, (float, np.floating)) else value


def item(sample, digits):
    found = {"id": sample["doc_id"], "gold": str(sample["target"])[:LONGEST_GOLD], "prompt": sample["prompt_hash"][:12]}
    answers = [one[0] for one in sample["resps"]]
    if isinstance(answers[0], tuple):
        lls = [ll for ll, _ in answers]
        found["ll"], found["greedy"] = number(lls, digits), "".join(str(int(greedy)) for _, greedy in answers)
        if len(answers) > 1:
            choices = len(lls) // 2 if "acc_mutual_info" in sample["metrics"] else len(lls)
            found["pred"] = int(np.argmax(lls[:choices]))
    elif isinstance(answers[0], str):
        found["text"], found["filter"], found["filtered"] = answers[0], sample["filter"], sample["filtered_resps"][0]
    else:
        found["ll"] = number(answers, digits)
    found["metrics"] = {name: number(sample[name]) for name in sample["metrics"]}
    return found


def task_hash(samples):
    from lm_eval.utils import hash_string

    return hash_string("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples))


def one_run(lm, manager, name, tasks, options, bootstrap, digits):
    started = time.perf_counter()
    found = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=bootstrap, **options)
    seconds = time.perf_counter() - started
    samples = found["samples"]
    results = {task: {key: number(value, 8) for key, value in metrics.items()} for task, metrics in found["results"].items()}
    forward = sum(len(one["resps"]) for task in samples.values() for one in task)
    print(f"{name}: {sum(map(len, samples.values()))} samples, {forward} requests in {seconds:.1f} s, "
          f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return {
        "name": name,
        "tasks": tasks,
        "options": options,
        "results": results,
        **{key: found[key] for key in ("group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")},
        "task_hashes": {task: task_hash(lines) for task, lines in samples.items()},
        "items": {task: [item(one, digits) for one in lines] for task, lines in samples.items()},
    }


def written(path, head, runs, first=None):
    """Compact JSON, one item a line, so that a difference can be read."""
    def most(task):
        return max(first, PUBMEDQA_FIRST) if first and task == "eq_pubmedqa" else first

    cut = [{**run, "items": {task: lines[: most(task)] for task, lines in run["items"].items()}} for run in runs]
    text = json.dumps({**head, "runs": cut}, ensure_ascii=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace('{"id":', '\n{"id":') + "\n")


def shortened(full, path, first):
    """A file with the first items of each task of a full one, five decimals."""
    head = json.loads(full.read_text())
    runs = head.pop("runs")
    for lines in (lines for run in runs for lines in run["items"].values()):
        for one in lines:
            one["ll"] = number(one["ll"], 5)
    written(path, head, runs, first)


def rendered(path):
    """The requests of the harness's own tasks on rows of ours with the real fields."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    tasks = {}
    for name, (yaml, splits, shots) in BUILT_IN.items():
        files = {split: f"tests/golden/eval/data/{file}.jsonl" for split, file in splits.items()}
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "task.yaml"
            local.write_text(json.dumps({"include": str(own / yaml), "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}))
            # Inside of a run the samples carry the hashes, so a stand-in answers the requests.
            found = simple_evaluate(model="dummy", tasks=[str(local)], task_manager=TaskManager(include_defaults=False), num_fewshot=shots, bootstrap_iters=0)
        (samples,) = found["samples"].values()
        tasks[name] = {"data": files, "num_fewshot": shots, "version": list(found["versions"].values())[0],
                       "metrics": list(list(found["higher_is_better"].values())[0]),
                       "items": [{"id": one["doc_id"], "target": one["target"], "context": one["arguments"][0][0],
                                  "continuations": [argument[1] for argument in one["arguments"]],
                                  **{key: one[key] for key in ("doc_hash", "prompt_hash", "target_hash")}} for one in samples]}
    text = json.dumps({"versions": versions(), "tasks": tasks}, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text.replace('{"id":', '\n{"id":') + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face's layout, any float type")
    parser.add_argument("--tokenizer", type=Path, help="another folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--gguf", type=Path, help="a GGUF file instead of --model")
    parser.add_argument("--work", type=Path, help="where the dequantized folder is kept (--gguf)")
    parser.add_argument("--tasks", type=Path, default=GOLDEN / "tasks", help="the folder of task files")
    parser.add_argument("--runs", choices=sorted(RUNS))
    parser.add_argument("--batch-size", default="1")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--bootstrap-iters", type=int, default=1000)
    parser.add_argument("--digits", type=int, default=6, help="decimals of the log-likelihoods")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compact", type=Path, help="a second file with the --first items of each task (100 of PubMedQA), five decimals; without --runs made of --out")
    parser.add_argument("--first", type=int)
    parser.add_argument("--prompts", type=Path, help="write the prompts of the built-in tasks, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if given.prompts:
        return rendered(given.prompts)
    if given.compact and not given.runs:
        return shortened(given.out, given.compact, given.first)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.gguf:
            folder = given.work
            prepared_gguf(given.gguf, folder)
        else:
            prepared(given.model, given.tokenizer or given.model, folder)
        lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=given.batch_size)
        manager = TaskManager(include_path=str(given.tasks), include_defaults=False)
        limit = {} if given.limit is None else {"limit": given.limit}
        runs = [one_run(lm, manager, name, tasks, {**options, **limit}, given.bootstrap_iters, given.digits)
                for name, tasks, options in RUNS[given.runs]]
        head = {"versions": versions(), "model": str(given.gguf or given.model), "tokenizer": str(given.tokenizer or given.gguf or given.model),
                "bootstrap_iters": given.bootstrap_iters, "batch_size": given.batch_size, "prefix_token_id": lm.prefix_token_id,
                "max_length": lm.max_length}
    written(given.out, head, runs)
    if given.compact:
        shortened(given.out, given.compact, given.first)


if __name__ == "__main__":
    main()
