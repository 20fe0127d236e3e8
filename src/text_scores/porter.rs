//! Porter's stemmer, as NLTK's `PorterStemmer` has it by default.
//!
//! Source: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the departures that NLTK names
//! `NLTK_EXTENSIONS`: a table of irregular words, words of one or two letters stay, `ies` and `ied` of four-letter words give
//! `ie`, `y` becomes `i` after any consonant but the first letter, `alli` is taken off before the rest of step 2, `bli` replaces
//! `abli`, `fulli` and `logi` are suffixes, and a word of a vowel and a consonant counts as short. Snowball's "porter" has only
//! some of them, so its stems differ for about 1% of English words.

/// Words that do not go through the rules, with their stems.
const IRREGULAR: &[(&str, &str)] = &[
    ("skies", "sky"),
    ("sky", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Suffixes and what replaces them, where the stem before has a measure of 1 or more.
const STEP_2: &[(&str, &str)] = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

/// As [`STEP_2`].
const STEP_3: &[(&str, &str)] =
    &[("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

/// Suffixes that fall off where the stem before has a measure of 2 or more.
const STEP_4: &[(&str, &str)] = &[
    ("al", ""),
    ("ance", ""),
    ("ence", ""),
    ("er", ""),
    ("ic", ""),
    ("able", ""),
    ("ible", ""),
    ("ant", ""),
    ("ement", ""),
    ("ment", ""),
    ("ent", ""),
    ("ou", ""),
    ("ism", ""),
    ("ate", ""),
    ("iti", ""),
    ("ous", ""),
    ("ive", ""),
    ("ize", ""),
];

/// The stem of a word, in lower case; it may be empty.
///
/// Equal to `nltk.stem.porter.PorterStemmer().stem(word)` of NLTK 3.10.
pub fn stem(word: &str) -> String {
    let lower = word.to_lowercase();
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == lower) {
        return (*stem).to_owned();
    }
    if word.chars().nth(2).is_none() {
        return lower;
    }
    let singular = plural(lower);
    let present = past_and_participle(singular);
    let adverb = final_y(present);
    let step_2 = double_suffix(adverb);
    let step_3 = replace(step_2, STEP_3, 1);
    final_l(final_e(last_suffix(step_3)))
}

/// For each letter, whether it is a consonant: no vowel, and `y` only at the start or after a vowel.
fn consonants(word: &str) -> impl Iterator<Item = bool> {
    word.chars().scan(false, |after_consonant, letter| {
        *after_consonant = match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => !*after_consonant,
            _ => true,
        };
        Some(*after_consonant)
    })
}

/// Porter's `m`: in the form `[C](VC)^m[V]` of runs of consonants and vowels, how often a consonant follows a vowel.
fn measure(stem: &str) -> usize {
    let mut after_vowel = false;
    let ends_run = |consonant: &bool| std::mem::replace(&mut after_vowel, !consonant) && *consonant;
    consonants(stem).filter(ends_run).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_with_consonant(stem: &str) -> bool {
    consonants(stem).last().unwrap_or(false)
}

/// Porter's `*d`: the letter of which two end the word, if it is a consonant.
fn double_consonant(word: &str) -> Option<char> {
    let mut backwards = word.chars().rev();
    let last = backwards.next()?;
    (backwards.next() == Some(last) && ends_with_consonant(word)).then_some(last)
}

/// Porter's `*o`: consonant, vowel, consonant at the end, the last none of `w`, `x`, `y`; or the whole word is a vowel and
/// a consonant, which is NLTK's.
fn ends_short(word: &str) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds.as_slice() {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

/// Replaces the first suffix of `rules` that the word ends in, if the stem before has at least this measure.
fn replace(word: String, rules: &[(&str, &str)], least: usize) -> String {
    let found = rules.iter().find_map(|(suffix, new)| Some((word.strip_suffix(suffix)?, new)));
    match found {
        Some((stem, new)) if measure(stem) >= least => format!("{stem}{new}"),
        _ => word,
    }
}

/// Step 1a.
fn plural(mut word: String) -> String {
    let dropped = if word.ends_with("ies") && word.chars().count() == 4 {
        1
    } else if word.ends_with("sses") || word.ends_with("ies") {
        2
    } else {
        usize::from(word.ends_with('s') && !word.ends_with("ss"))
    };
    word.truncate(word.len() - dropped);
    word
}

/// Step 1b.
fn past_and_participle(word: String) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.chars().count() == 4 { "ie" } else { "i" });
    }
    if word.ends_with("eed") {
        return replace(word, &[("eed", "ee")], 1);
    }
    let stem = word.strip_suffix("ed").or_else(|| word.strip_suffix("ing"));
    let Some(stem) = stem.filter(|stem| has_vowel(stem)) else { return word };
    let mut stem = stem.to_owned();
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        stem.push('e');
    } else if let Some(double) = double_consonant(&stem) {
        if !matches!(double, 'l' | 's' | 'z') {
            stem.pop();
        }
    } else if measure(&stem) == 1 && ends_short(&stem) {
        stem.push('e');
    }
    stem
}

/// Step 1c.
fn final_y(word: String) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.chars().nth(1).is_some() && ends_with_consonant(stem) => format!("{stem}i"),
        _ => word,
    }
}

/// Step 2.
fn double_suffix(word: String) -> String {
    let word = replace(word, &[("alli", "al")], 1);
    // `logi` gives `log`. Its `l` is measured with the stem, so that a short one as "geo" is enough.
    match word.strip_suffix("ogi") {
        Some(stem) if stem.ends_with('l') && measure(stem) >= 1 => format!("{stem}og"),
        _ => replace(word, STEP_2, 1),
    }
}

/// Step 4.
fn last_suffix(word: String) -> String {
    match word.strip_suffix("ion") {
        Some(stem) if stem.ends_with(['s', 't']) && measure(stem) >= 2 => stem.to_owned(),
        Some(_) => word,
        None => replace(word, STEP_4, 2),
    }
}

/// Step 5a.
fn final_e(word: String) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) >= 2 || (measure(stem) == 1 && !ends_short(stem)) => stem.to_owned(),
        _ => word,
    }
}

/// Step 5b.
fn final_l(mut word: String) -> String {
    // The measure counts the first `l`.
    if word.ends_with("ll") && word.strip_suffix('l').is_some_and(|stem| measure(stem) >= 2) {
        word.pop();
    }
    word
}

#[cfg(test)]
mod tests {
    use super::{measure, stem};

    #[test]
    fn the_measures_of_the_paper() {
        for (m, words) in [(0, "tr ee tree y by"), (1, "trouble oats trees ivy"), (2, "troubles private oaten orrery")]
        {
            assert!(words.split(' ').all(|word| measure(word) == m), "{words}");
        }
    }

    #[test]
    fn steps_of_the_paper_and_departures_of_nltk() {
        for (word, expected) in [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("ties", "tie"),
            ("died", "die"),
            ("spied", "spi"),
            ("feed", "feed"),
            ("agreed", "agre"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("enjoy", "enjoy"),
            ("fly", "fli"),
            ("relational", "relat"),
            ("radically", "radic"),
            ("geology", "geolog"),
            ("joyfully", "joy"),
            ("adoption", "adopt"),
            ("controll", "control"),
            ("skies", "sky"),
            ("phosphorylation", "phosphoryl"),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
