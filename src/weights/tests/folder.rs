use crate::weight_type::WeightType;
use crate::weights::test_support::{shared, write_safetensors};
use crate::weights::{Base, SpecialTokens};
use serde_json::json;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const CONFIG: &str = r#"{"model_type": "llama", "eos_token_id": [7, 8]}"#;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    folder
}

fn refused(path: &Path) -> String {
    let error = Base::open(path).expect_err("the base must be refused");
    format!("{error} | {}", error.help().unwrap_or_default())
}

#[test]
fn tinystories_opens_whole() {
    let Some(path) = shared("models/tinystories-656k-bf16") else { return };
    let base = Base::open(&path).unwrap();
    assert_eq!((base.model_type(), base.is_gguf()), ("llama", false));
    assert_eq!(base.config()["hidden_size"], 128);
    assert_eq!(base.tensor_names().count(), 20);
    let name = "model.layers.1.self_attn.k_proj.weight";
    assert_eq!(base.tensor(name), Some(([64, 128].as_slice(), WeightType::BF16)));
    assert_eq!(base.stored_bytes(), 1_312_000);
    // The header is 2 120 bytes long, the tensor begins at 1 213 440 of the data.
    let file = fs::read(path.join("model.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(base.read(name).unwrap().bytes, file[data + 1_213_440..][..64 * 128 * 2]);
    let expected = SpecialTokens {
        named: Vec::new(),
        bos: Some(("<|start_story|>".into(), 1)),
        eos: Some(("<|end_story|>".into(), 2)),
        pad: Some(("<unk>".into(), 0)),
        eos_ids: vec![2],
        add_bos: true,
    };
    let special = SpecialTokens { named: Vec::new(), ..base.special_tokens().clone() };
    assert_eq!(special, expected);
    assert_eq!(base.chat_template(), None);
    let tokenizer = base.tokenizer().unwrap();
    assert_eq!(
        tokenizer.decode(tokenizer.encode("Once upon a time", false).unwrap().get_ids(), false).unwrap(),
        "Once upon a time"
    );
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = folder();
    let path = folder.path();
    write_safetensors(&path.join("a.safetensors"), &[("model.norm.weight", &[2], &[1.0, 2.0])]);
    write_safetensors(&path.join("b.safetensors"), &[("lm_head.weight", &[1, 2], &[3.0, 4.0])]);
    let index = |map: serde_json::Value| {
        fs::write(path.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    };
    index(json!({ "model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors" }));
    let base = Base::open(path).unwrap();
    let tensor = base.read("lm_head.weight").unwrap();
    assert_eq!((tensor.shape, tensor.bytes), (vec![1, 2], [3.0f32, 4.0].map(f32::to_le_bytes).concat()));
    assert!(base.read("nothing").unwrap_err().to_string().contains("`nothing`"));

    // A shard that is not there, and a tensor that is not in its shard, are no matter until somebody needs them.
    let read = |name: &str| Base::open(path).unwrap().read(name).unwrap_err().to_string();
    index(json!({ "model.norm.weight": "a.safetensors", "lm_head.weight": "c.safetensors" }));
    assert!(read("lm_head.weight").contains("`c.safetensors`, which is not in the folder"));
    index(json!({ "model.norm.weight": "a.safetensors", "x": "a.safetensors" }));
    assert!(read("x").contains("tensor `x` is missing"));
    index(json!({ "model.norm.weight": "d.safetensors", "lm_head.weight": "c.safetensors" }));
    assert!(refused(path).contains("names the shard `c.safetensors`, which is not in the folder"));
    for hostile in ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "..", "", "x\\a"] {
        index(json!({ "model.norm.weight": hostile }));
        assert!(refused(path).contains("is not a plain file name"), "{hostile}");
    }
}

#[test]
fn names_without_model_are_completed() {
    let folder = folder();
    let tensors: &[(&str, &[usize], &[f32])] = &[("layers.0.x.weight", &[1], &[1.0]), ("lm_head.weight", &[1], &[2.0])];
    write_safetensors(&folder.path().join("model.safetensors"), tensors);
    let base = Base::open(folder.path()).unwrap();
    assert_eq!(base.tensor_names().collect::<Vec<_>>(), ["lm_head.weight", "model.layers.0.x.weight"]);
    assert_eq!(base.stored_name("model.layers.0.x.weight"), Some("layers.0.x.weight"));
}

#[test]
fn damaged_safetensors_are_refused() {
    let folder = folder();
    let file = folder.path().join("model.safetensors");
    write_safetensors(&file, &[("model.norm.weight", &[4], &[1.0, 2.0, 3.0, 4.0])]);
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(refused(folder.path()).contains("model.safetensors"));
    }
    let with_header = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        fs::write(&file, bytes).unwrap();
        refused(folder.path())
    };
    fs::write(&file, [10_000_000_000u64.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
    assert!(refused(folder.path()).contains("claims 10000000000 bytes"));
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(with_header(overlapping, 8).contains("contradicts itself"));
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    assert!(with_header(huge, 8).contains("contradicts itself"));
    let integer = r#"{"a.qweight":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}"#;
    let bytes = [(integer.len() as u64).to_le_bytes().as_slice(), integer.as_bytes(), &[0; 8]].concat();
    fs::write(&file, bytes).unwrap();
    let base = Base::open(folder.path()).unwrap();
    assert!(base.tensor("a.qweight").is_none());
    assert!(
        base.read("a.qweight")
            .unwrap_err()
            .to_string()
            .contains("`a.qweight` is of type I32; F32, F16 and BF16 are read")
    );
}

#[test]
fn what_is_no_base_says_what_it_is() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path();
    assert!(refused(&path.join("nothing")).contains("no such folder or file"));
    assert!(refused(path).contains("has no config.json"));
    fs::write(path.join("adapter_config.json"), "{}").unwrap();
    assert!(refused(path).contains("is a LoRA adapter"));
    fs::write(path.join("config.json"), CONFIG).unwrap();
    assert!(refused(path).contains("holds no weights"));
    fs::write(path.join("pytorch_model.bin"), "x").unwrap();
    assert!(refused(path).contains("pickle") && refused(path).contains("save_pretrained"));
    fs::write(path.join("x.gguf"), "x").unwrap();
    assert!(refused(path).contains("name the file itself"));
    fs::write(path.join("config.json"), "[1]").unwrap();
    assert!(refused(path).contains("config.json: cannot be read as JSON"));
    fs::write(path.join("config.json"), "{}").unwrap();
    write_safetensors(&path.join("model.safetensors"), &[("a", &[1], &[1.0])]);
    assert!(refused(path).contains("model_type"));
}

#[test]
fn a_missing_or_hostile_tokenizer_is_an_error_that_helps() {
    let folder = folder();
    let path = folder.path();
    write_safetensors(&path.join("model.safetensors"), &[("a", &[1], &[1.0])]);
    let base = Base::open(path).unwrap();
    assert_eq!(base.special_tokens().eos_ids, [7, 8]);
    let error = || {
        let error = base.tokenizer().unwrap_err();
        format!("{error} | {}", error.help().unwrap())
    };
    assert!(error().contains("has no tokenizer.json |"));
    fs::write(path.join("tokenizer.model"), "x").unwrap();
    assert!(error().contains("only a SentencePiece tokenizer.model"));
    fs::write(path.join("tokenizer.json"), "{").unwrap();
    assert!(error().contains("cannot be read"));
    let panicking = r#"{"model": {"type": "BPE", "vocab": {"aa": 0, "bb": 1}, "merges": ["aa bb"]}}"#;
    fs::write(path.join("tokenizer.json"), panicking).unwrap();
    assert!(error().contains("tokenizer.json"));
}

#[test]
fn special_tokens_and_templates_come_from_where_transformers_looks() {
    let folder = folder();
    let path = folder.path();
    write_safetensors(&path.join("model.safetensors"), &[("a", &[1], &[1.0])]);
    let tokenizer = json!({
        "truncation": { "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": { "strategy": { "Fixed": 9 }, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a" },
        "added_tokens": [{ "id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true }],
        "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [], "special_tokens": { "<s>": { "id": "<s>", "ids": [3], "tokens": ["<s>"] } } },
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "</s>": 2 }, "merges": [] }
    });
    fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(path.join("generation_config.json"), r#"{"eos_token_id": 8}"#).unwrap();
    fs::write(path.join("special_tokens_map.json"), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
    let config = json!({ "bos_token": "<s>", "pad_token": null, "add_bos_token": false, "chat_template":
        [{ "name": "tool_use", "template": "T" }, { "name": "default", "template": "D" }] });
    fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::write(path.join("chat_template.json"), r#"{"chat_template": "P"}"#).unwrap();
    let base = Base::open(path).unwrap();
    let tokens = base.special_tokens();
    assert_eq!((tokens.bos.clone(), tokens.eos.clone()), (Some(("<s>".into(), 3)), Some(("</s>".into(), 2))));
    assert_eq!((&tokens.pad, &tokens.eos_ids), (&None, &vec![8, 2]));
    assert!(tokens.add_bos, "the class does not rebuild the post-processor, so its template counts");
    assert_eq!(base.chat_template(), Some("D"));
    let ids = base.tokenizer().unwrap().encode("abab", false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [0, 1, 0, 1], "neither cut nor padded, and nothing before");
    fs::write(path.join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Base::open(path).unwrap().chat_template(), Some("J"));
    // What older processors of multimodal models have counts where nothing else does.
    for name in ["chat_template.jinja", "tokenizer_config.json"] {
        fs::remove_file(path.join(name)).unwrap();
    }
    assert_eq!(Base::open(path).unwrap().chat_template(), Some("P"));
}

/// As `Gemma3Model`, which has no head, is saved.
#[test]
fn a_multimodal_model_without_its_head_has_names_of_its_own() {
    let folder = folder();
    let tensors = ["norm.weight", "layers.0.mlp.up_proj.weight"].map(|name| format!("language_model.{name}"));
    let tensors: Vec<_> = tensors.iter().map(|name| (name.as_str(), [1].as_slice(), [1.0].as_slice())).collect();
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    let base = Base::open(folder.path()).unwrap();
    assert!(base.tensor_names().eq(["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]));
}

/// Tensors of a multimodal model under names of two versions of transformers.
#[test]
fn one_tensor_under_two_names_is_refused() {
    let folder = folder();
    let names = ["model.language_model.norm.weight", "language_model.model.norm.weight"];
    let tensors = names.map(|name| (name, [1].as_slice(), [1.0].as_slice()));
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    let said = refused(folder.path());
    assert!(names.iter().all(|name| said.contains(name)) && said.contains("two names of one tensor"), "{said}");
}

#[test]
fn the_fingerprint_follows_the_content() {
    let folder = folder();
    let file = folder.path().join("model.safetensors");
    let mut values = vec![0.5f32; 100_000];
    let fingerprint = |values: &[f32]| {
        let norm = vec![1.0f32; 20_000];
        let tensors: &[(&str, &[usize], &[f32])] =
            &[("a", &[20_000], &norm), ("b", &[100_000], values), ("c", &[20_000], &norm)];
        write_safetensors(&file, tensors);
        Base::open(folder.path()).unwrap().fingerprint().unwrap()
    };
    let first = fingerprint(&values);
    assert_eq!(first.len(), 64);
    assert_eq!(fingerprint(&values), first);
    values[50_000] = 0.25;
    assert_ne!(fingerprint(&values), first, "a change in the middle, as a merged fine-tune has it");
}
