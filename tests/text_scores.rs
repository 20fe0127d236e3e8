//! Scores of texts against `rouge_score`, NLTK, lm-evaluation-harness and the rules of `SQuAD`; and what must hold of any text.
//!
//! `tests/parity/text_scores.py` writes the golden files.

use crate::support::{floats, golden, json};
use equipoise::text_scores::{
    ExactMatch, RollingLikelihood, Rouge, RougeTokens, Score, Squad, normalize_answer, perplexity, porter,
};
use onig::{Regex, RegexOptions, Syntax};
use serde_json::Value;

/// The scores are quotients of small counts, stored with twelve decimals.
const TOLERANCE: f64 = 1e-9;

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    array(value).iter().map(text).collect()
}

fn assert_close(found: &[f64], expected: &[f64], what: &Value) {
    assert_eq!(found.len(), expected.len(), "{what}");
    // Perplexities may be large.
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= TOLERANCE * b.abs().max(1.0);
    assert!(found.iter().zip(expected).all(close), "{found:?} for {expected:?}: {what}");
}

fn numbers(rouge: &Rouge) -> Vec<f64> {
    let of = |score: Score| [score.precision, score.recall, score.f_measure];
    [rouge.rouge1, rouge.rouge2, rouge.rouge_l].into_iter().flat_map(of).collect()
}

#[test]
fn stems_are_those_of_nltk() {
    let expected = json(&golden("eval/porter_words.json"));
    let pairs = text(&expected["words"]).split(' ').zip(text(&expected["stems"]).split(' '));
    let mut count = 0;
    for (word, stem) in pairs {
        let found = porter::stem(word);
        // An empty stem is stored as a hyphen.
        assert_eq!(if found.is_empty() { "-" } else { &found }, stem, "{word}");
        count += 1;
    }
    assert_eq!(count, 8000);
}

#[test]
fn rouge_is_that_of_rouge_score() {
    let expected = json(&golden("eval/rouge.json"));
    let cases = array(&expected["cases"]);
    assert_eq!(cases.len(), 1000);
    for case in cases {
        let (reference, prediction) = (text(&case[0]), text(&case[1]));
        assert_close(&numbers(&Rouge::of_texts(reference, prediction, false)), &floats(&case[2]), case);
        // Left out where the stems change nothing.
        let stemmed = case.get(3).unwrap_or(&case[2]);
        assert_close(&numbers(&Rouge::of_texts(reference, prediction, true)), &floats(stemmed), case);
    }
    for case in array(&expected["best"]) {
        let references: Vec<RougeTokens> = texts(&case[0]).iter().map(|text| RougeTokens::of(text, true)).collect();
        let best = Rouge::best_of(&references, &RougeTokens::of(text(&case[1]), true)).unwrap();
        assert_close(&numbers(&best), &floats(&case[2]), case);
    }
}

#[test]
fn exact_match_is_that_of_the_harness() {
    let expected = json(&golden("eval/exact_match.json"));
    let regex = |pattern: &Value| {
        Regex::with_options(text(pattern), RegexOptions::REGEX_OPTION_NONE, Syntax::python()).unwrap()
    };
    let patterns: Vec<Vec<Regex>> =
        array(&expected["patterns"]).iter().map(|list| array(list).iter().map(regex).collect()).collect();
    let cases = array(&expected["exact_match"]);
    assert!(cases.len() > 900);
    for case in cases {
        let flags: Vec<bool> = text(&case[2]).chars().map(|flag| flag == '1').collect();
        let options = ExactMatch { ignore_case: flags[0], ignore_punctuation: flags[1], ignore_numbers: flags[2] };
        let ignored = case[3].as_i64().and_then(|index| usize::try_from(index).ok()).map(|index| &patterns[index]);
        let remove = |text: &str| {
            let mut regexes = ignored.into_iter().flatten();
            let first = regexes.next().map_or_else(|| text.to_owned(), |regex| regex.replace_all(text, ""));
            // Between two patterns numpy drops NUL at the end.
            regexes.fold(first, |text, regex| regex.replace_all(text.trim_end_matches('\0'), ""))
        };
        let found = options.matches_any_without(text(&case[0]), &texts(&case[1]), remove);
        assert_eq!(found, case[4] == 1, "{case}");
        if ignored.is_none() {
            assert_eq!(options.matches_any(text(&case[0]), &texts(&case[1])), found, "{case}");
        }
    }
}

#[test]
fn answers_are_compared_as_squad_does() {
    let expected = json(&golden("eval/exact_match.json"));
    let cases = array(&expected["squad"]);
    assert!(cases.len() > 400);
    for case in cases {
        let (prediction, references) = (text(&case[0]), texts(&case[1]));
        assert_eq!(normalize_answer(prediction), text(&case[2]), "{case}");
        let of = |version: Squad| [version.exact_match(prediction, &references), version.f1(prediction, &references)];
        assert_close(&[of(Squad::V1), of(Squad::V2)].concat(), &floats(&case[3]), case);
    }
}

#[test]
fn perplexities_are_those_of_the_harness() {
    let expected = json(&golden("eval/perplexity.json"));
    for case in array(&expected["rolling"]) {
        let mut sums = RollingLikelihood::default();
        for ((text, ll), words) in texts(&case[0]).into_iter().zip(floats(&case[1])).zip(array(&case[2])) {
            let one = RollingLikelihood::of(text, ll, 1);
            assert_eq!(one.words, words.as_u64().unwrap(), "{text:?}");
            sums.join(one);
        }
        let found = [sums.word_perplexity(), sums.byte_perplexity(), sums.bits_per_byte()];
        // Without a byte, the harness divides by zero.
        assert_close(&found.into_iter().flatten().collect::<Vec<_>>(), &floats(&case[3]), case);
    }
    for case in array(&expected["plain"]) {
        assert_close(&[perplexity(&floats(&case[0])).unwrap()], &[case[1].as_f64().unwrap()], case);
    }
}

/// Texts put together from what the rules look at.
fn odd_texts() -> impl Iterator<Item = String> {
    const PIECES: &[&str] = &[
        "ies", "ied", "eed", "ing", "y", "alli", "logi", "ll", "ion", "s", "e", " ", "the", "A ", "\0", "\u{130}", "é",
        "Σ", "\u{301}", "\u{1c}", "語", "🧬", "-", ".", "7", "\u{212a}", "ß", "_", "\n",
    ];
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    (0..5000).map(move |_| (0..next() % 9).map(|_| PIECES[next() % PIECES.len()]).collect())
}

#[test]
fn any_text_has_scores_within_their_range() {
    let all = ExactMatch { ignore_case: true, ignore_punctuation: true, ignore_numbers: true };
    let mut previous = String::new();
    for text in odd_texts() {
        let (rouge, back) = (Rouge::of_texts(&previous, &text, true), Rouge::of_texts(&text, &previous, true));
        assert!(numbers(&rouge).iter().all(|x| (0.0..=1.0).contains(x)), "{text:?}");
        assert_eq!(rouge.rouge_l.precision, back.rouge_l.recall, "{text:?}");
        assert!(rouge.rouge_l.f_measure <= rouge.rouge1.f_measure && rouge.rouge2.precision <= 1.0, "{text:?}");
        let itself = Rouge::of_texts(&text, &text, true).rouge_l.f_measure;
        assert_eq!(itself, f64::from(u8::from(!RougeTokens::of(&text, true).as_slice().is_empty())), "{text:?}");
        assert!(all.matches(&text, &text) && all.matches(&text, &previous) == all.matches(&previous, &text));
        let normal = normalize_answer(&text);
        assert!(!normal.contains("  ") && normal.trim() == normal, "{text:?}");
        assert_eq!(Squad::V2.f1(&text, &[&text]), 1.0, "{text:?}");
        assert!(porter::stem(&text).chars().count() <= text.to_lowercase().chars().count() + 1, "{text:?}");
        previous = text;
    }
}
