//! A tokenizer and a chat template for tests: bytes, a few merges, and the marks of `ChatML`.

use super::template::ChatTemplate;
use super::tokenize::Encoder;
use std::collections::BTreeSet;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// `ChatML` as Qwen2.5 writes it, without tools.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub const END: u32 = 257;

/// Byte-level BPE: ids 0..256 are bytes, then `<|im_start|>`, `<|im_end|>`, `<|endoftext|>`, then merges.
pub fn tokenizer() -> Tokenizer {
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let names = alphabet.iter().map(char::to_string);
    let marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];
    let merges = [("h", "e"), ("Ċ", "Ċ"), ("Ġ", "a"), ("l", "l"), ("he", "ll"), ("Ã", "©")];
    let vocabulary = names
        .chain(marks.map(String::from))
        .chain(merges.map(|(a, b)| format!("{a}{b}")))
        .zip(0u32..)
        .collect::<tokenizers::models::bpe::Vocab>();
    let merges = merges.map(|(a, b)| (a.to_string(), b.to_string())).to_vec();
    let mut tokenizer = Tokenizer::new(BPE::new(vocabulary, merges));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    // As in Llama 3 and GPT-2: offsets without the spaces around tokens, which must not shift a border.
    tokenizer.with_post_processor(Some(ByteLevel::new(true, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    tokenizer.add_special_tokens(marks.map(|mark| AddedToken::from(mark, true))).unwrap();
    tokenizer
}

/// An encoder of these with the given template.
pub fn encoder_with(template: &str) -> Encoder {
    let template = ChatTemplate::at(template, None, Some("<|im_end|>"), 0).unwrap();
    Encoder::new(tokenizer(), Some(template), Some(("<|im_end|>".into(), END)), None, false).unwrap()
}

/// An encoder of these with `ChatML`.
pub fn encoder() -> Encoder {
    encoder_with(CHATML)
}

/// Files for tests that the repository does not hold.
pub fn shared(path: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::var("EQUIPOISE_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").to_string());
    let path = std::path::Path::new(&folder).join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}
