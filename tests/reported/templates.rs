//! Chat templates and what is learnt of a conversation.
//!
//! What is expected is transformers 5.23's rendering of the row as it is, unless a test says otherwise; which part of it is
//! learnt follows from the generation prompt, which transformers renders too.

use super::{Case, Shown};
use serde_json::{Value, json};

fn shown(text: &str, tokens: u64) -> Shown {
    Shown { text: text.to_owned(), tokens }
}

/// `ChatML` of one message at a time: what most of the templates here are made of.
const TURN: &str = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}";
const PROMPT: &str = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The texts of rows under a template of the test's own.
#[track_caller]
fn texts(case: &Case, template: &str, rows: &[Value]) -> Vec<String> {
    write(case, template, rows);
    case.shown("recipe.yaml", &["data.chat_template=own.jinja"]).into_iter().map(|row| row.text).collect()
}

fn write(case: &Case, template: &str, rows: &[Value]) {
    case.write("own.jinja", template);
    case.write("rows.jsonl", rows.iter().map(|row| row.to_string() + "\n").collect::<String>());
}

fn turn(role: &str, content: impl Into<Value>) -> Value {
    json!({"role": role, "content": content.into()})
}

fn row(messages: &[Value]) -> Value {
    json!({"messages": messages})
}

#[test]
fn a_conversation_that_the_assistant_begins() {
    let case = Case::new("02-starts-with-assistant");
    let expected = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>assistant\n[[Hello, I am the clerk.<|im_end|>]]\n\
                    <|im_start|>user\nIs it open?<|im_end|>\n<|im_start|>assistant\n[[It is.<|im_end|>]]\n";
    for recipe in ["recipe.yaml", "recipe2.yaml"] {
        assert_eq!(case.shown(recipe, &[]), [shown(expected, 92)], "{recipe}");
    }
}

/// More of that kind: a template that takes the system turn off and reads the first of the others (Llama 3.1's), one that
/// wants a question before it asks (Qwen 3.5's), one without any generation prompt (Vicuna's), and one whose last turn ends in
/// another way than earlier ones (gpt-oss's `<|return|>`).
#[test]
fn turns_are_found_where_a_conversation_cannot_be_cut() {
    let case = Case::new("02-starts-with-assistant");
    let (hello, open) = (turn("assistant", "Hello."), turn("user", "Open?"));
    let talk = row(&[turn("system", "S."), hello.clone(), open.clone(), turn("assistant", "Yes.")]);
    let expected = "<|im_start|>system\nS.<|im_end|>\n<|im_start|>assistant\n[[Hello.<|im_end|>]]\n\
                    <|im_start|>user\nOpen?<|im_end|>\n<|im_start|>assistant\n[[Yes.<|im_end|>]]\n";
    let first_of_others = format!(
        "{{% set first = messages[0] %}}{{% set rest = messages[1:] %}}{{% if rest[0].role == 'tool' %}}x{{% endif %}}\
         {{% for m in [first] + rest %}}{TURN}{{% endfor %}}{PROMPT}"
    );
    let wants_a_question = format!(
        "{{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}}{{{{ raise_exception('no question') }}}}\
         {{% endif %}}{{% for m in messages %}}{TURN}{{% endfor %}}{PROMPT}"
    );
    for template in [first_of_others, wants_a_question] {
        assert_eq!(texts(&case, &template, std::slice::from_ref(&talk)), [expected], "{template}");
    }
    let vicuna = "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}\
                  {% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}";
    let plain = row(&[hello.clone(), open.clone(), turn("assistant", "Yes.")]);
    assert_eq!(
        texts(&case, vicuna, &[plain]),
        ["[[ASSISTANT: Hello.<|im_end|>]]USER: Open?[[ASSISTANT: Yes.<|im_end|>]]"]
    );
    let returns = "{% for m in messages %}{{ '<|im_start|>' + m.role + '|' + m.content }}\
                   {{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}\
                   {% if add_generation_prompt %}{{ '<|im_start|>assistant|' }}{% endif %}";
    assert_eq!(
        texts(&case, returns, &[row(&[open, hello, turn("user", "It's <|im_start|>?"), turn("assistant", "Yes.")])]),
        [
            "<|im_start|>user|Open?<|im_end|><|im_start|>assistant|[[Hello.<|im_end|>]]<|im_start|>user|It's <|im_start|>?\
          <|im_end|><|im_start|>assistant|[[Yes.<|endoftext|>]]"
        ]
    );
}

#[test]
fn arguments_that_are_text_stay_text() {
    let case = Case::new("04-arguments-as-text");
    let expected = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n\
                    [[CALL locate {\"gene\":\"X\",\"n\":1.50,\"t\":true,\"u\":\"\\u00e9\"}<|im_end|>]]\n\
                    <|im_start|>tool\n17q<|im_end|>\n<|im_start|>assistant\n[[On 17q.<|im_end|>]]\n";
    for recipe in ["recipe.yaml", "recipe2.yaml", "recipe3.yaml"] {
        assert_eq!(case.shown(recipe, &[]), [shown(expected, 113)], "{recipe}");
    }
}

/// Templates that take objects, as Qwen 2.5's (`tojson`), Qwen3-Coder's (which walks over them) and one that loops over the
/// keys, where text would give its letters without a word; and one that adds text, given objects (DeepSeek's). Expected is
/// transformers' rendering of the row with the other form of `arguments`: of this one it makes text in text, or fails.
#[test]
fn arguments_have_the_form_that_the_template_takes() {
    let case = Case::new("04-arguments-as-text");
    let call = |arguments: Value| {
        let call = json!({"type": "function", "function": {"name": "locate", "arguments": arguments}});
        row(&[turn("user", "Where?"), json!({"role": "assistant", "content": "", "tool_calls": [call]})])
    };
    let template = |arguments: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' + m.content }}}}{{% for c in m.tool_calls or [] %}}\
             {{{{ c.function.name }}}} {arguments}{{% endfor %}}<|im_end|>\n{{% endfor %}}{PROMPT}"
        )
    };
    let expected = |call: &str| {
        format!("<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n[[locate {call}<|im_end|>]]\n")
    };
    let (text, object) = (json!("{\"gene\":\"X\",\"n\":1.0}"), json!({"gene": "X", "n": 1.0}));
    for (arguments, given, written) in [
        ("{{ c.function.arguments | tojson }}", &text, "{\"gene\": \"X\", \"n\": 1.0}"),
        ("{{ c.function.arguments | tojson }}", &json!("{}"), "{}"),
        ("{{ c.function.arguments | tojson }}", &json!(""), "{}"),
        ("{{ c.function | tojson }}", &text, "{\"name\": \"locate\", \"arguments\": {\"gene\": \"X\", \"n\": 1.0}}"),
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}", &text, "gene=X;n=1.0;"),
        ("{% for k in c.function.arguments %}{{ k }};{% endfor %}", &text, "gene;n;"),
        ("{{ '' + c.function.arguments }}", &object, "{\"gene\": \"X\", \"n\": 1.0}"),
        ("{{ c.function.arguments }}", &object, "{'gene': 'X', 'n': 1.0}"),
        ("{{ c.function.arguments }}", &json!("gene=X"), "gene=X"),
    ] {
        assert_eq!(texts(&case, &template(arguments), &[call(given.clone())]), [expected(written)], "{arguments}");
    }
    write(&case, &template("{{ c.function.arguments | tojson }}"), &[call(json!("gene=X"))]);
    let refusal = case.refused("recipe.yaml", &["data.chat_template=own.jinja"]);
    assert!(
        refusal.text.contains("`arguments` of the call of `locate` in turn 2 must be an object"),
        "{}",
        refusal.text
    );
}

/// Moves the base's templates from `tokenizer_config.json` into files, and adds one.
fn files_of_templates(case: &Case) {
    let path = case.path("base/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let templates = config["chat_template"].as_array().unwrap().clone();
    let template = |at: usize| templates[at]["template"].as_str().unwrap().to_owned();
    config["chat_template"] = json!("{{ 'not this' }}");
    std::fs::write(&path, config.to_string()).unwrap();
    case.write("base/chat_template.jinja", template(0));
    std::fs::create_dir(case.path("base/additional_chat_templates")).unwrap();
    case.write("base/additional_chat_templates/tool_use.jinja", template(1));
    case.write(
        "base/additional_chat_templates/rag.jinja",
        template(0).replace("message['content']", "'R ' + message['content']"),
    );
}

#[test]
fn rows_with_tools_have_the_template_tool_use() {
    let case = Case::new("05-template-tool_use");
    let with_tools = "<|im_start|>system\n[{\"type\": \"function\", \"function\": {\"name\": \"locate\", \"parameters\": {}}}]\
                      <|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n[[On 17q.<|im_end|>]]\n";
    let without = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[b<|im_end|>]]\n";
    let expected = [shown(with_tools, 116), shown(without, 23)];
    assert_eq!(case.shown("recipe.yaml", &[]), expected);

    // The same as files, which take precedence over `tokenizer_config.json`, and each template by its name for all rows.
    files_of_templates(&case);
    assert_eq!(case.shown("recipe.yaml", &[]), expected);
    assert_eq!(case.shown("recipe.yaml", &["data.chat_template=tool_use"]), expected, "without tools it is the same");
    let rag = case.shown("recipe.yaml", &["data.chat_template=rag"]);
    assert_eq!(rag[1].text, "<|im_start|>user\nR a<|im_end|>\n<|im_start|>assistant\n[[R b<|im_end|>]]\n");
    let unknown = case.refused("recipe.yaml", &["data.chat_template=tool_usr"]);
    assert!(unknown.text.contains("the base's own are `rag`, `tool_use`"), "{}", unknown.text);
}

/// All templates go along with a merged model: as files, which transformers reads, and under the keys of llama.cpp's converter.
/// A GGUF base gives them back.
#[test]
fn exports_carry_the_templates_with_names() {
    let case = Case::new("05-template-tool_use");
    let run = |arguments: &[&str]| {
        let output = case.command(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    files_of_templates(&case);
    run(&["train", "recipe.yaml", "--set", "training.max_steps=1", "--set", "output_dir=adapter"]);
    run(&["export", "adapter", "--to", "merged,gguf", "--quantize", "f32", "--no-verify", "--out", "out"]);
    let folder = std::fs::read_dir(case.path("out/gguf")).unwrap().map(|entry| entry.unwrap().path());
    let file = folder.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "gguf")).unwrap();
    let setting = format!("base.model={}", file.display());
    let expected = case.shown("recipe.yaml", &[]);
    assert_eq!(case.shown("recipe.yaml", &[&setting]), expected);
    assert_eq!(case.shown("recipe.yaml", &["base.model=out/merged"]), expected);

    // They stand beside an adapter of the GGUF base too, as files that transformers reads.
    run(&["train", "recipe.yaml", "--set", "training.max_steps=1", "--set", "output_dir=second", "--set", &setting]);
    for name in
        ["chat_template.jinja", "additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja"]
    {
        let read = |path: &str| std::fs::read_to_string(case.path(path)).unwrap();
        assert_eq!(read(&format!("second/{name}")), read(&format!("base/{name}")), "{name}");
    }
}

/// A merged model has one chat template: that of its training. Programs differ in which file they look into first.
#[test]
fn a_merged_model_has_the_template_of_its_training_alone() {
    let case = Case::new("05-template-tool_use");
    let run = |arguments: &[&str]| {
        let output = case.command(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let own = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
               {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    case.write("own.jinja", own);
    let template = "data.chat_template=own.jinja";
    run(&["train", "recipe.yaml", "--set", "training.max_steps=1", "--set", "output_dir=adapter", "--set", template]);
    run(&["export", "adapter", "--to", "merged", "--no-verify", "--out", "out"]);
    let read = |path: &str| std::fs::read_to_string(case.path(path)).unwrap();
    assert_eq!(read("out/chat_template.jinja"), read("adapter/chat_template.jinja"));
    let config = |path: &str| serde_json::from_str::<Value>(&read(path)).unwrap();
    let (mut base, merged) = (config("base/tokenizer_config.json"), config("out/tokenizer_config.json"));
    assert!(base.as_object_mut().unwrap().remove("chat_template").is_some());
    assert_eq!(merged, base);
}

#[test]
fn special_tokens_are_those_of_all_files() {
    let expected = "<|im_start|>user\nName a gas.<|im_end|>\n<|im_start|>assistant\n[[Argon.<|im_end|>]]\n";
    let case = Case::new("06-added-tokens-elsewhere");
    assert_eq!(case.shown("recipe.yaml", &[]), [shown(expected, 38)]);

    // Each of the other files and keys, `<|im_end|>` being named as EOS; found to give 38 tokens with transformers too.
    let path = case.path("base/tokenizer_config.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut bare = whole.as_object().unwrap().clone();
    bare.remove("added_tokens_decoder");
    let write = |more: Value| {
        let mut config = bare.clone();
        config.extend(more.as_object().unwrap().clone());
        std::fs::write(&path, Value::Object(config).to_string()).unwrap();
    };
    for more in [
        json!({"extra_special_tokens": ["<|im_start|>"]}),
        json!({"extra_special_tokens": {"turn_token": "<|im_start|>"}}),
        json!({"additional_special_tokens": [{"content": "<|im_start|>", "special": true}]}),
        json!({"turn_token": "<|im_start|>"}),
    ] {
        write(more.clone());
        assert_eq!(case.shown("recipe.yaml", &[]), [shown(expected, 38)], "{more}");
    }
    write(json!({}));
    for (file, contents) in [
        ("base/added_tokens.json", json!({"<|im_start|>": 1})),
        ("base/special_tokens_map.json", json!({"additional_special_tokens": ["<|im_start|>"]})),
    ] {
        case.write(file, contents.to_string());
        assert_eq!(case.shown("recipe.yaml", &[]), [shown(expected, 38)], "{file}");
        std::fs::remove_file(case.path(file)).unwrap();
    }
    // Tokens that the vocabulary does not have get the next ids; the model has 264 embeddings.
    let more: Vec<String> = (0..64).map(|i| format!("<extra{i}>")).collect();
    let more = more.iter().map(String::as_str).chain(["<|im_start|>", "gas."]);
    write(json!({"extra_special_tokens": more.collect::<Vec<_>>()}));
    let refusal = case.command(&["check", "recipe.yaml", "--json"]).output().unwrap();
    let told = String::from_utf8_lossy(&refusal.stdout).into_owned();
    assert!(!refusal.status.success() && told.contains("embeddings"), "{told}");
}

#[test]
fn a_prompt_that_opens_a_thought_is_no_obstacle() {
    let case = Case::new("08-thinking-prompt");
    let expected = [
        shown("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[[4<|im_end|>]]\n", 26),
        shown("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[[\n\n4<|im_end|>]]\n", 28),
    ];
    assert_eq!(case.shown("recipe.yaml", &[]), expected);
    let warnings = case.data("recipe.yaml", &[])["warnings"].to_string();
    assert!(
        warnings.contains("asks with \\\"<think>") && warnings.contains("thoughts of 1 row are not learnt"),
        "{warnings}"
    );
}

/// More of that kind: a prompt with a closed, empty thought, where earlier answers have none (Qwen3 with
/// `enable_thinking: false`); one that ends the thought at once (DeepSeek V3.1); one whose thoughts the answers keep (Qwen3's
/// thinking models); and an answer that begins with the sign that the thought's mark begins with.
#[test]
fn answers_begin_where_header_and_prompt_part() {
    let case = Case::new("08-thinking-prompt");
    let (one, two) = (turn("user", "1?"), turn("user", "2?"));
    let talk = row(&[one.clone(), turn("assistant", "<b>1"), two, turn("assistant", "2")]);
    let turns = |last: &str, prompt: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}{last}{{{{ m.content + '<|im_end|>\\n' }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n{prompt}' }}}}{{% endif %}}"
        )
    };
    let user = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n";
    let next = "\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n";
    for (template, first, last) in [
        (turns("", "<think>\\n\\n</think>\\n\\n"), "[[<b>1<|im_end|>]]", "[[2<|im_end|>]]"),
        (turns("", "</think>"), "[[<b>1<|im_end|>]]", "[[2<|im_end|>]]"),
        (
            turns(
                "{% if loop.last and m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
                "<think>\\n",
            ),
            "[[<b>1<|im_end|>]]",
            "<think>\n[[\n</think>\n\n2<|im_end|>]]",
        ),
    ] {
        let expected = format!("{user}{first}{next}{last}\n");
        assert_eq!(texts(&case, &template, std::slice::from_ref(&talk)), [expected], "{template}");
    }
    // One whose header is the end of the question's turn, so that the prompt is the thought alone.
    let header_before = "{% for m in messages %}{{ 'Q: ' + m.content + '\nA:' if m.role == 'user' else m.content + '<|im_end|>\n' }}\
                         {% endfor %}{% if add_generation_prompt %}<think>{% endif %}";
    assert_eq!(
        texts(&case, header_before, std::slice::from_ref(&talk)),
        ["Q: 1?\nA:[[<b>1<|im_end|>]]\nQ: 2?\nA:[[2<|im_end|>]]\n"]
    );
    let thinking = json!({"role": "assistant", "content": "1", "reasoning_content": "One."});
    let template = turns(
        "{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}",
        "<think>\\n",
    );
    assert_eq!(
        texts(&case, &template, &[row(&[one, thinking])]),
        [format!("{user}<think>\n[[One.\n</think>\n\n1<|im_end|>]]\n")]
    );
}

#[test]
fn parts_are_given_to_templates_that_walk_over_them() {
    let case = Case::new("22-content-parts");
    let text =
        |between: &str| format!("<|im_start|>user\na{between}b<|im_end|>\n<|im_start|>assistant\n[[c<|im_end|>]]\n");
    assert_eq!(case.shown("recipe.yaml", &[]), [shown(&text("\n"), 25)]);
    assert_eq!(case.shown("recipe2.yaml", &[]), [shown(&text(""), 24)]);
}

/// More of that kind: a template that adds text, one that would print the list, and one that walks over lists given text
/// (`LLaVA`'s, Idefics'), where transformers fails, prints a list, or writes an empty turn. Lists become text as vLLM joins them.
#[test]
fn content_has_the_form_that_the_template_takes() {
    let case = Case::new("22-content-parts");
    let parts = |texts: &[&str]| texts.iter().map(|text| json!({"type": "text", "text": text})).collect::<Value>();
    let lists = row(&[turn("user", parts(&["a", "b"])), turn("assistant", parts(&["c"]))]);
    let mixed = row(&[turn("user", parts(&["a", "b"])), turn("assistant", "c")]);
    let texts_only = row(&[turn("user", "a\nb"), turn("assistant", "c")]);
    let expected = "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n[[c<|im_end|>]]\n";
    let adds = format!("{{% for m in messages %}}{TURN}{{% endfor %}}{PROMPT}");
    let prints = format!(
        "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}{PROMPT}"
    );
    let walks = format!(
        "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{% for part in m.content %}}{{{{ part.text }}}}\
         {{% if not loop.last %}}{{{{ '\\n' }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}{PROMPT}"
    );
    for template in [adds, prints, walks] {
        let rows = [lists.clone(), mixed.clone(), texts_only.clone()];
        assert_eq!(texts(&case, &template, &rows), [expected; 3], "{template}");
    }
}

/// The table of the case's README; `strftime_now` is held by its length there.
#[test]
fn jinja_that_published_templates_use() {
    let case = Case::new("25-jinja-gaps");
    for (name, written) in [
        ("default-keyword", "d"),
        ("percent", "a-3"),
        ("rsplit", "c"),
        ("index", "1"),
        ("callable", "True"),
        ("strftime-j", "3"),
        ("strftime-D", "8"),
        ("dict-of-pairs", "{'a': 1}"),
        ("center", " x "),
        ("joiner", "a, b"),
        ("varargs", "2"),
    ] {
        let rows = case.shown(&format!("{name}.yaml"), &[]);
        let rest = rows[0].text.strip_prefix(written).unwrap_or_default();
        assert!(rest.starts_with("<|im_start|>"), "{name}: {}", rows[0].text);
    }
}
