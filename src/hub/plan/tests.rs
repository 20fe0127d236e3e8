use super::*;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder as `train` writes it, on a base at a path.
pub(in crate::hub) fn adapter_folder(base: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("adapter");
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write(
        CONFIG,
        &format!("{{\"base_model_name_or_path\": {base:?}, \"peft_type\": \"LORA\", \"r\": 8, \"revision\": null}}\n"),
    );
    write("adapter_model.safetensors", &"weights ".repeat(1000));
    write(
        RECIPE,
        &format!(
            "name: mine\nbase:\n  model: {base}\nobjective:\n  type: dft\ndata:\n  train:\n  - hub: org/rows@v1\n  - path: /srv/ward 7/notes.csv\n"
        ),
    );
    (place, folder)
}

fn options() -> UploadOptions {
    UploadOptions { repo: "me/mine".into(), ..UploadOptions::default() }
}

fn sent(plan: &UploadPlan, path: &str) -> String {
    read_text(plan.contents.iter().find(|file| file.path == path).unwrap()).unwrap()
}

#[test]
fn a_folder_without_a_card_gets_one_and_stays_as_it_is() {
    let (_place, folder) = adapter_folder("org/base");
    let plan = plan(&folder, &options()).unwrap();
    let card = sent(&plan, README);
    for phrase in ["base_model: org/base\n", "library_name: peft", "- dft", "- org/rows\n", "mine=me/mine", "# mine"] {
        assert!(card.contains(phrase), "{phrase}\n{card}");
    }
    assert!(!folder.join(README).exists());
    let made: Vec<_> = plan.files.iter().filter(|file| file.made_for_upload).map(|file| file.path.as_str()).collect();
    assert_eq!(made, [README, RECIPE]);
}

#[test]
fn paths_of_this_machine_are_not_sent_by_surprise() {
    let (_place, folder) = adapter_folder("/home/anna/models/llama-1b");
    let card = "---\nlibrary_name: peft\n---\n\n# Mine\n\nOf /home/anna/models/llama-1b. `vllm serve OWNER/BASE`, for `llama-1b`, at OWNER/REPO.\n\nSee /opt/tools/run and /think.\n";
    std::fs::write(folder.join(README), card).unwrap();
    let plain = plan(&folder, &options()).unwrap();
    for name in [CONFIG, RECIPE, README] {
        assert!(
            !sent(&plain, name).contains("/home/anna") && !sent(&plain, name).contains("/srv/"),
            "{}",
            sent(&plain, name)
        );
    }
    assert!(sent(&plain, RECIPE).contains("model: llama-1b\n") && sent(&plain, RECIPE).contains("path: notes.csv"));
    assert!(
        sent(&plain, README).contains("Of llama-1b. `vllm serve OWNER/BASE`")
            && sent(&plain, README).contains("/opt/tools/run")
    );
    let notes = plain.notes.join("\n");
    for phrase in ["`base_model_name_or_path`", "--base-model ORG/NAME", "notes.csv", "README.md: /opt/tools/run"] {
        assert!(notes.contains(phrase), "{phrase}: {notes}");
    }
    assert!(!notes.contains("/think"), "{notes}");

    let with_base = UploadOptions { base_model: Some("org/llama".into()), license: Some("mit".into()), ..options() };
    let named = plan(&folder, &with_base).unwrap();
    let config: Json = serde_json::from_str(&sent(&named, CONFIG)).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["r"]), (&"org/llama".into(), &8.into()));
    let card = sent(&named, README);
    for phrase in [
        "base_model: org/llama\n",
        "base_model:adapter:org/llama",
        "license: mit",
        "Of org/llama. `vllm serve org/llama`, for `org/llama`, at me/mine.\n",
    ] {
        assert!(card.contains(phrase), "{phrase}\n{card}");
    }
    assert!(sent(&named, RECIPE).contains("model: org/llama\n"));
    assert!(!named.notes.iter().any(|note| note.contains("--base-model")), "{:?}", named.notes);
    assert!(std::fs::read_to_string(folder.join(CONFIG)).unwrap().contains("/home/anna"), "the folder stays as it is");
}

#[test]
fn a_folder_that_is_no_model_is_not_sent() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("diary.md"), "x").unwrap();
    let error = plan(place.path(), &options()).unwrap_err();
    assert!(error.to_string().contains("no adapter and no model"), "{error}");
    assert!(plan(&place.path().join("nowhere"), &options()).is_err());
    std::fs::write(place.path().join("m.gguf"), "x").unwrap();
    assert!(sent(&plan(place.path(), &options()).unwrap(), README).contains("library_name: gguf"));
    std::fs::write(place.path().join("config.json"), "{}").unwrap();
    std::fs::write(place.path().join("model.safetensors"), "x").unwrap();
    assert!(sent(&plan(place.path(), &options()).unwrap(), README).contains("library_name: transformers"));
}

#[test]
fn a_path_is_replaced_where_it_stands_whole() {
    let replaced = |text| replace_whole(text, "/a/b", "X");
    assert_eq!(
        replaced("/a/b /a/b/c x/a/b /a/b. /a/b.gguf \"/a/b\" /a/bc ./a/b"),
        "X /a/b/c x/a/b X. /a/b.gguf \"X\" /a/bc ./a/b"
    );
}
