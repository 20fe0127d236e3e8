//! What cannot work is refused before anything is written: with an exit code of 2, the place, and what to do.

use crate::support::workplace::{Running, Workplace, embedded_base, refusal};
use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

#[test]
fn recipes_that_cannot_be_meant() {
    let place = Workplace::new();
    for (set, phrases) in [
        ("training.learning_rat=1", &["unknown key `learning_rat`", "did you mean `learning_rate`?"][..]),
        ("training.learning_rate=fast", &["training.learning_rate: expected a number", "fast"]),
        ("training.learning_rate=.nan", &["training.learning_rate: must be a number above 0", "NaN"]),
        ("training.micro_batch_size=0", &["training.micro_batch_size: must be at least 1"]),
        ("training.micro_batch_size=18446744073709551615", &["training.micro_batch_size", "1048576 rows at most"]),
        ("training.gradient_accumulation_steps=1000000000", &["gradient_accumulation_steps", "1048576 rows at most"]),
        ("objective.group_size=0", &["objective.group_size: must be at least 1"]),
        ("lora.r=18446744073709551615", &["lora.r: must be at least 1 and at most 65536"]),
        ("lora.lora_alpha=1e300", &["lora.lora_alpha: must be a number above 0"]),
        (
            "lora.target_modules=[q_proj, q_porj]",
            &["no module `q_porj`", "its linear modules are", "q_proj", "all-linear"],
        ),
        ("data.max_seq_len=513", &["data.max_seq_len: 513", "512 positions", "512 at most"]),
        ("data.validation_split=0.5", &["data.validation_split", "data.validation", "keep one"]),
        ("training=3", &["training: expected a section"]),
        ("training.seed.x=1", &["training.seed: expected a whole number"]),
        ("name=../x", &["is not a name for a folder", "letters, digits"]),
        ("data.train=[1,", &["the value is not YAML", "quote it"]),
        ("=", &["expected `section.key=value`", "for example"]),
    ] {
        place.refused(&[set]).says(2, phrases);
    }
}

#[test]
fn recipe_files_that_cannot_be_read() {
    let place = Workplace::new();
    let said = |file: &str| refusal(&place.command(&["train", file, "--json"]).output().unwrap());
    said("other.yaml").says(2, &["other.yaml", "no such recipe", "trial.yaml"]);
    let nested = format!("base: {}", "[".repeat(20_000));
    for (text, phrases) in [
        ("base:\n  model: x\n  modle: y\ndata:\n  train: t\n", &["`modle`", "did you mean", "\"line\":3"][..]),
        ("base: {model: x, model: y}\n", &["`base.model`", "second time"]),
        ("base: [a, b\n", &["not valid YAML", "\"line\":"]),
        ("", &["the recipe is empty", "base:"]),
        ("a: &a [*a]\n", &["not valid YAML"]),
        (&nested, &["not valid YAML", "nested deeper"]),
    ] {
        place.write("bad.yaml", text);
        said("bad.yaml").says(2, phrases);
    }
    place.write("bad.yaml", b"base: \xff");
    said("bad.yaml").says(2, &["0xff is not UTF-8", "save the recipe as UTF-8"]);
    assert!(!place.path("out").exists() && !place.path("adapters").exists());
}

#[test]
fn bases_that_are_not_there() {
    let place = Workplace::new();
    place.copy_base();
    place.refused(&["base.model=bsae"]).says(2, &["base.model: no such file or folder: bsae", "did you mean", "base"]);
    let hub = place.refused(&["base.model=some-org/some-model", "--offline"]);
    hub.says(2, &["some-org/some-model", "not in the cache", "network is not used", "HF_HOME"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.refused(&["base.model=empty"]).says(2, &["empty", "has no config.json"]);
    place.refused(&["base.model=train.jsonl"]).says(2, &["train.jsonl: is not a GGUF file", "a base model is"]);
}

/// Copies the embedded base, lets `damage` at it, and says what training says.
#[track_caller]
fn damaged(damage: impl FnOnce(&Path), phrases: &[&str]) {
    let place = Workplace::new();
    damage(&place.copy_base());
    place.refused(&["base.model=base"]).says(2, phrases);
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn bases_whose_files_do_not_fit() {
    let config = |key: &str, value: Value, phrases: &[&str]| {
        damaged(|base| edit_json(&base.join("config.json"), |config| config[key] = value), phrases);
    };
    config(
        "model_type",
        json!("falcon"),
        &["architecture `falcon` is not supported", "nearest family is `llama`", "supported are: "],
    );
    config("vocab_size", json!(1000), &["embed_tokens", "expected [1000, 128], got [2048, 128]"]);
    config("hidden_size", json!(0), &["config.json", "hidden_size: expected 1 to", "got 0"]);
    config("num_hidden_layers", json!(1_000_000_000), &["num_hidden_layers: expected 1 to", "got 1000000000"]);
    config("num_hidden_layers", json!(8), &["model.layers.7", "missing"]);
    config("num_key_value_heads", json!(3), &["num_attention_heads: expected a multiple", "got 4"]);
    config("head_dim", json!(31), &["head_dim: expected an even number, got 31"]);
    config("intermediate_size", json!(201), &["intermediate_size: expected an even number, got 201"]);
    config("rms_norm_eps", json!(-1.0), &["rms_norm_eps: expected a number above 0, got -1"]);
    config("rope_theta", json!("big"), &["rope_theta: expected a number above 0", "big"]);
    config("rope_scaling", json!(7), &["rope_scaling: expected an object, got 7"]);
    config("hidden_act", json!("relu"), &["hidden_act `relu` is not supported"]);
    for (template, phrases) in [
        ("hello", &["leaves out the answer", "\"line\":1"][..]),
        ("{{ messages[0].", &["the chat template is not valid"]),
        ("{% for i in range(100000000) %}x{% endfor %}", &["the chat template fails"]),
    ] {
        let edit = |config: &mut Value| config["chat_template"] = json!(template);
        damaged(|base| edit_json(&base.join("tokenizer_config.json"), edit), phrases);
    }
    damaged(|base| std::fs::write(base.join("config.json"), "{").unwrap(), &["config.json", "as JSON", "fetch"]);
    damaged(
        |base| std::fs::remove_file(base.join("tokenizer.json")).unwrap(),
        &["has no tokenizer.json", "transformers"],
    );
    damaged(
        |base| std::fs::write(base.join("tokenizer.json"), "{}").unwrap(),
        &["tokenizer.json", "fetch the file again"],
    );
    damaged(|base| std::fs::remove_file(base.join("model.safetensors")).unwrap(), &["holds no weights", "fetch"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let place = Workplace::new();
    let base = place.copy_base();
    // Words that the model has no embeddings for.
    edit_json(&base.join("tokenizer.json"), |tokenizer| {
        let id = tokenizer["model"]["vocab"].as_object().unwrap().len() + 600;
        let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        for number in words.len()..=id {
            words.insert(format!("extra{number}"), json!(number));
        }
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": format!("extra{id}"), "special": false, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false,
        }));
        place.write("train.jsonl", json!({"instruction": "Say", "output": format!("extra{id}")}).to_string());
    });
    place.refused(&["base.model=base"]).says(2, &["base", "2048 embeddings", "do not belong together"]);
}

/// Where the data of a tensor begins in a safetensors file.
fn tensor_offset(file: &[u8], part: &str) -> usize {
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&file[8..header]).unwrap();
    let (_, tensor) = json.as_object().unwrap().iter().find(|(name, _)| name.contains(part)).unwrap();
    assert_eq!(tensor["dtype"], "BF16");
    header + tensor["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn weights_that_are_damaged() {
    let weights = |change: &dyn Fn(&mut Vec<u8>), phrases: &[&str]| {
        damaged(
            |base| {
                let path = base.join("model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                change(&mut bytes);
                std::fs::write(path, bytes).unwrap();
            },
            phrases,
        );
    };
    let file = "model.safetensors";
    weights(&|bytes| bytes.truncate(1_000_000), &[file, "cut short", "fetch the file again"]);
    weights(&|bytes| bytes.truncate(5), &[file, "it has 5 bytes", "fetch the file again"]);
    weights(
        &|bytes| bytes[..8].copy_from_slice(&(10u64 << 30).to_le_bytes()),
        &[file, "header claims 10737418240 bytes"],
    );
    for number in [f32::NAN, f32::INFINITY] {
        for tensor in ["layers.3.mlp.up_proj", "layers.2.input_layernorm", "embed_tokens"] {
            let change = |bytes: &mut Vec<u8>| {
                let at = tensor_offset(bytes, tensor) + 100;
                bytes[at..at + 2].copy_from_slice(&number.to_le_bytes()[2..]);
            };
            weights(&change, &[tensor, "not finite", "damaged"]);
        }
    }
}

#[test]
fn a_gguf_file_that_is_cut_short() {
    let place = Workplace::new();
    let tensor = Tensor::ones((64, 64), DType::F32, &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
    let metadata = [
        ("general.architecture", Gguf::String("llama".into())),
        ("llama.block_count", Gguf::U32(1)),
        ("llama.embedding_length", Gguf::U32(64)),
        ("llama.feed_forward_length", Gguf::U32(64)),
        ("llama.attention.head_count", Gguf::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Gguf::F32(1e-5)),
        ("llama.context_length", Gguf::U32(512)),
    ];
    let metadata: Vec<(&str, &Gguf)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = std::fs::File::create(place.path("whole.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &[("token_embd.weight", &tensor)]).unwrap();
    let whole = std::fs::read(place.path("whole.gguf")).unwrap();
    for (length, phrases) in [
        (whole.len() - 100, &["cut short", "token_embd.weight", "fetch the file again"][..]),
        (40, &["its header", "fetch it again"]),
        (2, &["is not a GGUF file"]),
    ] {
        place.write("cut.gguf", &whole[..length]);
        place.refused(&["base.model=cut.gguf", "quantization.type=auto"]).says(2, &[&["cut.gguf"], phrases].concat());
    }
}

#[test]
fn rows_that_cannot_be_learnt() {
    let place = Workplace::new();
    place.refused(&["data.train=missing.jsonl"]).says(2, &["missing.jsonl: there is no such file", "`train.jsonl`"]);
    place.refused(&["data.train=t*.parquet"]).says(2, &["t*.parquet", "`train.jsonl`"]);
    for (rows, phrases) in [
        ("", &["holds no rows", "look at the file"][..]),
        ("{\"instruction\": \"a\", \"output\": \"b\"}\nnot json\n", &["not valid JSON", "\"line\":2", "rows.jsonl"]),
        ("[1, 2]\n", &["a row must be a JSON object", "\"line\":1"]),
        ("{\"instruction\": \"a\", \"output\": \"\"}\n", &["its one row teaches nothing", "1:32: `output` is empty"]),
        ("{\"instruction\": \"a\", \"output\": 7}\n", &["`output` must be text, got the integer 7", "\"line\":1"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n", &["no turn of the assistant", "\"line\":1"]),
        ("\u{feff}\n\n", &["holds no rows"]),
    ] {
        place.write("rows.jsonl", rows);
        place.refused(&["data.train=rows.jsonl"]).says(2, phrases);
    }
    place.write("rows.jsonl", b"{\"instruction\": \"a\xff\", \"output\": \"b\"}\n");
    place.refused(&["data.train=rows.jsonl"]).says(2, &["0xff is not valid UTF-8", "\"line\":1"]);
    place.write("rows.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n");
    let split = ["data.train=rows.jsonl", "data.validation=null", "data.validation_split=0.5"];
    place.refused(&split).says(2, &["has one row", "data.validation_split"]);
    place.refused(&["data.max_seq_len=3", "data.overlong=drop"]).says(2, &["is left", "raise `data.max_seq_len`"]);
    place
        .refused(&["data.max_seq_len=3", "data.overlong=error"])
        .says(2, &["tokens, and max_seq_len is 3", "\"line\":1"]);
}

#[test]
fn output_folders_that_cannot_be_used() {
    let place = Workplace::new();
    place.refused(&["output_dir=train.jsonl"]).says(2, &["train.jsonl: is not a folder", "set another `output_dir`"]);
    place.refused(&["output_dir=train.jsonl/x"]).says(2, &["train.jsonl/x", "a file", "set another `output_dir`"]);
    place.refused(&["output_dir=/proc/x"]).says(2, &["/proc/x", "nothing can be written", "set another `output_dir`"]);
    // The folder holds the rows and the recipe: it is somebody's, with and without --overwrite.
    for more in [&["output_dir=."][..], &["output_dir=.", "--overwrite"], &["output_dir=.", "--resume"]] {
        place.refused(more).says(2, &["holds no run of Equipoise", "set another `output_dir`"]);
    }
    // Even a file of the name that runs write makes no run.
    std::fs::copy(place.path("trial.yaml"), place.path("recipe.yaml")).unwrap();
    place.write("README.md", "mine");
    place.refused(&["output_dir=.", "--overwrite"]).says(2, &["holds no run of Equipoise"]);
}

#[test]
fn a_folder_without_permission_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::new();
    std::fs::create_dir(place.path("closed")).unwrap();
    std::fs::set_permissions(place.path("closed"), std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(place.path("closed/probe"), "").is_ok() {
        println!("skipped: permissions do not bind this user");
        return;
    }
    place.refused(&["output_dir=closed/out"]).says(2, &["closed/out", "denied", "set another `output_dir`"]);
    place.refused(&["output_dir=closed"]).says(2, &["closed", "denied", "set another `output_dir`"]);
}

#[test]
fn a_run_that_diverges_stops_and_names_the_last_good_checkpoint() {
    let place = Workplace::new();
    // Some steps compute before the numbers run over; the update that ruins them still has a finite gradient, and is saved.
    let mad = [
        "training.learning_rate=3e18",
        "training.lr_scheduler=constant",
        "training.max_grad_norm=0",
        "training.max_steps=20",
    ];
    let unwatched = [&mad[..], &["data.validation=null", "output_dir=unwatched"]].concat();
    let failure = place.failure(&unwatched);
    failure.says(1, &["not finite, as in the 4 steps before", "last good checkpoint is", "checkpoints/step-"]);
    failure.says(1, &["training.learning_rate"]);
    let skipped = std::fs::read_to_string(place.path("unwatched/metrics.jsonl")).unwrap();
    assert_eq!(skipped.lines().filter(|line| line.contains("\"type\":\"skipped\"")).count(), 5);
    let checkpoints = std::fs::read_dir(place.path("unwatched/checkpoints")).unwrap();
    let mut saved: Vec<String> = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    saved.sort();
    assert!(failure.text.contains(&saved[0]), "what was learnt before stays, of {saved:?}");
    assert!(!failure.text.contains(saved.last().unwrap()), "the one that was ruined is not called good");
    assert!(!place.path("unwatched/adapter_model.safetensors").exists(), "nothing passes for a result");
    // A run too short for five skipped steps is not a success either.
    let madder = ["training.learning_rate=1e30", "training.max_grad_norm=0", "training.max_steps=4"];
    let short = [&madder[..], &["data.validation=null", "output_dir=short"]].concat();
    place.failure(&short).says(1, &["3 of 4 steps were skipped", "no checkpoint computes a finite loss"]);
    // Validation sees it first.
    let watched = [&madder[..], &["output_dir=watched"]].concat();
    place.failure(&watched).says(1, &["step 2: the validation loss is NaN", "no checkpoint computes a finite loss"]);
    // What is left can be read: it goes on, to the same end.
    place.failure(&[&watched[..], &["--resume"]].concat()).says(1, &["step 2: the validation loss is NaN"]);
    place.assert_no_litter();
}

#[test]
fn one_interrupt_saves_and_says_how_to_go_on_and_two_end_at_once() {
    let place = Workplace::new();
    let mut run = Running::start(place.command(&[
        "train",
        "trial.yaml",
        "--set",
        "training.max_steps=500",
        "--set",
        "name=a-b",
        "--json",
    ]));
    run.wait_for("step", 2);
    run.signal("INT");
    run.wait_for("interrupted", 2);
    let (code, stderr) = run.end();
    assert_eq!(code, Some(130));
    assert!(stderr.contains("stopping, and saving what is done"), "{stderr}");
    // For people, with the command that goes on.
    let mut command = place.command(&["train", "trial.yaml", "--set", "training.max_steps=500", "--resume"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("going on after step") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0);
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let _ = std::io::read_to_string(&mut stderr);
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130));
    assert!(stdout.contains("equipoise train trial.yaml --set training.max_steps=500 --resume"), "{stdout}");

    // A step that takes long, so that the second interrupt meets it.
    let long = ["output_dir=long", "training.gradient_accumulation_steps=4000", "training.eval_steps=0"];
    let mut run = Running::start(place.training(&long));
    run.wait_for("validation", 0);
    run.signal("INT");
    let begin = Instant::now();
    // On a busy machine two signals may come as one: the third is then the second.
    for _ in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(400));
        run.signal_if_running("INT");
    }
    let (code, stderr) = run.end();
    assert!(begin.elapsed().as_secs() < 5 && stderr.contains("stopped at once"), "{stderr}");
    assert_eq!(code, Some(130));
    assert!(!place.path("long/checkpoints").exists());
}

#[test]
fn nobody_has_to_listen() {
    let place = Workplace::new();
    for (stdout, stderr) in [(true, false), (false, true), (false, false)] {
        let mut command = place.training(&["--overwrite"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A pipe whose reader is gone, as after `| head`.
        let (kept_stdout, kept_stderr) = (child.stdout.take(), child.stderr.take());
        let kept_stdout = kept_stdout.filter(|_| stdout);
        let kept_stderr = kept_stderr.filter(|_| stderr);
        assert!(child.wait().unwrap().success(), "stdout {stdout}, stderr {stderr}");
        drop((kept_stdout, kept_stderr));
    }
    let mut command = place.command(&["check", "trial.yaml"]);
    assert!(command.env_remove("HOME").env_remove("HF_HOME").output().unwrap().status.success(), "without a home");
}

#[test]
fn adapters_that_cannot_speak() {
    let place = Workplace::new();
    let told = |arguments: &[&str]| {
        let output = place.command(&[&["generate"], arguments, &["--json"]].concat()).output().unwrap();
        refusal(&output)
    };
    told(&["nowhere", "hi"]).says(2, &["nowhere: no such folder or file", "a folder that `train` wrote"]);
    told(&["trial.yaml", "hi"]).says(2, &["trial.yaml: is not an adapter"]);
    place.train(&[]);
    told(&["out", &"cell ".repeat(2000)]).says(2, &["the prompt has", "tokens; expected 1 to 511"]);
    told(&["out", "", "--raw"]).says(2, &["the prompt has 0 tokens"]);
    told(&["out", "hi", "--base", "nobase"]).says(2, &["no such file or folder: nobase"]);
    let mut command = place.command(&["generate", "out", "Define it.", "--max-tokens", "18446744073709551615"]);
    assert!(command.output().unwrap().status.success(), "the model's positions end it");

    let (config, tensors) = (place.path("out/adapter_config.json"), place.path("out/adapter_model.safetensors"));
    let (whole_config, whole) = (std::fs::read(&config).unwrap(), std::fs::read(&tensors).unwrap());
    edit_json(&config, |config| config["r"] = json!(8));
    told(&["out", "hi"]).says(2, &["lora_A.weight: expected [8, ", "got [4, "]);
    std::fs::write(&config, "[]").unwrap();
    told(&["out", "hi"]).says(2, &["adapter_config.json"]);
    std::fs::write(&config, whole_config).unwrap();

    std::fs::write(&tensors, &whole[..1000]).unwrap();
    told(&["out", "hi"]).says(2, &["adapter_model.safetensors", "cut short"]);
    let mut damaged = whole.clone();
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&tensors, damaged).unwrap();
    told(&["out", "hi"]).says(2, &["adapter_model.safetensors", "not finite"]);
    std::fs::write(&tensors, whole).unwrap();
    std::fs::write(place.path("out/recipe.yaml"), "x: [").unwrap();
    told(&["out", "hi"]).says(2, &["recipe.yaml", "not valid YAML"]);
    assert!(embedded_base().is_dir());
}

#[test]
fn overwrite_takes_only_what_a_run_wrote() {
    let place = Workplace::new();
    // Another trainer's folder, with names like ours.
    std::fs::create_dir_all(place.path("theirs/checkpoints/mine")).unwrap();
    std::fs::copy(place.path("trial.yaml"), place.path("theirs/recipe.yaml")).unwrap();
    place.write("theirs/checkpoints/mine/f", "kept");
    place.refused(&["output_dir=theirs", "--overwrite"]).says(2, &["holds no run of Equipoise"]);
    // A run of ours, with something of the user's beside its checkpoints.
    place.train(&["training.max_steps=1"]);
    place.write("out/checkpoints/note.txt", "kept");
    place.write("out/checkpoints/step-000001/marker", "goes with the run");
    place.train(&["training.max_steps=1", "--overwrite"]);
    assert_eq!(std::fs::read_to_string(place.path("out/checkpoints/note.txt")).unwrap(), "kept");
    assert!(place.path("out/checkpoints/step-000001").is_dir());
    assert!(!place.path("out/checkpoints/step-000001/marker").exists());
}

#[test]
fn sizes_that_the_files_do_not_bear_out_are_an_error_and_no_allocation() {
    let huge = |base: &Path| {
        edit_json(&base.join("config.json"), |config| {
            config["hidden_size"] = (1u64 << 24).into();
            config["head_dim"] = (1u64 << 20).into();
        });
    };
    damaged(huge, &["do not fit the configuration", "embed_tokens", "more"]);
}

#[test]
fn rows_without_a_prompt_train_and_give_a_sample() {
    let place = Workplace::new();
    place.write("train.jsonl", "{\"prompt\": \"\", \"completion\": \"The repair of DNA.\"}\n".repeat(4));
    place.train(&["data.validation=null", "data.format=completion"]);
    assert!(place.path("out/adapter_model.safetensors").exists());
}
