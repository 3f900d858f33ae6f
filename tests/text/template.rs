//! Chat templates: what real ones use, and what hostile ones try.

use std::time::{Duration, Instant};

use gllm_kernels::text::{ChatTemplate, Message};

fn render(source: &str) -> Result<String, String> {
    let talk = [Message::new("user", "Hi <there>"), Message::new("assistant", " two  words ")];
    let template = ChatTemplate::new(source).map_err(|e| e.to_string())?;
    template.render(&talk, true, "<s>", "</s>").map_err(|e| e.to_string())
}

fn gives(source: &str, want: &str) {
    assert_eq!(render(source).as_deref(), Ok(want), "{source}");
}

#[test]
fn a_conversation() {
    let source = "{{ bos_token }}{% for m in messages %}
    {% if loop.first and m['role'] != 'system' %}
[none]
    {% endif %}
<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token if not loop.last }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
";
    gives(source, "<s>[none]\n<|user|>Hi <there></s>\n<|assistant|>two  words\n<|assistant|>");
}

#[test]
fn what_templates_use() {
    gives("{{ messages[0].content.upper() }}", "HI <THERE>");
    gives("{{ messages[0]['content'].split(' ')[-1] }}", "<there>");
    gives("{{ messages[1].content.strip() + '!' }}", "two  words!");
    gives("{{ 'a,b,c'.split(',', 1) | join('|') }}", "a|b,c");
    gives("{{ 'xaya'.replace('a', 'bb') }}{{ 'x'.startswith(('a', 'x')) }}", "xbbybbTrue");
    gives("{{ '</think>x'.split('</think>')[-1].lstrip('\\n') }}{{ 'aXb'.find('X') }}", "x1");
    gives(
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
        "role=user;content=Hi <there>;",
    );
    gives("{{ messages[0].get('tool_calls') }}{{ messages[0].get('x', 1) }}", "None1");
    gives("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "Hi <there>"}"#);
    gives(
        "{{ {'a': [1, 2.5, none, true], 'b': {}} | tojson(indent=2) }}",
        "{\n  \"a\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"b\": {}\n}",
    );
    gives("{{ 'é\"\\n' | tojson }}", r#""é\"\n""#);
    gives(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "2",
    );
    gives("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}", "a!");
    gives("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant");
    gives(
        "{{ tools is none }}{{ tools is defined }}{{ nope is defined }}{{ nope }}",
        "TrueTrueFalse",
    );
    gives("{% if tools %}x{% elif messages[0].content is string %}s{% endif %}", "s");
}

#[test]
fn dates() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year >= 2025);
}

#[test]
fn errors_say_where_and_are_fit_for_a_terminal() {
    let e = render("a\n{{ raise_exception('roles\u{1b}[31m must alternate') }}").unwrap_err();
    assert_eq!(e, r"chat template: line 2: roles\u{1b}[31m must alternate");
    let e = render(&format!("{{{{ raise_exception('{}') }}}}", "x".repeat(9999))).unwrap_err();
    assert!(e.len() < 300, "{e}");
    for bad in [
        "{% if %}",
        "{{ x",
        "{{ 1 +* }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ nope.a.b }}",
        "{{ ''.__class__.mro() }}",
    ] {
        assert!(render(bad).unwrap_err().starts_with("chat template: "), "{bad}");
    }
}

/// Each of these must end in an error, soon, without much memory and with the process alive.
#[test]
fn attacks_end_in_errors() {
    let wrap = "{% set ns = namespace(x='a', y='a') %}{% for i in range(90) %}";
    let double = format!(
        "{wrap}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = [ns.y, ns.y] %}}{{% endfor %}}"
    );
    let attacks: Vec<(&str, String)> = vec![
        ("double ~", format!("{wrap}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}{{{{ ns.x | length }}}}")),
        ("double +", format!("{wrap}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}{{{{ ns.x | length }}}}")),
        ("double *", format!("{wrap}{{% set ns.x = ns.x * 2 %}}{{% endfor %}}{{{{ ns.x | length }}}}")),
        ("huge *", "{{ ('a' * 100000000000) | length }}".into()),
        ("double set block", format!("{wrap}{{% set t %}}{{{{ ns.x }}}}{{{{ ns.x }}}}{{% endset %}}{{% set ns.x = t %}}{{% endfor %}}")),
        ("double join", format!("{wrap}{{% set ns.x = [ns.x, ns.x] | join %}}{{% endfor %}}")),
        ("double method join", format!("{wrap}{{% set ns.x = ns.x.join([ns.x, ns.x]) %}}{{% endfor %}}")),
        ("double method replace", format!("{wrap}{{% set ns.x = ns.x.replace('a', 'aa') %}}{{% endfor %}}")),
        ("square replace", "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) | length }}".into()),
        ("square filter replace", "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) | length }}".into()),
        ("empty replace", "{% set x = 'a' * 1000000 %}{{ x.replace('', x) | length }}".into()),
        ("format width", "{{ '%1000000000d' | format(1) | length }}".into()),
        ("indent", "{% set x = '\\n' * 1000000 %}{{ x | indent(1000000) | length }}".into()),
        ("power", "{{ 10 ** 100000000 }}{{ raise_exception('') }}".into()),
        ("range", "{{ range(100000000000) | list | length }}".into()),
        ("loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into()),
        ("long text in a loop", format!("{{% for a in range(99999) %}}{}{{% endfor %}}", "y".repeat(200_000))),
        ("macro", "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into()),
        ("recursive loop", "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into()),
        ("strings compared", "{% set x = 'a' * 3000000 %}{% set y = x ~ 'b' %}{% set z = x ~ 'b' %}{% for i in range(99999) %}{% if y == z %}{% endif %}{% endfor %}".into()),
        ("tree printed", format!("{double}{{{{ ns.x }}}}")),
        ("tree to string", format!("{double}{{{{ (ns.x ~ '') | length }}}}{{{{ ns.x | string | length }}}}")),
        ("tree to json", format!("{double}{{{{ ns.x | tojson | length }}}}")),
        ("deep json", format!("{wrap}{{% for j in range(9) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}{{% endfor %}}{{{{ ns.x | tojson }}}}")),
        ("long expression", format!("{{{{ {}raise_exception('') }}}}", "1 + ".repeat(60_000))),
        ("many attributes", format!("{{{{ x{} }}}}", ".a".repeat(100_000))),
        ("many filters", format!("{{{{ x{} }}}}", "|e".repeat(60_000) + "|nosuch")),
        ("many nots", format!("{{{{ {}x.y }}}}", "not ".repeat(60_000))),
        ("many minuses", format!("{{{{ {}x.y }}}}", "-".repeat(200_000))),
        ("many ifs", format!("{{{{ {}x.y }}}}", "1 if x else ".repeat(20_000))),
        ("brackets", format!("{{{{ {}1{} }}}}", "(".repeat(101), ")".repeat(101))),
        ("lists", format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000))),
        ("blocks", format!("{}{}", "{% if 1 %}".repeat(101), "{% endif %}".repeat(101))),
        ("loops in loops", "{% for i in 'a' %}".repeat(10_000)),
        ("source", "x".repeat((256 << 10) + 1)),
    ];
    for (name, source) in attacks {
        let start = Instant::now();
        let got = render(&source);
        let took = start.elapsed();
        let text =
            got.as_ref().map_or_else(|e| e.chars().take(90).collect(), |s| s.len().to_string());
        println!("{name}: {took:?}: {text}");
        assert!(got.is_err(), "{name} ended well");
        assert!(took < Duration::from_secs(9), "{name} took {took:?}");
    }
}

/// Deep values are walked by recursion when they are printed, compared, hashed or dropped.
#[test]
fn deep_values_do_not_overflow_the_stack() {
    let deep = "{% set ns = namespace(x=0, y=0) %}{% for i in range(15000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for end in [
        "ok",
        "{{ ns.x }}",
        "{{ ns.x == ns.x }}",
        "{{ ns.x | string }}",
        "{{ {ns.x: 1} }}",
        "{{ [ns.x, ns.x] | unique | list | length }}",
        "{{ ns.x < ns.x }}",
        "{{ ns.x.count(1) }}",
    ] {
        let start = Instant::now();
        let got = render(&format!("{deep}{end}"));
        println!("{end}: {:?}: {:?}", start.elapsed(), got.map(|s| s.len()));
    }
    // Shared twice a level, a tree of 2^90 leaves: the deadline answers, and from then on the
    // template is refused at once.
    let wide = "{% set ns = namespace(x='a', y='a') %}{% for i in range(90) %}\
                {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    let template = ChatTemplate::new(&format!("{wide}{{{{ ns.x == ns.y }}}}")).unwrap();
    for wanted in ["more than 5 s", "too long before"] {
        let e = template.render(&[], true, "", "").unwrap_err().to_string();
        assert!(e.contains(wanted), "{e}");
    }
}

/// The controls: what stays just inside the limits is rendered.
#[test]
fn what_is_within_the_limits_passes() {
    // The engine's own count of nesting ends before ours, which is there for the message.
    gives(&format!("{{{{ {}1{} }}}}", "(".repeat(40), ")".repeat(40)), "1");
    gives(&format!("{}x{}", "{% if 1 %}".repeat(40), "{% endif %}".repeat(40)), "x");
    gives(&format!("{{{{ {}1 }}}}", "1 + ".repeat(2000)), "2001");
    gives("{{ ('a' * 1000000) | length }}", "1000000");
    let long = "word ".repeat(200_000);
    let talk: Vec<Message> = (0..500).map(|i| Message::new("user", format!("{i}"))).collect();
    let source =
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim + '\\n' }}{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    assert_eq!(template.render(&talk, true, "", "").unwrap().lines().count(), 500);
    let out = template.render(&[Message::new("user", long.as_str())], true, "", "").unwrap();
    assert_eq!(out.len(), "<|user|>".len() + long.trim().len() + 1);
    let big = Message::new("user", "x".repeat((4 << 20) + 1));
    assert!(template.render(&[big], true, "", "").is_err());
}
