"""Published chat templates: what transformers and this program make of each kind of conversation.

    python tests/parity/published_templates.py TEMPLATES [--program target/release/equipoise] [--write TABLE.md] [--verbose]

TEMPLATES is a folder of `.jinja` files; the docstring of `FOUND` says where ours came from. They are not in the repository.
Each conversation is rendered by transformers, the row as it is, and by `equipoise data`. The outcomes:

- same: the text is transformers' (with EOS behind it, where the template does not end the last answer), and the learnt text is
  that of the answers: no word of another turn, every word of an answer that the text has, and of the last answer just what
  stands behind transformers' generation prompt, where the text begins with that.
- adapted: transformers renders the raw row, but what it makes is not what the template is for: JSON text encoded twice, a list
  printed as Python prints it, an answer left out. The text here is transformers' for the row in the other form.
- both refuse, refused here, rendered here only, different.
"""

import argparse
import collections
import concurrent.futures
import copy
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "tests/reported/cases/tiny-base"

# Where the templates of PUBLISHED.md came from: repository and folder, at the snapshot's commit.
FOUND = {
    "trl": ("huggingface/trl", "trl/chat_templates"),
    "axolotl": ("axolotl-ai-cloud/axolotl", "src/axolotl/utils/chat_templates/templates"),
    "minja": ("ochafik/minja", "tests, tests_files"),
}

TOOLS = [{"type": "function", "function": {"name": "locate", "description": "Finds a gene.", "parameters": {
    "type": "object", "properties": {"gene": {"type": "string", "description": "Its symbol."}}, "required": ["gene"]}}}]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(arguments):
    return {"id": "abcdef123", "type": "function", "function": {"name": "locate", "arguments": arguments}}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


U1, A1, U2, A2 = turn("user", "Uone?"), turn("assistant", "Aone."), turn("user", "Utwo?"), turn("assistant", "Atwo.")
SYSTEM = turn("system", "Sone.")
ARGUMENTS = {"gene": "TP53", "n": 2}
RESULT = turn("tool", "17q", tool_call_id="abcdef123", name="locate")


def used(arguments, content="", **more):
    return [U1, turn("assistant", content, tool_calls=[call(arguments)], **more), RESULT, A1]


# Kind, messages, tools, template kwargs.
KINDS = [
    ("plain", [U1, A1], None),
    ("system", [SYSTEM, U1, A1], None),
    ("several turns", [U1, A1, U2, A2], None),
    ("system and several turns", [SYSTEM, U1, A1, U2, A2], None),
    ("the assistant begins", [A1, U1, A2], None),
    ("the assistant begins behind a system turn", [SYSTEM, A1, U1, A2], None),
    ("tools, none called", [U1, A1], TOOLS),
    ("a call, object", used(ARGUMENTS), TOOLS),
    ("a call, JSON text", used(json.dumps(ARGUMENTS)), TOOLS),
    ("a call, no content", used(ARGUMENTS, None), TOOLS),
    ("a call, and more turns", [SYSTEM, *used(ARGUMENTS), U2, A2], TOOLS),
    ("the last turn is a call", used(ARGUMENTS)[:2], TOOLS),
    ("parts", [turn("user", parts("Uone?")), turn("assistant", parts("Aone."))], None),
    ("parts in the user's turn only", [turn("user", parts("Uone?", "Umore.")), A1], None),
    ("reasoning_content", [U1, turn("assistant", "Aone.", reasoning_content="Rone."), U2, turn("assistant", "Atwo.", reasoning_content="Rtwo.")], None),
    ("thoughts in the text", [U1, turn("assistant", "<think>\nRone.\n</think>\n\nAone."), U2, turn("assistant", "<think>\nRtwo.\n</think>\n\nAtwo.")], None),
    ("thoughts and a call", [U1, turn("assistant", "", reasoning_content="Rone.", tool_calls=[call(ARGUMENTS)]), RESULT, turn("assistant", "Atwo.", reasoning_content="Rtwo.")], TOOLS),
    ("an empty answer earlier", [U1, turn("assistant", ""), U2, A2], None),
    ("two questions in a row", [U1, U2, A2], None),
    ("two answers in a row", [U1, A1, A2], None),
]


def adapted(messages):
    """The row in its other forms: arguments as objects or text, parts as text, text as parts."""
    def convert(arguments=None, content=None):
        new = copy.deepcopy(messages)
        for message in new:
            for one in message.get("tool_calls") or []:
                inner = one["function"]
                inner["arguments"] = arguments(inner["arguments"]) if arguments else inner["arguments"]
            if content and message.get("content") is not None:
                message["content"] = content(message["content"])
        return new

    as_object = lambda value: json.loads(value) if isinstance(value, str) else value
    as_text = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    joined = lambda value: "\n".join(part["text"] for part in value) if isinstance(value, list) else value
    wrapped = lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value
    for arguments in (None, as_object, as_text):
        for content in (None, joined, wrapped):
            changed = convert(arguments, content)
            if changed != messages:
                yield changed


def base(folder):
    """The tiny base, with BOS."""
    shutil.copytree(BASE, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["bos_token"] = "<|endoftext|>"
    path.write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def theirs(tokenizer, template, messages, tools, prompt=False):
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:
        return error


def ours(program, folder, template, number, messages, tools):
    work = folder / f"{template.stem}-{number}"
    work.mkdir()
    (work / "rows.jsonl").write_text(json.dumps({"messages": messages, **({"tools": tools} if tools else {})}) + "\n")
    (work / "recipe.yaml").write_text(
        "base:\n  model: ../base\ncompute: f32\nquantization:\n  type: none\ndata:\n  train: rows.jsonl\n  max_seq_len: 1000000\n"
        f"  chat_template: {template}\n"
    )
    done = subprocess.run([program, "data", "recipe.yaml", "--json", "--show", "1"], cwd=work, capture_output=True, text=True)
    shutil.rmtree(work)
    if done.returncode == 0:
        return [(text, learnt) for text, learnt in json.loads(done.stdout)["rows"][0]["segments"]], None
    return None, json.loads(done.stdout).get("error", done.stdout) if done.stdout.startswith("{") else done.stdout + done.stderr


WORDS = re.compile(r"[SUAR](?:one|two|more)\b")


def misplaced(segments, messages, text, prompt):
    """What is wrong with what is learnt, or nothing."""
    learnt = [part for part, is_learnt in segments if is_learnt]
    other = "".join(part for part, is_learnt in segments if not is_learnt)
    for word in WORDS.findall(" ".join(learnt)):
        if word[0] in "SU":
            return f"{word} is learnt"
    for word in set(WORDS.findall(other)):
        if word[0] in "AR" and other.count(word) > 0:
            return f"{word} is not learnt"
    if isinstance(prompt, str) and text.startswith(prompt) and learnt:
        answer = text[len(prompt):].rstrip()
        # Two answers without a header between them are one piece.
        if not learnt[-1].removesuffix("<|im_end|>").rstrip().endswith(answer.removesuffix("<|im_end|>").rstrip()):
            return f"the last answer is {answer!r}, learnt is {learnt[-1]!r}"
    return None


def compare(program, folder, tokenizer, template, number):
    name, messages, tools = KINDS[number]
    source = template.read_text()
    expected = theirs(tokenizer, source, messages, tools)
    segments, refused = ours(program, folder, template, number, messages, tools)
    if isinstance(expected, Exception):
        return ("both refuse", str(expected)) if refused else ("rendered here only", f"{expected!r}")
    if refused:
        return "refused here", str(refused)
    text = "".join(part for part, _ in segments)
    same = lambda other: isinstance(other, str) and text.removesuffix("<|im_end|>").rstrip("\n") == other.removesuffix("<|im_end|>").rstrip("\n") and text.startswith(other.rstrip("\n"))
    prompt = theirs(tokenizer, source, messages[:-1], tools, prompt=True)
    if same(expected):
        wrong = misplaced(segments, messages, expected, prompt) if "{% generation" not in source.replace("{%-", "{%") else None
        return ("different", wrong) if wrong else ("same", "")
    for changed in adapted(messages):
        if same(theirs(tokenizer, source, changed, tools)):
            return "adapted", repr(expected)
    return "different", f"transformers {expected!r}\nours {text!r}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("templates", type=pathlib.Path)
    parser.add_argument("--program", default=str(ROOT / "target/release/equipoise"))
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--only")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    templates = sorted(path.resolve() for path in options.templates.glob("*.jinja") if not options.only or options.only in path.stem)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tokenizer = base(folder / "base")
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            jobs = {(path.stem, number): pool.submit(compare, options.program, folder, tokenizer, path, number)
                    for path in templates for number in range(len(KINDS))}
            outcomes = {key: job.result() for key, job in jobs.items()}
    columns = ["same", "adapted", "both refuse", "rendered here only", "refused here", "different"]
    lines = ["| conversation | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for number, (name, *_) in enumerate(KINDS):
        counts = collections.Counter(outcomes[path.stem, number][0] for path in templates)
        lines.append(f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |")
    total = collections.Counter(outcome for outcome, _ in outcomes.values())
    lines.append("| all | " + " | ".join(str(total[column]) for column in columns) + " |")
    table = "\n".join(lines)
    print(f"{len(templates)} templates\n\n{table}\n")
    bad = collections.defaultdict(list)
    for (stem, number), (outcome, why) in outcomes.items():
        if outcome in ("refused here", "different") or options.verbose and outcome in ("rendered here only", "adapted"):
            bad[stem].append((KINDS[number][0], outcome, why))
    for stem, entries in sorted(bad.items()):
        print(stem)
        for kind, outcome, why in entries:
            print(f"  {kind}: {outcome}: {why}")
    if options.write:
        options.write.write_text(table + "\n")


if __name__ == "__main__":
    main()
