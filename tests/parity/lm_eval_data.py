#!/usr/bin/env python3
"""Write the documents in tests/golden/eval/data, and the tokenizer in tests/golden/eval/bos, for lm_eval_goldens.py.

    python tests/parity/lm_eval_data.py --shared ../shared/data

It takes a few documents from `shared/data` (MMLU's medical subjects and PubMedQA, both MIT; Gene Ontology, CC BY 4.0) and adds some
that are written here: those with trailing blanks, with scripts other than Latin, and with several answers. Same files each time.

`bos/tokenizer.json` is a small tokenizer of Llama 2's make (blanks as U+2581, byte fallback, `<s>` in front), trained on Gene
Ontology's definitions. Its ids fit the embedded base, whose weights it is used with: the numbers mean nothing, but they are numbers.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/eval"
SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine")

SPACES = [
    {"prompt": "The gene symbol of insulin is ", "choices": ["INS", "TP53", "GCG"], "target": "INS"},
    {"prompt": "The gene symbol of glucagon is  ", "choices": ["INS", "GCG", "GIP"], "target": "GCG"},
    {"prompt": "Question: Which hormone lowers blood sugar?\nAnswer:\n", "choices": ["Insulin", "Glucagon"], "target": "Insulin"},
    {"prompt": "Question: Which hormone raises blood sugar?\nAnswer:\t\n ", "choices": ["Insulin", "Glucagon"], "target": "Glucagon"},
    {"prompt": "A no-break space ends this\u00a0", "choices": ["line", "Zeile \u00fc", "\u884c"], "target": "line"},
    {"prompt": "\u0394\u03b9\u03b1\u03b2\u03ae\u03c4\u03b7\u03c2: \u03b1, \u03b2 or \u03b3 cells?", "choices": ["\u03b2", "\u03b1", "\u03b3-cells"], "target": "\u03b2"},
    {"prompt": "\u7cd6\u5c3f\u75c5\u7684\u539f\u56e0\u662f", "choices": ["\u80f0\u5c9b\u7d20\u4e0d\u8db3", "\u611f\u67d3", "na\u00efve \U0001f9ec cells"], "target": "\u611f\u67d3"},
    {"prompt": "  leading blanks, and e\u0301 in two code points:", "choices": ["e\u0301tude", "\u00e9tude"], "target": "\u00e9tude"},
    {"prompt": "x", "choices": [" two blanks", "no blank", "a much longer choice that goes on for a while"], "target": "no blank"},
]
STATEMENTS = [
    ("Insulin is made by the beta cells of the pancreas.", 1), ("The femur is a bone of the arm.", 0), ("DNA contains uracil.", 0),
    ("The mitral valve has two cusps.", 1), ("Vitamin K is needed for blood clotting.", 1), ("The liver makes insulin.", 0),
    ("Haemoglobin carries oxygen.", 1), ("Human red blood cells have a nucleus.", 0), ("Na\u00efve T cells mature in the thymus.", 1),
    ("\u03b1-helices are secondary structures.", 1), ("Mitochondria have their own DNA.", 1), ("Viruses divide by mitosis.", 0),
]
GENERATE = [
    {"question": "symbol of tumor protein p53", "answer": " A Type.", "answers": ["TP53", "p53"]},
    {"question": "symbol of insulin", "answer": "NONE", "answers": ["INS", "KILLIN"]},
    {"question": "mitochondrial genome maintenance", "answer": "7", "answers": ["mitochondrion", "The mitochondrion."]},
    {"question": "reproduction", "answer": "The production", "answers": ["the"]},
    {"question": "Gene set: AKT3, LONP1, MEF2A", "answer": "process", "answers": ["process", "pathway"]},
    {"question": "\u03b2-catenin \u2192 Wnt", "answer": "d", "answers": ["zero", "0"]},
]


def rows(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write(name, documents):
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
    (OUT / "data" / f"{name}.jsonl").write_text("".join(lines))


def questions(shared, subject, longest=420):
    found = rows(shared / "mcq" / f"mmlu_{subject}.jsonl")
    return [row for row in found if len(row["question"]) + sum(map(len, row["choices"])) < longest]


def cut(text, most):
    """At most so many characters, cut behind a sentence or a word."""
    if len(text) <= most:
        return text
    piece = text[:most]
    return piece[: piece.rfind(". ") + 1] or piece[: piece.rfind(" ")]


def letters(shared):
    chosen = {subject: questions(shared, subject) for subject in SUBJECTS}
    write("letters", [row for subject in SUBJECTS for row in chosen[subject][:5]])
    write("letters_dev", [chosen[subject][10] for subject in SUBJECTS[:4]])
    write("continuation", [row for subject in SUBJECTS for row in chosen[subject][20:24]])


def abstracts(shared):
    wanted, chosen = {"yes": 5, "no": 4, "maybe": 3}, []
    for row in rows(shared / "pubmedqa/train500.jsonl"):
        if wanted[row["answer"]] and (not row["question"].isascii() or len(chosen) < 9 or row["answer"] == "maybe"):
            wanted[row["answer"]] -= 1
            contexts = [cut(context, 260) for context in row["contexts"][:2]]
            chosen.append({"id": row["id"], "question": row["question"], "contexts": contexts, "answer": row["answer"]})
    write("abstracts", chosen)
    return chosen


def terms(shared):
    sets = [row for row in rows(shared / "gene_ontology/go_bp_genesets_direct.jsonl") if 60 < len(row["definition"] or "") < 300]
    sets = sets[5:2405:80]
    made = []
    for index, row in enumerate(sets):
        others = [sets[(index + step) % len(sets)]["term"] for step in (3, 7, 11)]
        made.append({"definition": row["definition"], "genes": row["genes"][:6], "term": row["term"], "others": others})
    write("terms", made)


def texts(shared):
    definitions = [row["definition"] for row in rows(shared / "gene_ontology/go_definitions.jsonl") if row["definition"]]
    made = [definitions[0], "\n".join(definitions[1:4]), " ".join(definitions[4:22]), "\n\n".join(definitions[22:62])]
    made += ["\u03b1- und \u03b2-Zellen, na\u00efve T-Zellen (\u2264 5 \u00b5m) \u2026 \u7cd6\u5c3f\u75c5 \U0001f9ec", " two blanks  and a tab\t\n", "A"]
    write("texts", [{"text": text} for text in made])


def long_passages(chosen):
    made = [{"passage": row["contexts"][0], "question": row["question"], "answer": row["answer"], "times": times}
            for row, times in zip(chosen, (1, 4, 6, 8, 12, 16))]
    write("long", made)


def built_in(shared):
    """Rows with the field names of the real data sets, filled from what there is."""
    some = [row for subject in SUBJECTS for row in questions(shared, subject, 300)[30:31]][:5]
    write("medqa_4options", [{"id": f"test-{n:05d}", "sent1": row["question"], "sent2": "", **{f"ending{i}": c for i, c in enumerate(row["choices"])},
                              "label": row["answer"]} for n, row in enumerate(some)])
    write("medmcqa", [{"id": f"{n:08x}", "question": row["question"], **dict(zip(("opa", "opb", "opc", "opd"), row["choices"])), "cop": row["answer"],
                       "choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None} for n, row in enumerate(some)])
    few = rows(shared / "pubmedqa/train500.jsonl")[20:25]
    write("pubmedqa", [{"QUESTION": row["question"], "CONTEXTS": [cut(c, 200) for c in row["contexts"]], "LABELS": ["BACKGROUND"], "MESHES": [],
                        "YEAR": "2010", "reasoning_required_pred": row["answer"], "reasoning_free_pred": row["answer"],
                        "final_decision": row["answer"], "LONG_ANSWER": cut(row["long_answer"], 80)} for row in few])
    for subject in ("anatomy", "professional_medicine"):
        found = questions(shared, subject, 700)[40:48]
        made = [{"question": row["question"], "subject": subject, "choices": row["choices"], "answer": row["answer"]} for row in found]
        made[1]["question"] = f"  {made[1]['question']}\n"
        write(f"mmlu_{subject}", made[:5])
        write(f"mmlu_{subject}_dev", made[5:])


def bos_tokenizer(shared):
    texts = [row["definition"] for row in rows(shared / "gene_ontology/go_definitions.jsonl")[:4000] if row["definition"]]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    # Words apart while it is trained; afterwards there is no pre-tokenizer, as in Llama 2.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    names = special + [f"<0x{byte:02X}>" for byte in range(256)]
    names += [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if token not in special]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in model["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    folder = OUT / "bos"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "clean_up_tokenization_spaces": False, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data", help="the folder with mcq, pubmedqa and gene_ontology")
    shared = parser.parse_args().shared
    (OUT / "data").mkdir(parents=True, exist_ok=True)
    letters(shared)
    long_passages(abstracts(shared))
    terms(shared)
    texts(shared)
    write("spaces", SPACES)
    write("statements", [{"statement": statement, "label": label} for statement, label in STATEMENTS])
    write("generate", GENERATE)
    built_in(shared)
    bos_tokenizer(shared)


if __name__ == "__main__":
    main()
