//! Tests of how a format is chosen and its fields are named, and of all formats at once.

use super::*;
use crate::data::example::{Message, Role};
use crate::data::testing;
use proptest::prelude::*;
use serde_json::json;

fn mapping(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(field, column)| ((*field).to_string(), (*column).to_string())).collect()
}

fn auto(row: &Value, fields: &[(&str, &str)]) -> Result<RowFormat, RowError> {
    RowFormat::new(FormatName::Auto, &mapping(fields), None, row.as_object().unwrap())
}

fn chat_template() -> RowTemplate {
    RowTemplate { user: Some("{{ a }}".into()), assistant: Some("{{ b }}".into()), ..RowTemplate::default() }
}

#[test]
fn names_are_the_same_in_recipes_and_formats() {
    assert_eq!(FormatName::ALL.len(), FORMATS.len());
    for name in FormatName::ALL {
        assert_eq!(json!(name), name.format().unwrap().name());
    }
    assert_eq!(serde_json::from_value::<FormatName>(json!("instruct")).unwrap(), FormatName::Alpaca);
}

#[test]
fn the_fields_of_the_first_row_tell_the_format() {
    for (row, name, told) in [
        (json!({"text": "a", "id": 1}), "text", "`text`"),
        (json!({"prompt": "a", "completion": "b"}), "completion", "`prompt` and `completion`"),
        (json!({"instruction": "a", "output": "b"}), "alpaca", "`instruction` and `output`"),
        (json!({"id": 1, "messages": []}), "chat", "`messages`"),
        (json!({"conversations": [], "system": "s"}), "sharegpt", "`conversations`"),
        // As joined tables have them.
        (json!({"messages": [], "conversations": null, "text": null}), "chat", "`messages`"),
        (json!({"instruction": "a", "output": "b", "text": null}), "alpaca", "`instruction` and `output`"),
        (json!({"prompt": "a", "completion": null}), "completion", "`prompt` and `completion`"),
        (json!({"question": "a", "answer": "b", "focus": "c"}), "question_answer", "`question` and `answer`"),
        (
            json!({"question": "a", "contexts": [], "ideal_answer": "b"}),
            "question_answer",
            "`question` and `ideal_answer`",
        ),
        (
            json!({"question": "a", "options": {}, "answer": "b"}),
            "multiple_choice",
            "`question`, `options` and `answer`",
        ),
    ] {
        let format = auto(&row, &[]).ok().unwrap();
        let fields = if told.contains(" and ") { "fields" } else { "field" };
        assert_eq!(format.explain(), format!("{name} (by the first row's {fields} {told})"));
    }
}

#[test]
fn what_cannot_be_told_lists_choices_and_fields() {
    let none = auto(&json!({"Q": "a", "A": "b"}), &[]).err().unwrap();
    assert!(none.message.contains("`Q`, `A`"), "{none:?}");
    let help = none.help.unwrap();
    for expected in
        FORMATS.iter().map(|format| format.name()).chain(["data.fields", "data.template", "(`choices` or `options`)"])
    {
        assert!(help.contains(expected), "{expected} in {help}");
    }
    assert!(auto(&json!({}), &[]).err().unwrap().message.ends_with("none"));
    for (row, choices) in [
        (json!({"prompt": "a", "completion": "b", "messages": []}), "`completion` and `chat`"),
        (json!({"instruction": "a", "output": "b", "text": "c"}), "`text` and `alpaca`"),
        (
            json!({"question": "a", "long_answer": "b", "answer": 0, "choices": []}),
            "`question_answer` and `multiple_choice`",
        ),
    ] {
        let error = auto(&row, &[]).err().unwrap();
        assert!(error.message.contains(choices), "{error:?}");
        assert!(error.help.unwrap().contains("data.format"));
    }
    let row = json!({"prompt": "a", "completion": "b", "messages": []});
    let named = RowFormat::new(FormatName::Chat, &mapping(&[]), None, row.as_object().unwrap()).ok().unwrap();
    assert_eq!(named.explain(), "chat (set by `data.format`)");
}

#[test]
fn fields_are_read_under_the_names_of_the_rows() {
    let row = json!({"Q": "q", "A": "a", "question": 3, "text": "t"});
    let format = auto(&row, &[("question", "Q"), ("answer", "A")]).ok().unwrap();
    assert_eq!(
        format.explain(),
        "question_answer (by the first row's fields `Q` and `A`; `answer` is `A`, `question` is `Q`)"
    );
    let expected = Example::chat(vec![Message::user("q"), Message::assistant("a")]);
    assert_eq!(format.read(row.as_object().unwrap()).unwrap(), expected);

    let wrong = json!({"Q": "q", "A": 4});
    let error = format.read(wrong.as_object().unwrap()).unwrap_err();
    assert_eq!(error.path, [Step::from("A")]);
    assert_eq!(error.message, "`A` (the format's `answer`) must be text, got the integer 4");

    let lacking = json!({"Q": "q", "answer": "a"});
    for error in [
        format.read(lacking.as_object().unwrap()).unwrap_err(),
        auto(&lacking, &[("question", "Q"), ("answer", "A")]).err().unwrap(),
    ] {
        assert_eq!(error.path, [Step::from("A")]);
        let expected = "`A` is missing, which the recipe's `fields` gives for `answer`; the fields here: `Q`, `answer`";
        assert_eq!(error.message, expected);
    }

    let turns = json!({"dialog": [{"role": "assistant", "content": 1}]});
    let error = auto(&turns, &[("messages", "dialog")]).ok().unwrap().read(turns.as_object().unwrap()).unwrap_err();
    assert_eq!(error.path, [Step::from("dialog"), Step::Index(0), Step::from("content")]);
}

#[test]
fn a_template_is_taken_where_no_format_is_named() {
    let row = json!({"question": "q", "answer": "a"});
    let row = row.as_object().unwrap();
    let fields = mapping(&[("a", "question"), ("b", "answer")]);
    let format = RowFormat::new(FormatName::Auto, &fields, Some(&chat_template()), row).ok().unwrap();
    assert!(format.explain().starts_with("template (as the recipe has `template`"), "{}", format.explain());
    assert_eq!(format.read(row).unwrap(), Example::chat(vec![Message::user("q"), Message::assistant("a")]));
}

#[test]
fn mistakes_in_the_recipe_are_known_without_a_row() {
    let template = |user: &str, assistant: &str| RowTemplate {
        user: Some(user.into()),
        assistant: Some(assistant.into()),
        ..RowTemplate::default()
    };
    let alone = RowTemplate { user: Some("x".into()), ..RowTemplate::default() };
    let prompt = RowTemplate { prompt: Some("x".into()), ..RowTemplate::default() };
    let mixed = RowTemplate { completion: Some("x".into()), ..template("x", "x") };
    for (name, fields, template, message, help) in [
        (
            FormatName::Auto,
            mapping(&[]),
            Some(template("a\n{{ b", "x")),
            "data.template.user: is not a valid template: line 2",
            "Jinja",
        ),
        (
            FormatName::Auto,
            mapping(&[]),
            Some(template("a", "{% if b %}")),
            "data.template.assistant: is not a valid",
            "Jinja",
        ),
        (
            FormatName::Auto,
            mapping(&[]),
            Some(alone),
            "data.template: says nothing of `assistant`",
            "`user` and `assistant`",
        ),
        (
            FormatName::MultipleChoice,
            mapping(&[]),
            Some(prompt),
            "data.template: says nothing of `completion`",
            "`prompt`",
        ),
        (FormatName::Template, mapping(&[]), Some(mixed), "data.template: `user` is for a conversation", "`prompt`"),
        (FormatName::Template, mapping(&[]), None, "data.template: the format `template` needs it", "`user`"),
        (
            FormatName::Chat,
            mapping(&[]),
            Some(template("a", "b")),
            "data.template: the format `chat` takes none",
            "`template`",
        ),
        (
            FormatName::QuestionAnswer,
            mapping(&[("questions", "q")]),
            None,
            "data.fields.questions: is not a field that the format `question_answer` has",
            "`question`, `answer`, `long_answer`",
        ),
        (
            FormatName::Auto,
            mapping(&[("questions", "q")]),
            None,
            "data.fields.questions: is not a field that any",
            "alpaca has",
        ),
        (FormatName::Auto, mapping(&[("question", "")]), None, "data.fields.question: is empty", "name"),
    ] {
        let error = RowFormat::check("data", name, &fields, template.as_ref()).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(error.help().unwrap().contains(help), "{:?}", error.help());
        assert!(RowFormat::new(name, &fields, template.as_ref(), &Map::new()).is_err());
    }
    let system = RowTemplate { system: Some("x".into()), ..RowTemplate::default() };
    assert!(RowFormat::check("data", FormatName::MultipleChoice, &mapping(&[]), Some(&system)).is_ok());
    assert!(RowFormat::check("data", FormatName::Auto, &mapping(&[("question", "q")]), None).is_ok());
}

/// The rows of the shared data, each under the recipe that a user would write for it.
#[test]
fn the_biomedical_data_is_read() {
    let genes = RowTemplate {
        user: Some("Which process do these genes share? {{ genes | join(', ') }}".into()),
        assistant: Some("{{ term }}".into()),
        ..RowTemplate::default()
    };
    let table = RowTemplate {
        prompt: Some("Genes: {{ Genes.split(' ') | join(', ') }}\nProcess:".into()),
        completion: Some(" {{ Term_Description }}".into()),
        ..RowTemplate::default()
    };
    let row = json!({"GO": "GO:0044029", "Genes": "ZMPSTE24 NIBAN2", "Gene_Count": "2", "Term_Description": "x y"});
    let row = row.as_object().unwrap();
    let format = RowFormat::new(FormatName::Auto, &mapping(&[]), Some(&table), row).ok().unwrap();
    let expected =
        Example::Completion { prompt: "Genes: ZMPSTE24, NIBAN2\nProcess:".into(), completion: " x y".into() };
    assert_eq!(format.read(row).unwrap(), expected);
    let nothing = mapping(&[]);
    for (file, fields, template, name) in [
        ("medquad/train.jsonl", &nothing, None, "question_answer"),
        ("pubmedqa/train500.jsonl", &nothing, None, "question_answer"),
        ("bioasq/train.jsonl", &nothing, None, "question_answer"),
        ("mcq/mmlu_anatomy.jsonl", &nothing, None, "multiple_choice"),
        ("mcq/mmlu_professional_medicine.jsonl", &nothing, None, "multiple_choice"),
        ("gene_ontology/go_bp_genesets_direct.jsonl", &nothing, Some(&genes), "template"),
        (
            "gene_ontology/go_definitions.jsonl",
            &mapping(&[("instruction", "term"), ("output", "definition")]),
            None,
            "alpaca",
        ),
    ] {
        let Some(path) = testing::shared(&format!("data/{file}")) else { return };
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<Map<String, Value>> =
            text.lines().take(2000).map(|line| serde_json::from_str(line).unwrap()).collect();
        let format = RowFormat::new(FormatName::Auto, fields, template, &rows[0]).ok().unwrap();
        assert_eq!(format.name(), name, "{file}");
        for (i, row) in rows.iter().enumerate() {
            let example = format.read(row).unwrap_or_else(|error| panic!("{file}:{}: {error:?}", i + 1));
            let Example::Chat { messages, .. } = example else { panic!("a conversation") };
            assert!(messages.iter().any(|message| message.role == Role::Assistant), "{file}");
        }
    }
}

/// JSON with the names that formats look for, in every place and with every kind of value.
fn any_json() -> impl Strategy<Value = Value> {
    let names = "(messages|conversations|role|from|content|value|text|type|tools|tool_calls|function_call|function|arguments|\
                 name|system|history|weight|train|question|answer|long_answer|ideal_answer|context|contexts|choices|options|\
                 label|A|B|prompt|completion|instruction|input|output|é)";
    let texts = r#"(assistant|user|human|gpt|function_call|text|A|1| |é|\{"name": "f"\}|\[\]|x y)"#;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((names, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A row that has the fields of a format, so that more than the first check is met.
fn any_row() -> impl Strategy<Value = Map<String, Value>> {
    let format = 0..FORMATS.len();
    let values = proptest::collection::vec(any_json(), 12);
    (format, values).prop_map(|(format, values)| {
        known(FORMATS[format]).zip(values).map(|(name, value)| (name.to_string(), value)).collect()
    })
}

proptest! {
    #[test]
    fn no_row_makes_a_format_panic(row in any_row(), column in "(question|messages|é|x)") {
        let letters = RowTemplate { user: Some("{{ row }} {{ question }} {{ choices | tojson }}".into()), ..chat_template() };
        for name in [FormatName::Auto].iter().chain(FormatName::ALL) {
            for field in ["question", "messages", "text"] {
                for fields in [mapping(&[]), mapping(&[(field, &column)])] {
                    for template in [None, Some(&letters)] {
                        if let Ok(format) = RowFormat::new(*name, &fields, template, &row) {
                            prop_assert!(!format.explain().is_empty());
                            if let Err(error) = format.read(&row) {
                                prop_assert!(!error.message.is_empty());
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn two_fields_are_not_read_from_one_place() {
    let check = |name, pairs: &[(&str, &str)], template: Option<&RowTemplate>| {
        RowFormat::check("data", name, &mapping(pairs), template).map_err(|error| error.to_string())
    };
    for (name, pairs) in [
        (FormatName::QuestionAnswer, [("answer", "A"), ("question", "A")]),
        (FormatName::Auto, [("output", "x"), ("instruction", "x")]),
        (FormatName::Chat, [("content", "text"), ("role", "text")]),
    ] {
        let error = check(name, &pairs, None).unwrap_err();
        for (field, column) in pairs {
            assert!(error.contains(field) && error.contains(column), "{error}");
        }
    }
    // A row's own field and one of its turns; names of a template's own.
    check(FormatName::Chat, &[("messages", "value"), ("content", "value")], None).unwrap();
    check(FormatName::Auto, &[("a", "x"), ("b", "x")], Some(&chat_template())).unwrap();
}

#[test]
fn a_row_may_have_a_weight_under_its_own_name_or_another() {
    let row = json!({"question": "q", "answer": "a", "weight": "2.5", "importance": 3, "odd": -1});
    let row = row.as_object().unwrap();
    let read = |fields: &[(&str, &str)]| auto(&Value::Object(row.clone()), fields).unwrap().weight(row);
    assert_eq!(read(&[]), Ok(2.5));
    assert_eq!(read(&[("weight", "importance")]), Ok(3.0));
    let error = read(&[("weight", "odd")]).unwrap_err();
    assert_eq!(error.path, [Step::from("odd".to_owned())]);
    assert!(error.message.contains("at least 0") && error.message.contains("-1"), "{}", error.message);
    let format = auto(&json!({"text": "t"}), &[]).unwrap();
    for without in [json!({"text": "t"}), json!({"text": "t", "weight": null}), json!({"text": "t", "weight": " "})] {
        assert_eq!(format.weight(without.as_object().unwrap()), Ok(1.0));
    }
    assert!(format.needs("weight"), "a table's column of weights is read");
    // What a template reads may mean anything: a patient's weight, for one.
    let template = RowFormat::new(FormatName::Auto, &mapping(&[]), Some(&chat_template()), row).unwrap();
    assert_eq!(template.weight(row), Ok(1.0));
}
