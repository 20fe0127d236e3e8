use crate::data::testing::{CHATML, encoder, encoder_with};
use crate::data::{
    CacheConfig, ChatTemplate, DataConfig, DataFiles, DataReport, Dataset, Encoder, Sources, TrainOnTurns,
};
use crate::error::Result;

fn load(rows: &str, encoder: &Encoder) -> Result<(usize, DataReport)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    std::fs::write(&path, rows).unwrap();
    let config = DataConfig { cache: CacheConfig::Off, ..DataConfig::new(Sources::file(path.to_str().unwrap())) };
    let files = DataFiles::find(&config, |_, _| unreachable!("no Hub here"))?;
    Dataset::load(&config, &files, encoder, 42, &mut |_, _| {}).map(|dataset| (dataset.train.len(), dataset.report))
}

/// Under `train_on_turns: last`, where the last answer says nothing.
#[test]
fn a_row_of_which_nothing_is_learnt_is_left_out_and_counted() {
    let row = |last: &str| {
        let turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", last)];
        let turns = turns.map(|(role, content)| serde_json::json!({"role": role, "content": content}));
        serde_json::json!({"messages": turns}).to_string() + "\n"
    };
    let last = encoder().with_turns(TrainOnTurns::Last);
    let (rows, report) = load(&(row("b") + &row("")), &last).unwrap();
    assert_eq!((rows, report.unlearnt), (1, 1));
    assert!(report.unlearnt_examples[0].contains("train.jsonl:2"), "{:?}", report.unlearnt_examples);
    let (rows, report) = load(&(row("b") + &row("")), &encoder()).unwrap();
    assert_eq!((rows, report.unlearnt), (2, 0), "with all turns the first answer is learnt");
    let error = load(&row(""), &last).unwrap_err().to_string();
    assert!(error.contains("its one row teaches nothing") && error.contains("no token of the row"), "{error}");
}

/// The template that a row goes through decides, and what its expressions name.
#[test]
fn fields_of_turns_that_no_template_reads_are_named() {
    let row = |tools: serde_json::Value| {
        let user = serde_json::json!({"role": "user", "content": "q", "mood": "m", "tone": "t", "contents": "c"});
        let answer = serde_json::json!({"role": "assistant", "content": "a"});
        serde_json::json!({"messages": [user, answer], "tools": tools}).to_string() + "\n"
    };
    let reading =
        |field: &str| CHATML.replace("message['content']", &format!("(message.{field} or '') + message['content']"));
    let tools = ChatTemplate::at(&reading("tone"), None, None, 0).unwrap();
    let encoder = encoder_with(&reading("mood")).with_tool_template(Some(tools));
    let rows = row(serde_json::json!([])) + &row(serde_json::json!([{"name": "f"}]));
    let (_, report) = load(&rows, &encoder).unwrap();
    let unread: Vec<_> = report.unread.iter().map(|(field, rows)| (field.as_str(), *rows)).collect();
    assert_eq!(unread, [("contents", 2), ("mood", 1), ("tone", 1)]);
}
