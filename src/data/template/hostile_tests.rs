use super::*;

fn render(source: &str) -> Result<String> {
    ChatTemplate::at(source, None, None, 0)?.render(&[Message::user("hi")], &[], false)
}

/// Doubles what `x` holds, 60 times.
fn doubled(behind: &str) -> String {
    let double = "{% set ns.x = [ns.x, ns.x] %}";
    format!("{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{double}{{% endfor %}}{behind}")
}

/// A base's template is somebody else's: it may fail, but take no more memory than there is, and never end the process.
#[test]
fn what_would_take_all_memory_is_an_error() {
    let mut sources: Vec<String> = [
        "{{ '{:>20000000000}'.format(1) }}",
        "{{ '{:99999999999999999999999}'.format('a') }}",
        "{{ '{:.20000000000f}'.format(1.0) }}",
        "{{ '{:{}}'.format('a', 20000000000) }}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        "{{ '%20000000000d' % 1 }}",
        "{{ '%.*f' % (20000000000, 1.5) }}",
        "{{ '%99999999999999999999999d' % 1 }}",
        "{{ 'a'.center(70000000) }}",
        "{{ 'a'.ljust(60000000, '😀') }}",
        "{{ 'a'.zfill(20000000000) }}",
        "{{ '\t\t'.expandtabs(60000000) }}",
        "{{ ('a\n' * 1000000) | indent(4096) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ ('x' * 100000).join(['a'] * 100000) }}",
        "{{ (['a' * 1000000] * 100) | join }}",
        "{{ ([1] * 1000) | tojson(indent='x' * 1000000) }}",
        "{{ ([1] * 1000) | tojson(separators=['x' * 1000000, ':']) }}",
        "{{ (['a' * 1000000] * 100) | tojson }}",
        "{{ (['\n' * 1000000] * 50) | tojson }}",
        "{{ (['a' * 1000000] * 100) | string }}",
        "{{ (['a' * 10000000] * 100) ~ '' }}",
        "{{ ([1] * 99999999) | list }}",
        "{{ ('a' * 60000000) | list }}",
        "{{ ('ab' * 30000000).split('b') }}",
        "{{ ('a ' * 30000000).split() }}",
        "{{ ('\n' * 60000000).splitlines() }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f(x) %}{{ f([x, x]) }}{{ x ~ '' }}{% endmacro %}{{ f([1]) }}",
        "{% macro f(x) %}{{ f((x, x)) }}{{ x == x }}{% endmacro %}{{ f([1]) }}",
        "{% macro f(x) %}{{ f(dict(a=x, b=x)) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f([1]) }}",
    ]
    .map(str::to_owned)
    .to_vec();
    sources.extend(
        [
            "{{ ns.x }}",
            "{{ ns.x ~ '' }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x == ns.y }}",
            "{{ {ns.x: 1} }}",
            "{{ ns.x | replace('a', 'b') }}",
        ]
        .map(doubled),
    );
    for source in sources {
        let error = render(&source).map(|text| text.len()).expect_err(&source).to_string();
        assert!(
            error.contains("does not come to an end") || error.contains("too wide") || error.contains("recursion"),
            "{source}: {error}"
        );
    }
}

#[test]
fn what_would_fill_the_stack_is_an_error() {
    let nested = "{% set ns = namespace(x=[]) %}{% for j in range(20) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}\
                  {% endfor %}{% endfor %}";
    assert!(render(nested).unwrap_err().to_string().contains("does not come to an end"));
    for within in ["ns", "[ns]", "{'a': ns}", "(ns, 1)", "dict(a=ns)", "namespace(a=ns)"] {
        for behind in ["{{ ns ~ '' }}", "{{ ns | tojson }}", "{{ ns == other }}", "{{ {ns: 1} }}"] {
            let source = format!("{{% set ns = namespace() %}}{{% set ns.x = {within} %}}{behind}");
            let error = render(&source).expect_err(&source).to_string();
            assert!(error.contains("a namespace may not be part of another value"), "{source}: {error}");
        }
    }
    for (open, close) in
        [("(", ")"), ("[", "]"), ("-", ""), ("'%s' % ", ""), ("'%s' % (", ")"), ("'%s' % -", ""), ("{'a': ", "}")]
    {
        let count = 120_000 / (open.len() + close.len());
        let _ = render(&format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count)));
    }
}

/// What ordinary templates do with lists, sums and namespaces is left as it is: expected by Jinja2.
#[test]
fn what_is_measured_means_the_same() {
    for (source, expected) in [
        (
            "{% set ns = namespace(n=1, all=[]) %}{% for m in messages %}{% set ns.n = ns.n * 3 + 1 %}{% set ns.all = ns.all + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.all }}",
            "4['user']",
        ),
        ("{% set rest = messages[1:] %}{{ rest | length }}{{ rest }}", "0[]"),
        ("{%- set a, b = messages[0].role, 2 * 3 -%} {{ a }}{{ b }}", "user6"),
        ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x * 2 }}", "a2a2"),
        ("{{ (messages + [{'role': 'tool'}])[-1].role }}{{ [1, messages[0].role][1] }}", "tooluser"),
        ("{% for key, value in {'a': messages[0].role}.items() %}{{ key }}{{ value }}{% endfor %}", "auser"),
        ("{{ -2 * 3 + 10 // 4 * 2 - 2 ** 3 }}|{{ 'a' * 2 ~ 'b' + 'c' }}", "-10|aabc"),
        ("{{ ([1, 2] * 2).index(2) }}{{ ([1] + [1]).count(1) }}", "12"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

/// A name behind a dot is not a word of the language: what follows are a call's arguments, not a tuple.
#[test]
fn members_are_called_what_they_like() {
    for source in ["{{ x.filter(a, b) }}", "{{ x . from(a, [1]) }}", "{{ x.not (a, b) }}"] {
        assert_eq!(super::translate::translate(source).0, source);
    }
    let (sum, _) = super::translate::translate("{{ x.is + y }}");
    assert!(sum.contains("measured_value"), "{sum}");
}

#[test]
fn a_template_reads_the_fields_that_its_expressions_name() {
    let source = "{# message.comment #}weight {% for m in messages %}{{ m.role }}{{ m['mood'] }}{% if 'tone' in m %}{{ m.get('pace') }}{% endif %}{% endfor %}";
    let template = ChatTemplate::at(source, None, None, 0).unwrap();
    for (field, read) in [
        ("mood", true),
        ("tone", true),
        ("pace", true),
        ("comment", false),
        ("weight", false),
        ("moo", false),
        ("m", false),
    ] {
        assert_eq!(template.reads(field), read, "{field}");
    }
    for whole in
        ["{{ messages | tojson }}", "{% for m in messages %}{% for k, v in m.items() %}{{ v }}{% endfor %}{% endfor %}"]
    {
        assert!(ChatTemplate::at(whole, None, None, 0).unwrap().reads("anything"), "{whole}");
    }
}
