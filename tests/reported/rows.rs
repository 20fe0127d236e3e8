//! Rows and files of data. The inputs of `rows` are by pyarrow, `DuckDB`, pandas and datasets (`tests/parity/reported_rows.py`);
//! what is expected of the others is what these read of the same bytes, or what the trainer's documentation says that is named.

use super::{Case, Shown, shown};
use crate::support::workplace::Refusal;
use serde_json::Value;

/// What `data` says of a file with these contents.
#[track_caller]
fn data(name: &str, contents: impl AsRef<[u8]>, settings: &[&str]) -> Value {
    let case = Case::new("rows");
    case.write(name, contents);
    let train = format!("data.train={name}");
    case.data("recipe.yaml", &[&[&train[..]], settings].concat())
}

/// The texts of its rows.
#[track_caller]
fn texts(name: &str, contents: impl AsRef<[u8]>, settings: &[&str]) -> Vec<String> {
    shown(&data(name, contents, settings)).into_iter().map(|row| row.text).collect()
}

/// What it is refused with.
#[track_caller]
fn refused(name: &str, contents: impl AsRef<[u8]>, settings: &[&str]) -> Refusal {
    let case = Case::new("rows");
    case.write(name, contents);
    let train = format!("data.train={name}");
    case.refused("recipe.yaml", &[&[&train[..]], settings].concat())
}

/// The same through the template `chatml` of the base: turns of the user and the assistant, whose text is learnt.
fn turns(turns: &[(&str, &str)]) -> String {
    let turn = |(who, text): &(&str, &str)| match *who {
        "learnt" => format!("<|im_start|>assistant\n[[{text}<|im_end|>]]\n"),
        who => format!("<|im_start|>{who}\n{text}<|im_end|>\n"),
    };
    turns.iter().map(turn).collect()
}

fn warnings(said: &Value) -> String {
    let texts: Vec<&str> = said["warnings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    texts.join("\n")
}

#[test]
fn case_03_nulls_of_other_rows_are_not_learnt() {
    let case = Case::new("03-parquet-foreign-nulls");
    let rows = case.shown("recipe.yaml", &[]);
    assert_eq!(rows.iter().map(|row| row.tokens).collect::<Vec<_>>(), [226, 216]);
    assert!(rows[0].text.contains("[[locate {\"gene\": \"BRCA1\"}<|im_end|>]]"), "{}", rows[0].text);
    assert_eq!(rows, case.shown("recipe-jsonl.yaml", &[]));
}

/// Deeper calls, a list with a null of its own, a call without arguments; and the JSON that datasets writes of the table.
#[test]
fn nulls_of_a_table_are_taken_out_at_every_depth_and_those_of_lists_stay() {
    let case = Case::new("rows");
    let rows =
        |file: &str| case.shown("recipe.yaml", &[&format!("data.train={file}"), "data.chat_template=calls.jinja"]);
    let expected = rows("calls.jsonl");
    assert!(expected[0].text.contains("fold {\"protein\": {\"chain\": {\"id\": \"A\"}, \"sites\": [1, null, 3]}}"));
    assert!(expected[1].text.contains("[[stop {}<|im_end|>]]"), "{}", expected[1].text);
    assert_eq!(rows("calls.parquet"), expected);
    assert_eq!(rows("calls-of-datasets.jsonl"), expected);
}

/// What an author wrote as JSON in a text is not a table's doing.
#[test]
fn a_null_in_arguments_as_text_is_kept() {
    let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"type": "function",
        "function": {"name": "f", "arguments": "{\"unit\": null}"}}]}]}"#;
    let text = texts("rows.jsonl", row.replace('\n', " "), &["data.chat_template=calls.jinja"]).remove(0);
    assert!(text.contains("null"), "{text}");
}

#[test]
fn case_12_columns_that_nobody_needs_refuse_nothing() {
    let case = Case::new("12-parquet-binary-column");
    assert_eq!(case.shown("recipe.yaml", &[]).len(), 2);
    assert_eq!(case.shown("interval.yaml", &[]).len(), 1);
}

/// pyarrow: pictures, hashes, lists of bytes, halves, decimals in brotli, INT96, times, nulls, maps, dictionaries, vectors, an
/// index. `DuckDB`: INTERVAL at the top, in a list and in a struct, UUID, HUGEINT, JSON, BLOB, TIME, enums.
#[test]
fn tables_of_every_type_are_read_for_what_is_needed() {
    let case = Case::new("rows");
    let rows = |file: &str| case.shown("recipe.yaml", &[&format!("data.train={file}")]);
    let texts: Vec<_> = rows("unneeded.parquet").into_iter().map(|row| row.text).collect();
    assert_eq!(texts, [turns(&[("user", "a"), ("learnt", "c")]), turns(&[("user", "b"), ("learnt", "d")])]);
    assert_eq!(rows("duckdb.parquet")[0].text, turns(&[("user", "a"), ("learnt", "b")]));
    assert_eq!(rows("turns.parquet")[0].text, turns(&[("user", "a"), ("learnt", "b")]));
}

#[test]
fn a_column_that_is_needed_and_cannot_be_read_is_named_with_its_type() {
    let case = Case::new("rows");
    for (file, column, words) in [
        ("duckdb.parquet", "age", &["`age`", "INTERVAL"][..]),
        ("duckdb.parquet", "ages", &["`ages`", "LIST"]),
        ("duckdb.parquet", "raw", &["row 1", "`raw`", "not UTF-8"]),
        ("unneeded.parquet", "price", &["compressed", "brotli"]),
        ("unneeded.parquet", "hash", &["`hash`", "bytes"]),
    ] {
        let fields = format!("data.fields={{output: {column}}}");
        case.refused("recipe.yaml", &[&format!("data.train={file}"), &fields])
            .says(2, &[words, &["\"help\""]].concat());
    }
    // A template reads what it names, and no more.
    let template = "data.template={user: \"{{ instruction }}\", assistant: \"{{ price }}\"}";
    case.refused("recipe.yaml", &["data.train=unneeded.parquet", template]).says(2, &["brotli"]);
    let template = "data.template={user: \"{{ instruction }}\", assistant: \"{{ half }} {{ scores.x }}\"}";
    let rows = case.shown("recipe.yaml", &["data.train={path: unneeded.parquet, limit: 1}", template]);
    assert_eq!(rows[0].text, turns(&[("user", "a"), ("learnt", "1.5 1.0")]));
}

#[test]
fn case_14_a_turn_that_says_so_is_not_learnt() {
    let rows = Case::new("14-turn-loss-field").shown("recipe.yaml", &[]);
    let expected = turns(&[("user", "a"), ("assistant", "not this"), ("user", "b"), ("learnt", "this")]);
    assert_eq!(rows, [Shown { text: expected, tokens: 56 }]);
}

/// ms-swift's `loss` and `loss_scale` as numbers, torchtune's `masked`, and a table's nulls where a turn says nothing.
#[test]
fn the_names_that_trainers_have_for_it_are_read() {
    for (no, yes) in [
        ("\"loss\": 0", "\"loss\": 1.0"),
        ("\"loss_scale\": 0.0", "\"loss_scale\": null"),
        ("\"masked\": true", "\"masked\": false"),
        ("\"weight\": 0, \"train\": null", "\"train\": true"),
    ] {
        let row = format!(
            r#"{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "no", {no}}},
            {{"role": "user", "content": "b"}}, {{"role": "assistant", "content": "yes", {yes}}}]}}"#
        );
        let expected = turns(&[("user", "a"), ("assistant", "no"), ("user", "b"), ("learnt", "yes")]);
        assert_eq!(texts("rows.jsonl", row.replace('\n', " "), &[]), [expected], "{no}");
    }
}

/// Axolotl's `train_detail`, a name that sounds like one, and shares of a loss.
#[test]
fn what_is_to_be_learnt_and_cannot_be_told_is_refused() {
    for (field, words) in [
        (
            r#""train_detail": [{"begin_offset": 0, "end_offset": 1, "train": false}]"#,
            &["`train_detail`", "parts of a turn"][..],
        ),
        (r#""do_train": false"#, &["`do_train`", "{train: do_train}"]),
        (r#""loss": 0.5"#, &["`loss`", "0 or 1"]),
    ] {
        let row = format!(
            r#"{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "b", {field}}}]}}"#
        );
        refused("rows.jsonl", &row, &[]).says(2, &[words, &["on_bad_row: skip"]].concat());
    }
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "do_train": false},
        {"role": "assistant", "content": "c", "do_train": true}]}"#;
    let read = texts("rows.jsonl", row.replace('\n', " "), &["data.fields={train: do_train}"]);
    assert_eq!(read, [turns(&[("user", "a"), ("assistant", "b"), ("learnt", "c")])]);
}

#[test]
fn fields_of_turns_that_nothing_reads_are_counted() {
    let row = r#"{"messages": [{"role": "user", "content": "a", "id": 3}, {"role": "assistant", "content": "b", "mood": "glad"}]}"#;
    let said = warnings(&data("rows.jsonl", format!("{row}\n{row}\n"), &[]));
    assert!(said.contains("neither Equipoise nor the chat template reads: `mood` (2 rows)"), "{said}");
    assert!(!said.contains("`id`"), "{said}");
}

#[test]
fn case_15_roles_and_keys_are_read_or_mapped() {
    let case = Case::new("15-roles-and-keys");
    let texts = |recipe: &str| case.shown(recipe, &[]).into_iter().map(|row| row.text).collect::<Vec<_>>();
    let plain = [turns(&[("user", "a"), ("learnt", "b")])];
    assert_eq!(texts("capital.yaml"), plain);
    assert_eq!(texts("sharegpt-bing.yaml"), plain);
    assert_eq!(texts("speaker-text.yaml"), plain);
    assert_eq!(texts("ipython.yaml"), [turns(&[("user", "a"), ("learnt", "b"), ("ipython", "out"), ("learnt", "c")])]);
    case.write("calls.jinja", include_str!("cases/rows/calls.jinja"));
    let swift = case.shown("swift-tool_call.yaml", &["data.chat_template=calls.jinja"]);
    let expected = turns(&[("user", "a"), ("learnt", "f {}"), ("tool", "1"), ("learnt", "b")]);
    assert_eq!(swift[0].text, expected);
}

/// Names of a file's own: Axolotl's `roles` and `message_property_mappings`, LLaMA-Factory's `tags`; two calls in a row, as
/// ms-swift has them for one answer.
#[test]
fn a_recipe_maps_roles_and_keys_of_its_own() {
    let odd = r#"{"chat": [{"who": "Klient", "msg": "a"}, {"who": "doc-bot", "msg": "b", "ok": false}, {"who": "KLIENT", "msg": "c"}, {"who": "Doc Bot", "msg": "d"}]}"#;
    let fields = "data.fields={messages: chat, from: who, value: msg, train: ok}";
    let roles = "data.roles={assistant: [Doc Bot], user: klient}";
    let expected = turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("learnt", "d")]);
    assert_eq!(texts("rows.jsonl", odd, &[fields, roles, "data.format=chat"]), [expected]);
    // Only the text has another name.
    let text = r#"{"conversations": [{"from": "human", "text": "a"}, {"from": "gpt", "text": "b"}]}"#;
    assert_eq!(texts("rows.jsonl", text, &["data.fields={value: text}"]), [turns(&[("user", "a"), ("learnt", "b")])]);
    let calls = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "tool_call", "content": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"role": "tool_call", "content": "{\"name\": \"g\", \"arguments\": {}}"}, {"role": "tool_response", "content": "1"}, {"role": "tool_response", "content": "2"}, {"role": "assistant", "content": "b"}]}"#;
    let read = texts("rows.jsonl", calls, &["data.chat_template=calls.jinja"]);
    let expected =
        turns(&[("user", "a"), ("learnt", "f {\"x\": 1}g {}"), ("tool", "1"), ("tool", "2"), ("learnt", "b")]);
    assert_eq!(read, [expected]);
}

#[test]
fn roles_that_nobody_knows_are_named_with_the_key_that_maps_them() {
    let row = r#"{"messages": [{"role": "critic", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    refused("rows.jsonl", row, &[]).says(2, &["unknown role `critic`", "data.roles: {assistant: [critic]}"]);
    refused("rows.jsonl", row, &["data.roles={critic: user}"])
        .says(2, &["data.roles.critic", "`roles: {user: [critic]}`"]);
    let row = r#"{"messages": [{"speaker": "user", "text": "a"}]}"#;
    refused("rows.jsonl", row, &[]).says(2, &["`role` is missing", "data.fields: {role: speaker"]);
    refused("rows.jsonl", row, &["data.fields={question:Frage}"]).says(2, &["wants a space", "{question: Frage}"]);
}

#[test]
fn case_16_the_turns_of_a_completion_are_learnt() {
    let rows = Case::new("16-prompt-completion-turns").shown("recipe.yaml", &[]);
    assert_eq!(rows, [Shown { text: turns(&[("user", "Name a gas."), ("learnt", "Argon.")]), tokens: 38 }]);
}

/// TRL's dataset formats: several turns on both sides, one side as text, tools beside; and pairs to prefer one of, which are
/// another task.
#[test]
fn the_turns_of_a_prompt_are_not_learnt() {
    let prompt = r#"[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]"#;
    let completion = r#"[{"role": "assistant", "content": "d"}]"#;
    let expected = [turns(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("learnt", "d")])];
    assert_eq!(texts("rows.jsonl", format!(r#"{{"prompt": {prompt}, "completion": {completion}}}"#), &[]), expected);
    assert_eq!(texts("rows.jsonl", format!(r#"{{"prompt": {prompt}, "completion": "d"}}"#), &[]), expected);
    assert_eq!(
        texts("rows.jsonl", format!(r#"{{"prompt": "a", "completion": {completion}}}"#), &[]),
        [turns(&[("user", "a"), ("learnt", "d")])]
    );
    let tools = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}], "tools": [{"type": "function", "function": {"name": "f"}}]}"#;
    let read = texts("rows.jsonl", tools, &["data.chat_template=calls.jinja"]).remove(0);
    assert!(read.contains("\"name\": \"f\"") && read.ends_with("[[b<|im_end|>]]\n"), "{read}");
    let pair = format!(r#"{{"prompt": {prompt}, "chosen": {completion}, "rejected": {completion}}}"#);
    refused("rows.jsonl", &pair, &[]).says(2, &["DPO", "fields: {completion: chosen}"]);
    assert_eq!(texts("rows.jsonl", pair, &["data.fields={completion: chosen}"]), expected);
}

#[test]
fn case_19_tables_of_pandas_and_spreadsheets_are_read() {
    let case = Case::new("19-csv-habits");
    let texts = |recipe: &str| case.shown(recipe, &[]).into_iter().map(|row| row.text).collect::<Vec<_>>();
    let one = turns(&[("user", "a"), ("learnt", "b")]);
    assert_eq!(texts("pandas-index.yaml"), [one.clone(), turns(&[("user", "c"), ("learnt", "d")])]);
    assert_eq!(texts("trailing-comma.yaml"), [one]);
    assert_eq!(texts("semicolon.yaml"), [turns(&[("user", "Name a gas"), ("learnt", "Argon, a noble one")])]);
    // The format reads a name that stands twice.
    case.refused("two-of-a-name.yaml", &[]).says(2, &["names `output` twice", "another name"]);
    let template = "data.template={user: \"{{ instruction }}\", assistant: \"{{ row['output.1'] }}\"}";
    case.refused("two-of-a-name.yaml", &[template]).says(2, &["names `output` twice"]);
}

/// Excel's `sep=`, tabs and bars under other names, a comma at the end of the rows alone, names twice that nobody needs, bytes
/// that are not UTF-8 where nobody looks, rows that end early, decimal commas, line ends of old, spaces behind delimiters.
#[test]
fn tables_are_read_however_they_were_written() {
    let expected = [turns(&[("user", "a"), ("learnt", "b, c")])];
    for (name, table) in [
        ("rows.csv", &b"sep=;\r\ninstruction;output\r\na;b, c\r\n"[..]),
        ("rows.csv", b"instruction\toutput\na\tb, c\n"),
        ("rows.tsv", b"instruction|output\na|b, c\n"),
        ("rows.csv", b"\xEF\xBB\xBF\"instruction\";\"output\";price\na;\"b, c\";1,5\n"),
        ("rows.csv", b"id,id,instruction,output\n1,1,a,\"b, c\"\n"),
        ("rows.csv", b"instruction,output\na,\"b, c\",\n"),
        ("rows.csv", b"note,instruction,output\nM\xFCnchen,a,\"b, c\"\n"),
        ("rows.csv", b"instruction,output,note\na,\"b, c\"\n"),
        ("rows.csv", b"instruction,output\ra,\"b, c\"\r"),
        ("rows.csv", b"instruction; output; note\na; \"b, c\"; x\n"),
        ("rows.csv", b"instruction,output\n\n,\n\na,\"b, c\"\n"),
    ] {
        assert_eq!(texts(name, table, &[]), expected, "{}", String::from_utf8_lossy(table));
    }
    let named = "data.train={path: rows.csv, delimiter: \":\"}";
    assert_eq!(texts("rows.csv", "instruction:output\na:b, c\n", &[named]), expected);
    let named = "data.train={path: rows.csv, delimiter: tab, columns: [instruction, output]}";
    assert_eq!(texts("rows.csv", "a\tb, c\n", &[named]), expected);
    refused("rows.csv", "a:b\n", &["data.train={path: rows.csv, delimiter: \"::\"}"])
        .says(2, &["`delimiter` must be one character"]);
    refused("rows.jsonl", "{}", &["data.train={path: rows.jsonl, delimiter: \";\"}"])
        .says(2, &["`delimiter` is for such files"]);
}

#[test]
fn rows_that_do_not_fit_their_header_are_refused() {
    for (table, words) in [
        ("instruction,output\na,b,c\n", &["3 fields", "names 2", "quote fields"][..]),
        ("instruction,output\na\n", &["1 field", "names 2"]),
        ("instruction, output\na, \"b, c\"\n", &["space before the quote"]),
    ] {
        refused("rows.csv", table, &[]).says(2, words);
    }
}

/// Files of other programs, by their first bytes whatever they are called.
#[test]
fn files_of_other_programs_are_named_with_the_way_out() {
    for (name, start, words) in [
        (
            "rows.xlsx",
            &b"PK\x03\x04\x14\0....[Content_Types].xml....xl/workbook.xml"[..],
            &["an Excel workbook", "CSV"][..],
        ),
        ("rows.csv", b"PK\x03\x04\x14\0....[Content_Types].xml....xl/workbook.xml", &["an Excel workbook", "CSV"]),
        ("rows.xls", b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", &["an Excel workbook"]),
        ("rows.pkl", b"\x80\x04\x95\x10\0\0\0\0\0\0\0]", &["a Python pickle", "to_json"]),
        ("rows.arrow", b"\xFF\xFF\xFF\xFF\xA0\x01\0\0\x10\0", &["an Arrow file", "to_parquet"]),
        ("rows.feather", b"ARROW1\0\0\xFF\xFF", &["a Feather file"]),
        ("rows.db", b"SQLite format 3\0", &["a SQLite database", "-csv"]),
        ("rows.dta", b"<stata_dta><header>", &["a Stata file"]),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", &["Git LFS", "git lfs pull"]),
        ("rows.jsonl", b"<!DOCTYPE html>\n<html>", &["a web page"]),
    ] {
        refused(name, start, &[]).says(2, words);
    }
}

#[test]
fn case_23_an_empty_answer_is_left_out_and_counted() {
    let case = Case::new("23-empty-answer");
    let said = case.data("recipe.yaml", &[]);
    let texts: Vec<_> = shown(&said).into_iter().map(|row| row.text).collect();
    let first = turns(&[("user", "a"), ("assistant", ""), ("user", "b"), ("learnt", "c")]);
    assert_eq!(texts, [first, turns(&[("user", "a"), ("learnt", "b")])]);
    assert!(warnings(&said).contains("1 answer"), "{}", warnings(&said));
}

/// As LLaMA-Factory leaves such rows out with a warning: an empty output of each format, and an answer that is null.
#[test]
fn rows_that_teach_nothing_are_left_out_and_counted() {
    for (bad, good) in [
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#,
            r#"{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}"#,
        ),
        (r#"{"instruction": "a", "output": ""}"#, r#"{"instruction": "", "input": "", "output": "b"}"#),
        (r#"{"question": "a", "answer": null}"#, r#"{"question": "a", "answer": "b"}"#),
        (r#"{"prompt": "a", "completion": " "}"#, r#"{"prompt": "", "completion": "b"}"#),
        (r#"{"text": ""}"#, r#"{"text": "b"}"#),
    ] {
        let good = good.replace(r#""instruction": "", "input": """#, r#""instruction": "", "input": "x""#);
        let said = data("rows.jsonl", format!("{bad}\n{good}\n"), &[]);
        assert_eq!((&said["data"]["train_rows"], &said["data"]["unlearnt"]), (&1.into(), &1.into()), "{bad}");
        assert!(warnings(&said).contains("nothing in them to learn: 1 row (rows.jsonl:1"), "{}", warnings(&said));
        refused("rows.jsonl", bad, &[]).says(2, &["its one row teaches nothing"]);
    }
}

#[test]
fn the_errors_of_rows_name_the_key_that_leaves_them_out() {
    for row in [r#"{"instruction": "a", "output": 3}"#, r#"{"instruction": "a"}"#, r#"{"instruction": "a" "#] {
        let rows = format!("{{\"instruction\": \"a\", \"output\": \"b\"}}\n{row}\n");
        refused("rows.jsonl", &rows, &[]).says(2, &["`data.on_bad_row: skip`", "\"line\":2"]);
        assert_eq!(data("rows.jsonl", &rows, &["data.on_bad_row=skip"])["data"]["skipped"], 1);
    }
}

#[test]
fn case_24_a_saved_dataset_is_named_for_what_it_is() {
    let case = Case::new("24-save_to_disk");
    for recipe in ["recipe.yaml", "dict.yaml"] {
        case.refused(recipe, &[]).says(2, &["`save_to_disk`", "to_parquet", "to_json"]);
    }
}

/// `datasets` infers splits from the same names.
#[test]
fn a_folder_gives_the_files_of_its_split() {
    let case = Case::new("rows");
    let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    std::fs::create_dir(case.path("folder")).unwrap();
    for (name, text) in [("train-00000-of-00001.jsonl", "a"), ("test.jsonl", "b"), ("validation.jsonl", "c")] {
        case.write(&format!("folder/{name}"), row(text));
    }
    for beside in ["README.md", "dataset_infos.json", "state.json", ".gitattributes", "LICENSE.txt", "rows.jsonl.lock"]
    {
        case.write(&format!("folder/{beside}"), "{}");
    }
    let said = case.data("recipe.yaml", &["data.train=folder", "data.validation=folder"]);
    assert_eq!((&said["data"]["train_rows"], &said["data"]["validation_rows"]), (&1.into(), &1.into()));
    let texts: Vec<_> = shown(&said).into_iter().map(|row| row.text).collect();
    assert!(texts[0].contains('a') && texts[1].contains('c'), "{texts:?}");
    assert!(
        warnings(&said)
            .contains("these are taken: `train-00000-of-00001.jsonl`; these are not: `test.jsonl`, `validation.jsonl`"),
        "{}",
        warnings(&said)
    );
}

/// What Python's `json.loads` reads of the same lines, or what a person needs to hear.
#[test]
fn json_as_python_and_people_write_it_is_read() {
    let expected = [turns(&[("user", "a"), ("learnt", "b")])];
    let row = r#"{"instruction": "a", "output": "b"}"#;
    for (name, text) in [
        (
            "rows.jsonl",
            r#"{"instruction": "a", "input": NaN, "output": "b", "score": -Infinity, "n": [Infinity]}"#.to_owned(),
        ),
        ("rows.jsonl", format!("\u{feff}{row}\r\n\r\n")),
        ("rows.jsonl", format!("{row},\n")),
        ("rows.jsonl", format!("[\n{row},\n]")),
        ("rows.json", format!("[{row},]")),
        ("rows.json", "{\n  \"instruction\": \"a\",\n  \"output\": \"b\"\n}\n".to_owned()),
        (
            "rows.jsonl",
            r#"{"instruction": "x", "output": "b", "instruction": "a", "id": 123456789012345678901234567890}"#
                .to_owned(),
        ),
    ] {
        assert_eq!(texts(name, &text, &[]), expected, "{text}");
    }
    let two = "{\n \"instruction\": \"a\",\n \"output\": \"b\"\n}\n{\n \"instruction\": \"a\",\n \"output\": 3\n}\n";
    refused("rows.jsonl", two, &[]).says(2, &["`output` must be text", "\"line\":7"]);
}

#[test]
fn files_of_json_that_are_not_rows_are_explained() {
    let row = r#"{"question": "a", "answer": "b"}"#;
    for (text, words) in [
        (format!(r#"{{"data": [{row}], "version": 1}}"#), &["`data`", "is a list of objects", "jq"][..]),
        (format!("{{\n  \"train\": [{row}],\n  \"test\": [{row}]\n}}"), &["`train`", "jq"]),
        (format!(r#"{{"1": {row}, "2": {row}}}"#), &["each field is an object", "jq -c '.[]'"]),
        (r#"{"a": {"0": "x", "1": "y"}, "b": {"0": "x"}}"#.to_owned(), &["by columns", "orient"]),
        (r#"{"question": {"0": "x"}, "answer": {"0": "x"}}"#.to_owned(), &["must be text, got an object", "orient"]),
        ("{'question': 'a', 'answer': None}".to_owned(), &["json.dumps"]),
    ] {
        refused("rows.json", &text, &[]).says(2, words);
    }
}

#[test]
fn an_empty_file_to_validate_on_is_named_so() {
    let case = Case::new("rows");
    case.write("rows.jsonl", "{\"text\": \"a\"}\n");
    case.write("empty.jsonl", "");
    case.refused("recipe.yaml", &["data.validation=empty.jsonl"])
        .says(2, &["empty.jsonl", "holds no rows to validate on"]);
    case.refused("recipe.yaml", &["data.train=rows.jsonl, empty.jsonl"]).says(2, &["[rows.jsonl, empty.jsonl]"]);
}

/// TRL's `chat_template_kwargs`, as an object or as the text that a table has.
#[test]
fn the_variables_that_a_row_sets_reach_the_chat_template() {
    let template = "{% if mood is defined %}{{ mood }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
                    {{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let conversation = r#""messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    for kwargs in [r#"{"mood": "glad", "other": null}"#, r#""{\"mood\": \"glad\"}""#] {
        let case = Case::new("rows");
        case.write("mood.jinja", template);
        let row = format!("{{{conversation}, \"chat_template_kwargs\": {kwargs}}}\n{{{conversation}}}\n");
        case.write("rows.jsonl", row);
        let settings = ["data.train=rows.jsonl", "data.chat_template=mood.jinja"];
        let texts: Vec<String> = case.shown("recipe.yaml", &settings).into_iter().map(|row| row.text).collect();
        assert!(texts[0].starts_with("glad<user>a") && texts[1].starts_with("<user>a"), "{texts:?}");
    }
}
