use super::*;
use crate::data::example::Role;
use crate::data::testing::{CHATML, END, encoder, encoder_with, shared, tokenizer};

fn chat(messages: &[(Role, &str)]) -> Example {
    Example::chat(messages.iter().map(|(role, content)| Message::new(*role, *content)).collect())
}

/// What is learnt, as text, run by run.
fn learnt(encoder: &Encoder, example: &Example) -> Vec<String> {
    let sequence = encoder.encode(example).unwrap();
    let segments = encoder.segments(&sequence).unwrap();
    segments.into_iter().filter(|(_, supervised)| *supervised).map(|(text, _)| text).collect()
}

const TALK: [(Role, &str); 5] = [
    (Role::System, "Bé brief <|im_start|>assistant\nno<|im_end|>\n"),
    (Role::User, "hello\n\n"),
    (Role::Assistant, "\n\nhé 🧬 said: assistant\n a"),
    (Role::User, "🧬?"),
    (Role::Assistant, "hell"),
];

#[test]
fn the_assistants_turns_are_learnt_with_their_end_and_nothing_else() {
    let encoder = encoder();
    let example = chat(&TALK);
    // Of the answer's two newlines the first merges with the template's: that token starts before the answer.
    assert_eq!(learnt(&encoder, &example), ["\nhé 🧬 said: assistant\n a<|im_end|>", "hell<|im_end|>"]);
    let sequence = encoder.encode(&example).unwrap();
    assert!(encoder.ends_supervised(&sequence));
    let Example::Chat { messages, .. } = &example else { unreachable!() };
    let rendered = encoder.template().unwrap().render(messages, &[], false).unwrap();
    assert_eq!(sequence.input_ids, tokenizer().encode(rendered.as_str(), false).unwrap().get_ids());
    let text: String = encoder.segments(&sequence).unwrap().into_iter().map(|(text, _)| text).collect();
    assert_eq!(text, rendered);
}

#[test]
fn a_space_before_the_answer_stays_outside() {
    // With the post-processor's trimmed offsets, the space would seem to lie inside the answer.
    let source = CHATML
        .replace("assistant\n' }}", "assistant\n ' }}")
        .replace("+ '\n' + message['content']", "+ '\n ' + message['content']");
    let encoder = encoder_with(&source);
    assert_eq!(learnt(&encoder, &chat(&[(Role::User, "q"), (Role::Assistant, "hello")])), ["hello<|im_end|>"]);
}

#[test]
fn without_an_end_token_eos_is_added() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let encoder = encoder_with(source);
    let example = chat(&[(Role::User, "q"), (Role::Assistant, "one"), (Role::User, "q"), (Role::Assistant, "two")]);
    // trim_blocks takes no newline after an expression, so each turn ends with one.
    assert_eq!(learnt(&encoder, &example), ["one\n", "two\n<|im_end|>"]);
    assert!(!encoder.ends_supervised(&encoder.encode(&example).unwrap()));
    let single = encoder.encode(&chat(&[(Role::User, "q"), (Role::Assistant, "one")])).unwrap();
    assert!(encoder.ends_supervised(&single));
    let open = encoder.encode(&chat(&[(Role::Assistant, "one"), (Role::User, "q")])).unwrap();
    assert_ne!(open.input_ids.last(), Some(&END), "EOS belongs to answers alone");
}

#[test]
fn an_end_of_the_whole_conversation_is_no_end_of_a_turn() {
    let source = format!("{}{{% else %}}{{{{ eos_token }}}}{{% endif %}}", CHATML.strip_suffix("{% endif %}").unwrap());
    let encoder = encoder_with(&source);
    let example = chat(&[(Role::User, "q"), (Role::Assistant, "one"), (Role::User, "q"), (Role::Assistant, "two")]);
    assert_eq!(learnt(&encoder, &example), ["one<|im_end|>", "two<|im_end|>\n<|im_end|>"]);
}

#[test]
fn templates_that_rewrite_history_are_refused_with_a_way_out() {
    let only_last = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        <|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let talk = chat(&[(Role::User, "q"), (Role::Assistant, "one"), (Role::User, "q"), (Role::Assistant, "two")]);
    let error = encoder_with(only_last).encode(&talk).unwrap_err();
    assert!(error.to_string().contains("rewrites history"), "{error}");
    assert!(error.help().unwrap().contains("one row of each answer"));
    let thinking = CHATML.replace("assistant\n' }}", "assistant\n<think>' }}");
    assert_eq!(learnt(&encoder_with(&thinking), &talk), ["one<|im_end|>", "two<|im_end|>"], "the header is the same");
    let other = CHATML.replace("assistant\n' }}", "model\n' }}");
    let error = encoder_with(&other).encode(&talk).unwrap_err();
    assert!(error.to_string().contains("it asks with \"model\\n\""), "{error}");
    let empty_thoughts = CHATML.replace(
        "+ message['content']",
        "+ ('<think></think>' if loop.last and message.role == 'assistant' else '') + message['content']",
    );
    let single = chat(&[(Role::User, "q"), (Role::Assistant, "one")]);
    assert_eq!(learnt(&encoder_with(&empty_thoughts), &single), ["<think></think>one<|im_end|>"]);
    let both = ["one<|im_end|>", "<think></think>two<|im_end|>"];
    assert_eq!(learnt(&encoder_with(&empty_thoughts), &talk), both);
}

/// As Qwen3 and its like have it: thoughts only behind the last question.
const FORGETTING: &str = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}\
    {% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\
    {% set thoughts = (m.reasoning_content or '') if loop.index0 > ns.last else '' %}{% if thoughts or loop.last %}<think>{{ thoughts }}\
    </think>\n{% endif %}{% endif %}{{ m.content or '' }}{% for call in m.tool_calls %}<call>{{ call | tojson }}</call>{% endfor %}\
    <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn answers_lie_where_they_are_though_history_is_rewritten() {
    let call = |id: u32| serde_json::json!({"name": "f", "arguments": {"x": id}});
    let think = |message: Message| message.with("reasoning_content", "hm".into());
    let messages = vec![
        Message::user("q"),
        think(Message::calls(vec![call(1), call(2)])),
        Message::new(Role::Tool, "hello"),
        think(Message::assistant("hello ")),
        Message::user("hello"),
        think(Message::assistant("say <|im_end|>\n hello")).with("tool_calls", vec![call(3)].into()),
        Message::new(Role::Tool, "hello"),
        think(Message::assistant("hello")),
    ];
    let expected = [
        "<call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</call><call>{\"name\": \"f\", \"arguments\": {\"x\": 2}}</call><|im_end|>",
        "hello <|im_end|>",
        "<think>hm</think>\nsay <|im_end|>\n hello<call>{\"name\": \"f\", \"arguments\": {\"x\": 3}}</call><|im_end|>",
        "<think>hm</think>\nhello<|im_end|>",
    ];
    let encoder = encoder_with(FORGETTING);
    assert_eq!(learnt(&encoder, &Example::chat(messages.clone())), expected);
    let last = encoder.with_turns(TrainOnTurns::Last);
    assert_eq!(learnt(&last, &Example::chat(messages.clone())), expected[3..]);
    let mut chosen = messages;
    (chosen[3].train, chosen[7].train) = (Some(true), Some(false));
    assert_eq!(learnt(&last, &Example::chat(chosen)), expected[1..2]);
}

#[test]
fn a_rows_flags_stand_over_the_recipe() {
    let mut messages =
        vec![Message::user("q"), Message::assistant("one"), Message::user("q"), Message::assistant("two")];
    messages[1].train = Some(false);
    assert_eq!(learnt(&encoder(), &Example::chat(messages.clone())), ["two<|im_end|>"]);
    messages[3].train = Some(false);
    assert_eq!(encoder().encode(&Example::chat(messages.clone())).unwrap().supervised(), 0);
    // Where an answer lies that is not learnt does not matter.
    let unclear = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        <|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    messages[3].train = None;
    assert_eq!(learnt(&encoder_with(unclear), &Example::chat(messages)), ["two<|im_end|>"]);
}

#[test]
fn generation_blocks_say_what_is_learnt() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
        <|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let talk = chat(&TALK);
    let encoder = encoder_with(source);
    assert_eq!(learnt(&encoder, &talk), ["\nhé 🧬 said: assistant\n a<|im_end|>", "hell<|im_end|>"]);
    assert_eq!(
        encoder.encode(&talk).unwrap().input_ids,
        crate::data::testing::encoder().encode(&talk).unwrap().input_ids
    );
    assert_eq!(learnt(&encoder.with_turns(TrainOnTurns::Last), &talk), ["hell<|im_end|>"]);
    let without_end = source.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>");
    assert_eq!(learnt(&encoder_with(&without_end), &talk)[1], "hell<|im_end|>");
    let in_two = source.replace(
        "{{ m.content }}<|im_end|>{% endgen",
        "{{ m.content }}{% endgeneration %}!{% generation %}<|im_end|>{% endgen",
    );
    let two = encoder_with(&in_two);
    let pieces = ["\nhé 🧬 said: assistant\n a", "<|im_end|>", "hell", "<|im_end|>"];
    assert_eq!(learnt(&two, &talk), pieces);
    assert_eq!(learnt(&two.with_turns(TrainOnTurns::Last), &talk), pieces[2..]);
    let forged = chat(&[(Role::User, "\u{FDD0}x\u{FDD1}"), (Role::Assistant, "a")]);
    assert!(encoder_with(source).encode(&forged).unwrap_err().to_string().contains("U+FDD0"));
}

#[test]
fn marks_that_the_tokenizer_does_not_know_are_told() {
    let marks = ["<|im_start|>", "<|eot_id|>", "<|im_end|>", "[INST]"];
    assert_eq!(encoder().split_marks(&marks), ["<|eot_id|>", "[INST]"]);
}

#[test]
fn prompt_and_completion_meet_at_an_exact_border() {
    let encoder = encoder();
    let example = Example::Completion { prompt: "say h".into(), completion: "ello".into() };
    let sequence = encoder.encode(&example).unwrap();
    assert_eq!(learnt(&encoder, &example), ["ello<|im_end|>"]);
    assert_eq!(sequence.input_ids[..5], encoder.encode_text("say h").unwrap());
    assert!(encoder.ends_supervised(&sequence));
    let bos = Some(("<|endoftext|>".to_string(), 258));
    let with_bos = Encoder::new(tokenizer(), None, None, bos.clone(), true).unwrap();
    let sequence = with_bos.encode(&example).unwrap();
    assert_eq!((sequence.input_ids[0], sequence.labels[0]), (258, IGNORED));
    assert!(!with_bos.ends_supervised(&sequence));
    let error = with_bos.encode(&chat(&TALK)).unwrap_err();
    assert!(error.to_string().contains("no chat template"));
    assert!(Encoder::new(tokenizer(), None, Some(("<|im_end|>".into(), 3)), None, false).is_err());
    assert!(Encoder::new(tokenizer(), None, None, None, true).is_err());
}

#[test]
fn truncation_and_padding_of_the_file_are_taken_off() {
    let mut cutting = tokenizer();
    let truncation = tokenizers::TruncationParams { max_length: 4, ..Default::default() };
    cutting.with_truncation(Some(truncation)).unwrap();
    let encoder = Encoder::new(cutting, None, None, None, false).unwrap();
    assert_eq!(encoder.encode_text("0123456789").unwrap().len(), 10);
}

#[test]
fn a_stream_yields_whole_characters_and_the_whole_text() {
    let encoder = encoder();
    let text = "hé 🧬 hello<|im_end|>";
    let mut stream = encoder.stream(true);
    let mut pieces = Vec::new();
    for id in encoder.encode_text(text).unwrap() {
        pieces.push(stream.push(id).unwrap());
    }
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), "hé 🧬 hello");
    let mut half = encoder.stream(true);
    let gene = encoder.encode_text("🧬").unwrap();
    assert_eq!(half.push(gene[0]).unwrap(), "");
    assert_eq!(half.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn what_is_far_too_long_is_not_tokenized() {
    let encoder = encoder();
    let dna = |n: usize| chat(&[(Role::User, "q"), (Role::Assistant, &"ACGT".repeat(n))]);
    let whole = encoder.encode(&dna(5000)).unwrap();
    let least = encoder.encode_within(&dna(5000), 100).unwrap().unwrap_err();
    assert!(least > 100 && least <= whole.len(), "{least}");
    assert_eq!(encoder.encode_within(&dna(5000), whole.len()).unwrap().unwrap().0, whole);
    let text = Example::Completion { prompt: "q".into(), completion: "é🧬".repeat(5000) };
    let least = encoder.encode_within(&text, 100).unwrap().unwrap_err();
    assert!(least > 100 && least <= encoder.encode(&text).unwrap().len(), "{least}");
}

#[test]
fn generation_stops_where_the_template_ends_a_turn() {
    assert_eq!(encoder().stop_ids(), [END]);
    let template = ChatTemplate::at(CHATML, None, None, 0).unwrap();
    let eos = Some(("<|endoftext|>".to_string(), 258));
    let encoder = Encoder::new(tokenizer(), Some(template), eos, None, false).unwrap();
    assert_eq!(encoder.stop_ids(), [258, END]);
    let prompt = encoder.encode_prompt(&[Message::user("q")]).unwrap();
    assert_eq!(encoder.decode(&prompt, false).unwrap(), "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_tokenizer_with_a_dummy_prefix_adds_no_space() {
    let Some(path) = shared("models/tinystories-656k-bf16/tokenizer.json") else { return };
    let tokenizer = Tokenizer::from_file(path).unwrap();
    let bos = Some(("<|start_story|>".to_string(), 1));
    let eos = Some(("<|end_story|>".to_string(), 2));
    let encoder = Encoder::new(tokenizer, None, eos, bos, true).unwrap();
    for (prompt, completion) in [("Once upon", " a time"), ("Once upon ", "a time"), ("", "a time")] {
        let sequence =
            encoder.encode(&Example::Completion { prompt: prompt.into(), completion: completion.into() }).unwrap();
        assert_eq!(encoder.decode(&sequence.input_ids, true).unwrap(), format!("{prompt}{completion}"));
        let learnt: Vec<u32> =
            sequence.labels.iter().filter(|&&label| label != IGNORED).map(|&label| label as u32).collect();
        let learnt_text = encoder.decode(&learnt, true).unwrap();
        assert!(learnt_text.ends_with("a time"));
        // This tokenizer merges across words: only a border without a space needs a token across it.
        assert_eq!(learnt_text == "a time", !prompt.ends_with(' '), "{learnt_text}");
        assert_eq!((sequence.input_ids[0], learnt.last()), (1, Some(&2)));
        let ids = encoder.encode_text("Once upon a time, a cat").unwrap();
        let mut stream = encoder.stream(true);
        let mut text = String::new();
        for id in ids {
            text += &stream.push(id).unwrap();
        }
        assert_eq!(text + &stream.finish().unwrap(), "Once upon a time, a cat");
    }
}

proptest::proptest! {
    /// Whatever the turns hold, what is learnt is the answer and the token that ends it.
    #[test]
    fn any_text_keeps_its_borders(question in "\\PC{0,20}", answer in "[^\n]{1,20}", tail in "[ \n]{0,3}") {
        let encoder = encoder();
        let answer = answer + &tail;
        let example = chat(&[(Role::User, &question), (Role::Assistant, &answer), (Role::User, &answer)]);
        proptest::prop_assert_eq!(learnt(&encoder, &example), [answer + "<|im_end|>"]);
    }

    #[test]
    fn any_completion_keeps_its_border(prompt in "\\PC{0,20}", completion in ".{1,20}") {
        let encoder = encoder();
        let example = Example::Completion { prompt: prompt.clone(), completion: completion.clone() };
        let sequence = encoder.encode(&example).unwrap();
        proptest::prop_assert_eq!(&sequence.input_ids[..sequence.len() - sequence.labels.iter().filter(|&&l| l != IGNORED).count()], encoder.encode_text(&prompt).unwrap());
        proptest::prop_assert_eq!(learnt(&encoder, &example), [completion + "<|im_end|>"]);
    }
}

/// Whatever a template writes, and whether its marks are tokens: questions and answers are left, as they were said.
#[test]
fn what_is_said_is_left_without_what_the_template_writes() {
    let chatml = |mark: &str| CHATML.replace("im_", mark);
    // As Qwen3: an answer that others follow has no empty thoughts.
    let thinking = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}";
    let instructions = "Below is an instruction. Write a response.\n\n{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n{% else %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}";
    // As R1-Zero: the template's own text speaks of questions and answers.
    let prose = "A conversation. The user asks a question, and gives its answer. {% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let talk = [
        (Role::User, "Which assistant answers the user?"),
        (Role::Assistant, "A model, in response."),
        (Role::User, "And\nthen?"),
        (Role::Assistant, "its answer"),
    ];
    for template in [chatml("im_"), chatml("other_"), thinking.into(), instructions.into(), prose.into()] {
        let encoder = encoder_with(&template);
        let scaffold = encoder.scaffold().unwrap();
        for turns in [2, 4] {
            let row = encoder.encode(&chat(&talk[..turns])).unwrap();
            let said = encoder.said(&row.input_ids, &scaffold).unwrap();
            let words: Vec<&str> = said.split_whitespace().collect();
            let expected = talk[..turns].iter().map(|(_, text)| *text).collect::<Vec<_>>().join(" ");
            assert_eq!(words.join(" "), expected.split_whitespace().collect::<Vec<_>>().join(" "), "{template}");
        }
    }
    // A system message of its own is said too; `system` before it is not worth a rule.
    let encoder = encoder();
    let row = encoder.encode(&chat(&[(Role::System, "Be brief."), talk[0], talk[1]])).unwrap();
    let said = encoder.said(&row.input_ids, &encoder.scaffold().unwrap()).unwrap();
    assert!(said.contains("Be brief.") && !said.contains("assistant\n") && !said.contains("user\n"), "{said:?}");
    // Of a template that wants a system message it is not known what it writes.
    let strict = CHATML.replacen(
        "{% for",
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{% for",
        1,
    );
    assert!(encoder_with(&strict).scaffold().is_none());
    // Without a template nothing is taken out.
    let plain = encoder.encode(&Example::Completion { prompt: "user\n".into(), completion: "hello".into() }).unwrap();
    assert!(encoder.said(&plain.input_ids, &Scaffold::default()).unwrap().contains("user\nhello"));
}
