use crate::weights::Base;
use crate::weights::test_support::{quantized, shared, write_gguf};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use std::fs;
use std::path::Path;

fn strings<'a>(values: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(values.into_iter().map(|value| Value::String(value.into())).collect())
}

/// A GGUF file with nothing but a tokenizer.
fn open(path: &Path, metadata: Vec<(&str, Value)>) -> Base {
    let mut all = vec![("general.architecture", Value::String("tokenizer-only".into()))];
    all.extend(metadata);
    write_gguf(path, &all, &[("a.weight", quantized(&[1], &[1.0], GgmlDType::F32))]);
    Base::open(path).unwrap()
}

#[test]
fn smollm2_gives_transformers_ids() {
    let Some(model) = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let Some(golden) = shared("golden/smollm2-forward/forward.json") else { return };
    let tokenizer = Base::open(&model).unwrap().tokenizer().unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 3);
    for case in cases {
        let ids = |key: &str| -> Vec<u32> {
            case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let text = case["prompt_text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap().get_ids(), ids("prompt_ids"), "{}", case["name"]);
        assert_eq!(tokenizer.encode(text, true).unwrap().get_ids(), ids("prompt_ids"));
        assert_eq!(tokenizer.decode(&ids("prompt_ids"), false).unwrap(), text);
        assert_eq!(tokenizer.decode(&ids("greedy_ids"), false).unwrap(), case["greedy_text"].as_str().unwrap());
    }
    let ids = tokenizer.encode("x\u{1F600} 2024é\t<|im_end|>", false).unwrap();
    assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), "x\u{1F600} 2024é\t<|im_end|>");
    assert_eq!(tokenizer.decode(&[1, 504], true).unwrap(), "The", "control tokens are skipped");
}

/// The tokenizer of `TinyStories` was converted from `SentencePiece`, so its vocabulary, scored by rank, must encode as it does.
#[test]
fn sentencepiece_encodes_as_transformers_conversion_of_it() {
    let Some(folder) = shared("models/tinystories-656k-bf16") else { return };
    let reference = Base::open(&folder).unwrap().tokenizer().unwrap();
    let mut vocabulary: Vec<(String, u32)> = reference.get_vocab(false).into_iter().collect();
    vocabulary.sort_by_key(|(_, id)| *id);
    let pieces: Vec<String> = vocabulary.into_iter().map(|(piece, _)| piece).collect();
    let size = pieces.len() as u32;
    let types = pieces.iter().enumerate().map(|(id, piece)| match id {
        0 => 2,
        1 | 2 => 3,
        _ if piece.starts_with("<0x") => 6,
        _ => 1,
    });
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("tiny.gguf");
    let metadata = vec![
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", strings(pieces.iter().map(String::as_str))),
        ("tokenizer.ggml.scores", Value::Array((0..size).map(|id| Value::F32(-(id as f32))).collect())),
        ("tokenizer.ggml.token_type", Value::Array(types.map(Value::I32).collect())),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    let base = open(&path, metadata);
    assert!(base.special_tokens().add_bos, "SentencePiece models begin with BOS where the metadata do not say");
    assert_eq!(base.special_tokens().eos_ids, [2]);
    let tokenizer = base.tokenizer().unwrap();
    let stories = "Once upon a time, there was a little girl named Lily. She said: \"I can't find my 3 red balls!\"\n\n\
                   Tom  and\tBen ran—quickly—to the café. \u{1F600} The end.";
    for text in [stories, "", " ", "  two  spaces ", "\n", "<|start_story|>", "unbelievableness", "日本"] {
        let expected = reference.encode(text, false).unwrap();
        let got = tokenizer.encode(text, false).unwrap();
        assert_eq!(got.get_ids(), expected.get_ids(), "{text:?}");
        // The reference writes what it has no piece for with a space before it; its flags for `<unk>` are odd.
        if !got.get_ids().contains(&0) {
            let decode = |of: &tokenizers::Tokenizer| of.decode(got.get_ids(), false).unwrap();
            assert_eq!(decode(&tokenizer), decode(&reference), "{text:?}");
        }
    }
    // Here the two differ: the reference finds a special token only after a space, which its own model never saw.
    assert_eq!(tokenizer.encode("end.<|end_story|>", false).unwrap().get_ids().last(), Some(&2));
}

#[test]
fn what_sentencepiece_has_no_piece_for_becomes_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let metadata = vec![
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", strings(["<unk>", "<0xC3>", "<0xA9>", "▁", "a", "▁a", "aa", "▁aa"])),
        ("tokenizer.ggml.scores", Value::Array([0.0, 0.0, 0.0, -9.0, -9.0, -2.0, -1.0, -3.0].map(Value::F32).to_vec())),
        ("tokenizer.ggml.token_type", Value::Array([2, 6, 6, 1, 1, 1, 1, 1].map(Value::I32).to_vec())),
    ];
    let tokenizer = open(&path, metadata.clone()).tokenizer().unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(encode("aé"), [5, 1, 2]);
    assert_eq!(tokenizer.decode(&[5, 1, 2], false).unwrap(), "aé");
    assert_eq!(encode("aa"), [7], "`aa` scores best, so it is merged before `▁a`");
    let mut without = metadata;
    without.push(("tokenizer.ggml.add_space_prefix", Value::Bool(false)));
    let tokenizer = open(&path, without).tokenizer().unwrap();
    assert_eq!(tokenizer.encode("aa a", false).unwrap().get_ids(), [6, 5]);
    assert_eq!(tokenizer.decode(&[6, 5], false).unwrap(), "aa a");
}

#[test]
fn user_defined_tokens_are_single_ids_and_no_specials() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let metadata = |pre: &str| {
        vec![
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String(pre.into())),
            ("tokenizer.ggml.tokens", strings(["a", "b", "ab", "Ġ", "<think>", "<|end|>"])),
            ("tokenizer.ggml.token_type", Value::Array([1, 1, 1, 1, 4, 3].map(Value::I32).to_vec())),
            ("tokenizer.ggml.merges", strings(["a b"])),
            ("tokenizer.ggml.bos_token_id", Value::U32(99)),
        ]
    };
    let base = open(&path, metadata("gpt-2"));
    assert_eq!((&base.special_tokens().bos, &base.special_tokens().eos_ids), (&None, &vec![5]));
    let tokenizer = base.tokenizer().unwrap();
    let ids = tokenizer.encode("<think>ab a<|end|>", true).unwrap().get_ids().to_vec();
    assert_eq!(ids, [4, 2, 3, 0, 5]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<think>ab a");

    let error = open(&path, metadata("brand-new")).tokenizer().unwrap_err();
    assert!(error.to_string().contains("`brand-new`") && error.to_string().contains("llama-bpe"));
    assert!(error.help().unwrap().contains("Hugging Face folder"));
}

#[test]
fn contradicting_vocabularies_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let refused = |kind: &str, extra: Vec<(&str, Value)>| {
        let mut metadata = vec![
            ("tokenizer.ggml.model", Value::String(kind.into())),
            ("tokenizer.ggml.tokens", strings(["aa", "bb"])),
        ];
        metadata.extend(extra);
        open(&path, metadata).tokenizer().unwrap_err().to_string()
    };
    assert!(
        refused("gpt2", vec![("tokenizer.ggml.merges", strings(["aa bb"]))]).contains("`aa bb` does not make a token")
    );
    assert!(refused("gpt2", vec![]).contains("no `tokenizer.ggml.merges`"));
    assert!(
        refused("llama", vec![("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0)]))])
            .contains("2 tokens, but 1 scores")
    );
    assert!(refused("bert", vec![]).contains("`bert`"));
    let types = Value::Array(vec![Value::I32(1)]);
    assert!(refused("gpt2", vec![("tokenizer.ggml.token_type", types)]).contains("1 token types"));
}
