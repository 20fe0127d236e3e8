"""The peer's evaluation of a task: lm-evaluation-harness with transformers. Run by bench_eval.py.

Prints one line of JSON: items, seconds of answering them, and their metrics. Loading the model is not counted, as on our side.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", LMEVAL_LOG_LEVEL="ERROR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", type=Path, help="a folder with the task")
    parser.add_argument("task")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(args.threads)
    model = HFLM(pretrained=str(args.model), dtype=args.dtype, device="cpu", batch_size=args.batch_size)
    tasks = TaskManager(include_path=str(args.tasks), include_defaults=False)
    start = time.perf_counter()
    # The standard error of a mean is not bootstrapped, so these draws cost nothing.
    found = simple_evaluate(model=model, tasks=[args.task], task_manager=tasks, limit=args.limit, bootstrap_iters=100)
    seconds = time.perf_counter() - start
    of_task = found["results"][args.task]
    print(json.dumps({"items": found["n-samples"][args.task]["effective"], "seconds": seconds, "acc": of_task["acc,none"]}))


if __name__ == "__main__":
    main()
