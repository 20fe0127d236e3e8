#!/usr/bin/env python3
"""Scores of texts by the programs that published numbers come from.

    pip install rouge_score==0.1.2 nltk==3.10.4 lm_eval==0.4.13 transformers==4.57.1
    python tests/parity/text_scores.py [--data ../shared/data/gene_ontology]

Writes four files to tests/golden/eval: `porter_words.json` (NLTK's default stemmer), `rouge.json` (`rouge_score`),
`exact_match.json` (lm_eval's `exact_match`, SQuAD's F1 in lm_eval and, for version 2, in transformers 4) and
`perplexity.json` (lm_eval). Words and texts are from the Gene Ontology (CC BY 4.0), or made here. The same versions and data
give the same bytes.
"""

import argparse
import collections
import itertools
import json
import pathlib
import random
import re
from importlib.metadata import version
from types import SimpleNamespace

from lm_eval.api import metrics
from lm_eval.api.task import PerplexityTask
from lm_eval.tasks.qasper.metrics import f1_abstractive
from lm_eval.tasks.qasper.metrics import normalize_answer as normalize_v1
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from transformers.data.metrics.squad_metrics import get_raw_scores

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/eval"
SOURCE = "Words and texts of the Gene Ontology (geneontology.org), CC BY 4.0, changed in part; others made by the script"
WORDS = 8000
PAIRS = 1000
TYPES = ["rouge1", "rouge2", "rougeL"]

# Every suffix of the rules, on stems of different measures and endings.
STEMS = """a e i o u y b t ab ay by fl spl tr sky ho hop fil fail fall hiss fizz tann rol roll control cell cel label model
relat condit rat val hesit digit conform radic differ vil analog oper feud decis hope call form sens reviv allow infer air gyr
adjust defens irrit replac depend adopt commun activ angul effect probat ceas geo bio theo gen nucle methyl kin lys pept trans
play enjoy say obey repl happ die lie tie dye agre fre s ss es sess yy syz toy""".split()
SUFFIXES = """s sses ies ied eed ed ing at ated bling izing y ally ational tional enci ency ancy izer izers abli ably alli ently ely
ously ization ation ations ator alism iveness fulness ousness ality ivity ibility fully ology logical icate ative alize icity
ical ful ness al ance ence er ic able ible ant ement ment ent sion tion ion ou ism ate iti ous ive ize e ll lle yed ying""".split()
GENERAL = """skies sky dying lying tying news innings inning outings outing cannings canning howe proceed exceed succeed proceeds
exceeded succeeding spy spies spied fly flies flied try tries tried cry cries die dies died tie ties tied lie lies lied vie vied
pie pies enjoy enjoys enjoyed enjoyment employ employer employment boy boys buoy gray grayer valley valleys abbey turkey
university universal universe organization organ organic organism generate general generic genus genera gene genes genetic
genetics matrices matrix analyses analysis bases basis data datum mitochondria mitochondrial mitochondrion bacteria species
series process processes processing access accesses compass kiss kissed kissing buzz buzzed fizzled missing called calling rolled
controlled controlling controller patrolled travelled agreed freed feed bleed speeding seeing being doing going ping king ring
sing singing string strung bed red shed need needed oed ooze used using uses useful usefulness user rate rated rating hope hoped
hoping hopped hopping hopeful hopefully happily happy happiness dry dryly shyness geology theology biology biological archaeology
apology analogous homologous homology logic logical catalog ideology pathology radically basically fully wholly dully beautifully
respectfully colorful possibly probable visibly nobly doubly trembling troubled troubling sized sizing size prized oxidized
oxidation oxidize oxide at ate eat eats eaten added adding odd egg eggs ebb ebbing inning offs ins ups ads axes ox oxen""".split()
OTHERS = """1 12 123 1234 p53 tp53 brca1 il2ra cd8as h3k27me3 5s 100s 10th 3ies 1eed 22ed 11ing a11ing b22ed 4alli yyyy yyyyy ayyyed
sss ssss ies iess aed aing eing ying oing yed xied ied eed aeed""".split()

# Texts at the edges of the rules. The last are long.
EDGES = [
    "", " ", "\n\t", ".", "?!… — ()[]", "a", "A", "an a an", "cell", "Cell!", "the the the the", "the cell the", "cell cell cell cell cell",
    "cells cell's cellular", "RNA", "rna-binding", "RNA binding", "5'-3' exonuclease", "3.14 1,000 2e-5", "H3K27me3/H3K4me1", "p53 & TP53",
    "alpha_beta", "naïve café ΑΣ ΟΔΥΣΣΕΥΣ", "naive cafe", "β-catenin", "TGF-β1 signalling", "TGF b1 signaling", "10 K (kelvin: 10 \u212a)", "10 k",
    "\u0130L-2 \u0130stanbul", "i̇l-2", "IL-2", "ﬁbrin ﬁbre", "fibrin fibre", "ＦＵＬＬ width", "full width", "日本語 タンパク質 DNA 修復", "DNA 修復",
    "е́ кириллица ATP", "zero\u200bwidth", "zero width", "nul\0inside", "nul inside", "tab\tnew\nline\r\u2028sep", "tab new line sep", "🧬 DNA 🧬", "x" * 60,
    "ties dies lies skies", "tie die lie sky", "dying lying tying", "news innings proceed", "ss ies eed", "aing ssed yyyy", "A B C D E F G", "G F E D C B A",
    "a b a b a b", "b a b a b a", "one two three four five", "five four three two one", "regulation of cell process", "positive regulation of transport",
    " ".join("abcdefghij"[i * i % 7] for i in range(150)), " ".join("abcdefghij"[i * 3 % 8] for i in range(140)),
]
ENDINGS = [("ion", "ing"), ("ing", "ed"), ("s", ""), ("al", "ally"), ("ic", "ically"), ("e", "es"), ("y", "ies"), ("n", "ns")]

# Patterns to ignore: of nq_open, gsm8k, and others.
PATTERNS = [[r"\b(?:The |the |An |A |The |a |an )"], [",", r"\$", "(?s).*#### ", r"\.$"], [r"\(.*?\)", r"\s+"], [r"^\s+|\s+$"]]
ANSWERS = """TP53|tp53|TP-53|TP 53.| TP53|TP53 |the TP53 gene|A gene|an|The|a the an|yes|Yes.|no|maybe|1,234|$1234.|#### 42|so 6*7=42\n#### 42|42|42.0|
(A)|A|A.|B|İ|i|i̇|İİ|ΟΔΟΣ|οδος|οδοσ|ﬁ|K|\u212a|k|é|É|e\u0301|the\u0301|thé|theory|a_b|a-b|ab|a.b|the-end|x\x1cy|x y|x\u00a0y|x\u3000y|x\u200by|x\0|x|x\0\0|İ\0|İx\0|x\0.|x\0-1|
\0|...|_|'s|nucleus|The nucleus|the nucleus (cell)|nucleus,|Nucleus of the cell|cell nucleus cell|“nucleus”|«nucleus»|日本|日本 語|a日本|12th|5′|²|½|x²""".split("|")
# Compared under every choice of options.
NUMBERED = [("12th", "th"), ("x²3", "x²"), ("x²", "x"), ("½", ""), ("٣", ""), ("P-53.", "p"), ("3.14", "314"), ("İ5", "i")]
LIKELIHOOD_TEXTS = [
    "", " ", "a", "one two", " lead", "trail \n", "two  spaces", "tab\tand\nnew\r\nline", "nbsp\u00a0here", "unit\x1fsep", "zero\u200bwidth", "é ü ß", "日本 語",
    "🧬 x", "mongolian\u180evowel", "next\x85line", "line\u2028sep",
]


def gene_ontology(folder):
    """Terms and definitions, each term once; those without a definition are left out."""
    rows = {}
    for name in ("go_bp_genesets_direct.jsonl", "go_definitions.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["definition"]:
                rows[row["term"]] = row["definition"]
    return sorted(rows.items())


def write(name, **content):
    packages = ("rouge_score", "nltk", "lm_eval", "transformers", "numpy")
    head = {"made_by": "tests/parity/text_scores.py", "source": SOURCE, "versions": {package: version(package) for package in packages}}
    text = json.dumps({**head, **content}, separators=(",", ":"))
    # A case a line.
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(text.replace("],[", "],\n[") + "\n")
    print(f"{name}: {len(text) // 1000} kB,", ", ".join(f"{len(value)} {key}" for key, value in content.items() if isinstance(value, list)))


def porter_words(rows):
    made = {stem + suffix for stem in STEMS for suffix in SUFFIXES} | set(GENERAL) | set(OTHERS)
    counts = collections.Counter(word for row in rows for text in row for word in re.findall("[a-z0-9]+", text.lower()))
    default, martin = PorterStemmer(), PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)
    common = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(word) <= 20]
    composed = sorted(made - set(GENERAL) - set(OTHERS))
    random.Random(1).shuffle(composed)
    # Where NLTK's stems are not those of Porter's own program.
    departing = [word for word in common + composed if default.stem(word) != martin.stem(word)]
    words = list(dict.fromkeys(GENERAL + OTHERS + departing[:900] + composed[:1600] + common))[:WORDS]
    words.sort()
    write("porter_words.json", words=" ".join(words), stems=" ".join(default.stem(word) or "-" for word in words))


def changed(text, chance):
    """The text with words left out, repeated, exchanged, written otherwise or with another ending."""
    words = text.split(" ")
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(words))
        kind = chance.randrange(6)
        if kind == 0 and len(words) > 1:
            del words[at]
        elif kind == 1:
            words.insert(chance.randrange(len(words) + 1), words[at])
        elif kind == 2:
            other = chance.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        elif kind == 3:
            words[at] = chance.choice([words[at].upper(), words[at].title(), words[at] + ",", f"({words[at]})", words[at].replace("-", " ")])
        else:
            for old, new in ENDINGS:
                if words[at].endswith(old):
                    words[at] = words[at][: len(words[at]) - len(old)] + new
                    break
    return " ".join(words)


def rouge(rows):
    chance = random.Random(2)
    pairs = [(text, text) for text in EDGES] + [tuple(chance.sample(EDGES, 2)) for _ in range(60)]
    pairs += [(a, b) for a, b in zip(EDGES, EDGES[1:])]
    short = [(term, definition) for term, definition in rows if len(definition) < 110]
    pairs += [(chance.choice(rows)[0], text) for text in EDGES]
    while len(pairs) < PAIRS:
        (term, definition), at = chance.choice(short), chance.randrange(len(rows) - 3)
        pairs += [(term, definition), (definition, changed(definition, chance)), (term, changed(term, chance)), (rows[at][0], rows[at + chance.randint(1, 3)][0])]
    scorers = [RougeScorer(TYPES, use_stemmer=stemmer) for stemmer in (False, True)]

    def values(score):
        return [round(value, 12) for kind in TYPES for value in score[kind]]

    cases = []
    for reference, prediction in pairs[:PAIRS]:
        plain, stemmed = (values(scorer.score(reference, prediction)) for scorer in scorers)
        cases.append([reference, prediction, plain] + ([stemmed] if stemmed != plain else []))
    best = []
    for _ in range(40):
        term, definition = chance.choice(short)
        references = [term, changed(definition, chance), chance.choice(EDGES[:-2])][: chance.randint(1, 3)]
        prediction = changed(chance.choice([term, definition]), chance)
        best.append([references, prediction, values(scorers[1].score_multi(references, prediction))])
    # Of equal F-measures the first counts, though precision and recall differ.
    ties = ["alpha beta", "alpha beta gamma delta one two three four"]
    best += [[refs, "alpha beta gamma delta", values(scorers[1].score_multi(refs, "alpha beta gamma delta"))] for refs in (ties, ties[::-1])]
    write("rouge.json", cases=cases, best=best)


def similar(text, chance):
    """An answer that some of the options make equal."""
    ways = [str.upper, str.title, lambda s: s + ".", lambda s: "the " + s, lambda s: s + " ", lambda s: s.replace(" ", "-"), lambda s: s + "1",
            lambda s: "A " + s, lambda s: s.replace(" ", "  "), lambda s: s + " (x)", lambda s: s.swapcase(), lambda s: s.split(" ")[-1], lambda s: s + "\0"]
    for _ in range(chance.randint(0, 2)):
        text = chance.choice(ways)(text)
    return text


def exact_match(rows):
    chance = random.Random(3)
    answers = [answer.lstrip("\n") for answer in ANSWERS]
    terms = [term for term, _ in rows if len(term) < 40]
    items = [(a, [b]) for a in answers for b in answers if a != b and metrics.exact_match_hf_evaluate([a], [b], None, True, True)["exact_match"]]
    items += [(answer, [answer]) for answer in answers] + [(answer, [chance.choice(answers)]) for answer in answers]
    for _ in range(300):
        own = chance.choice(answers + terms[:1] * 30) if chance.random() < 0.4 else chance.choice(terms)
        items.append((similar(own, chance), [similar(own, chance), *(similar(chance.choice(terms + answers), chance) for _ in range(chance.randint(0, 2)))]))
    matches, squad = [], []
    for prediction, reference in NUMBERED:
        for options in itertools.product([False, True], repeat=3):
            score = metrics.exact_match_hf_evaluate([prediction], [reference], None, *options)["exact_match"]
            matches.append([prediction, [reference], "".join("01"[option] for option in options), -1, int(score)])
    for prediction, references in items:
        for _ in range(2):
            options = [chance.random() < 0.6, chance.random() < 0.6, chance.random() < 0.3]
            pattern = chance.choice([-1, -1, *range(len(PATTERNS))])
            regexes = None if pattern < 0 else PATTERNS[pattern]
            score = metrics.exact_match_hf_evaluate([prediction] * len(references), references, regexes, *options)["exact_match"]
            matches.append([prediction, references, "".join("01"[option] for option in options), pattern, int(score > 0)])
        example = SimpleNamespace(qas_id=0, answers=[{"text": reference} for reference in references])
        exact, f1 = get_raw_scores([example], {0: prediction})
        v1 = [max(int(normalize_v1(prediction) == normalize_v1(reference)) for reference in references),
              max(f1_abstractive([prediction], [reference]) for reference in references)]
        squad.append([prediction, references, normalize_v1(prediction), [*(round(x, 12) for x in (*v1, exact[0], f1[0]))]])
    write("exact_match.json", patterns=PATTERNS, exact_match=matches, squad=squad)


def perplexities(rows):
    chance = random.Random(4)
    groups, plain = [], []
    for size in [1] * len(LIKELIHOOD_TEXTS) + [2, 3, 5, 8, 13, 21]:
        texts = [LIKELIHOOD_TEXTS[len(groups)]] if size == 1 else [chance.choice(LIKELIHOOD_TEXTS + [chance.choice(rows)[0]]) for _ in range(size)]
        lls = [round(-chance.expovariate(0.05), 6) for _ in texts]
        words, units = ([count(text) for text in texts] for count in (PerplexityTask.count_words, PerplexityTask.count_bytes))
        scores = [metrics.weighted_perplexity(list(zip(lls, words)))]
        if sum(units):
            scores += [metrics.weighted_perplexity(list(zip(lls, units))), metrics.bits_per_byte(list(zip(lls, units)))]
        groups.append([texts, lls, words, scores])
        plain.append([lls, metrics.perplexity(lls)])
    write("perplexity.json", rolling=groups, plain=plain)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared/data/gene_ontology")
    rows = gene_ontology(parser.parse_args().data)
    porter_words(rows)
    rouge(rows)
    exact_match(rows)
    perplexities(rows)


main()
