//! The text form and the drawing.

use crate::models;
use gllm_kernels::graph::{
    AttendOptions, Builder, Graph, MemoryWeights, NodeId, Origin, RopeOptions, UnaryKind, arch,
};
use proptest::prelude::*;

#[track_caller]
fn survives(graph: &Graph) {
    let text = graph.to_string();
    let back: Graph = text.parse().unwrap();
    assert_eq!(&back, graph);
    assert_eq!(back.to_string(), text);
}

#[test]
fn architectures_survive() {
    for model in [models::llama().model(), models::gemma3().model()] {
        let graph = arch::build(&model).unwrap();
        assert!(graph.nodes().len() > 60 && graph.outputs().len() == 2);
        survives(&graph);
    }
    survives(&Graph::default());
}

/// A graph out of random steps; a step that does not fit is left out.
fn random(steps: &[(u8, u8, u8, f32)], names: &[String]) -> Graph {
    let mut weights = MemoryWeights::new();
    for name in names {
        weights.insert(&format!("{name}.weight"), &[8, 8], &[0.5; 64]).unwrap();
        weights.insert(&format!("{name}.n.weight"), &[8], &[0.5; 8]).unwrap();
        weights.insert(&format!("{name}.bias"), &[8], &[0.5; 8]).unwrap();
    }
    let mut b = Builder::new(&weights);
    let mut made: Vec<NodeId> = vec![b.embed(&names[0]).unwrap()];
    for (line, &(kind, i, j, c)) in steps.iter().enumerate() {
        let pick = |n: u8| made[n as usize % made.len()];
        let (x, y) = (pick(i), pick(j));
        let name = &names[j as usize % names.len()];
        let n = 1 + j as usize % 8;
        let origin = Origin { file: name.as_str().into(), line: line as u32 };
        let node = b.at(origin, |b| match kind % 15 {
            0 => b.linear(x, name),
            1 => b.rms_norm(x, &format!("{name}.n"), c.abs()),
            2 => b.heads(x, n),
            3 => b.merge(x),
            4 => b.rope(x, RopeOptions { base: c.abs(), scale: c, ..RopeOptions::default() }),
            5 => b.add(x, y),
            6 => b.mul(x, y),
            7 => b.unary(x, UnaryKind::PLAIN[n % 5].0),
            8 => b.scale(x, c),
            9 => b.softcap(x, c.abs()),
            10 => b.slice(x, n - 1, 1 + i as usize % 4),
            11 => b.select(x),
            12 => b.sample(x),
            13 => b.reshape(x, &[]),
            _ => {
                let window = (n > 4).then_some(n);
                let softcap = (n > 6).then_some(c.abs());
                let options = AttendOptions { layer: line, scale: c.abs(), window, softcap };
                b.attend(x, y, y, options)
            }
        });
        if let Ok(node) = node {
            made.push(node);
            if n == 3 {
                b.output(node);
            }
        }
    }
    b.finish()
}

fn random_graph() -> impl Strategy<Value = Graph> {
    let step = (any::<u8>(), any::<u8>(), any::<u8>(), any::<f32>());
    let steps = proptest::collection::vec(step, 0..60);
    let name = proptest::collection::vec(any::<char>(), 0..8);
    let name = name.prop_map(|chars| chars.into_iter().collect::<String>());
    let names = proptest::collection::vec(name, 1..4);
    (steps, names).prop_map(|(steps, names)| random(&steps, &names))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_graphs_survive(graph in random_graph()) {
        survives(&graph);
        graph.to_dot();
    }

    /// One byte changed: an error that names a line, or a graph that is sound.
    #[test]
    fn damaged_text_is_harmless(
        graph in random_graph(), at in any::<prop::sample::Index>(), to in 32u8..127,
    ) {
        let mut bytes = graph.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(text) = String::from_utf8(bytes) {
            match text.parse::<Graph>() {
                Ok(graph) => survives(&graph),
                Err(e) => prop_assert!(e.to_string().starts_with("line "), "{e}"),
            }
        }
    }
}

#[test]
fn hostile_text_names_its_line() {
    let origin = r#"@ "a:1""#;
    for (body, wanted) in [
        ("%1 = input(kind=\"outs\") : u32[O] @ \"a:1\"".to_string(), "\"%1\" should be %0"),
        (format!("%0 = embed(%0, %0) : f32[R, 1] {origin}"), "%0 does not exist yet"),
        (format!("%0 = embed(%9, %4294967295) : f32[R, 1] {origin}"), "does not exist yet"),
        (format!("%0 = embed(%4294967296) : f32[R, 1] {origin}"), "is no argument"),
        (format!("%0 = embed(%+1) : f32[R, 1] {origin}"), "is no argument"),
        (format!("%0 = exec(\"rm\") : u32[R] {origin}"), "is no argument"),
        (format!("%0 = exec() : u32[R] {origin}"), "\"exec\" is not an op"),
        (format!("%0 = input(kind=\"outs\", x=1) : u32[O] {origin}"), "unknown attribute \"x\""),
        (format!("%0 = input(kind=\"outs\", kind=\"outs\") : u32[O] {origin}"), "twice"),
        (format!("%0 = input(kind=\"outs) : u32[O] {origin}"), "no ')'"),
        (format!("%0 = input(kind=outs) : u32[O] {origin}"), "not quoted text"),
        (format!("%0 = input() : u32[O] {origin}"), "kind is missing"),
        (format!("%0 = weight(name=\"w\") : f32[0] {origin}"), "empty or too large"),
        (format!("%0 = weight(name=\"w\") : f32[99999999, 9999999] {origin}"), "too large"),
        (format!("%0 = weight(name=\"w\") : q9_9[4] {origin}"), "is not a type"),
        ("%0 = input(kind=\"outs\") : u32[O]".to_string(), "no '@'"),
        ("%0 = input(kind=\"outs\") : u32[O] @ a".to_string(), "no origin"),
        ("%0 = input(kind=\"outs\") : u32[O] @ \"a:-1\"".to_string(), "no origin"),
        ("%0".to_string(), "no '='"),
        ("output %0".to_string(), "no node"),
        ("\u{1b}[31m".to_string(), "\\u{1b}[31m"),
    ] {
        let error = format!("gllm-graph 1\n\n# a remark\n{body}\n").parse::<Graph>();
        let error = error.expect_err(&body).to_string();
        assert!(error.contains(wanted) && error.starts_with("line 4: "), "{body}: {error}");
    }
    for text in ["", "gllm-graph 2\n", "GGUF"] {
        assert!(text.parse::<Graph>().unwrap_err().to_string().contains("gllm-graph 1"));
    }
}

#[test]
fn forms_are_stable() {
    let mut weights = MemoryWeights::new();
    weights.insert("a\"\\b.weight", &[4, 4], &[0.0; 16]).unwrap();
    let mut b = Builder::new(&weights);
    let here = |line| Origin { file: "demo".into(), line };
    let x = b.at(here(1), |b| b.embed("a\"\\b")).unwrap();
    let y = b.at(here(2), |b| b.scale(x, 0.5)).unwrap();
    let z = b.at(here(3), |b| b.add(y, x)).unwrap();
    b.output(z);
    let graph = b.finish();
    insta::assert_snapshot!(graph.to_string(), @r#"
    gllm-graph 1
    %0 = input(kind="tokens") : u32[R] @ "demo:1"
    %1 = weight(name="a\"\\b.weight") : f32[4, 4] @ "demo:1"
    %2 = embed(%1, %0) : f32[R, 4] @ "demo:1"
    %3 = unary(%2, scale=0.5) : f32[R, 4] @ "demo:2"
    %4 = binary(%3, %2, kind="add") : f32[R, 4] @ "demo:3"
    output %4
    "#);
    insta::assert_snapshot!(graph.to_dot(), @r#"
    digraph {
        0 [ label="%0 input\nkind=\"tokens\"\nu32[R]", shape=box, peripheries=1]
        1 [ label="%1 weight\nname=\"a\\\"\\\\b.weight\"\nf32[4, 4]", shape=box, peripheries=1]
        2 [ label="%2 embed\nf32[R, 4]", shape=ellipse, peripheries=1]
        3 [ label="%3 unary\nscale=0.5\nf32[R, 4]", shape=ellipse, peripheries=1]
        4 [ label="%4 binary\nkind=\"add\"\nf32[R, 4]", shape=ellipse, peripheries=2]
        1 -> 2 [ label="0"]
        0 -> 2 [ label="1"]
        2 -> 3 [ ]
        3 -> 4 [ label="0"]
        2 -> 4 [ label="1"]
    }
    "#);
    let view = graph.petgraph();
    assert_eq!((view.node_count(), view.edge_count()), (5, 5));
    let edge = view.find_edge(y.0.into(), z.0.into()).unwrap();
    assert_eq!(view.edge_weight(edge), Some(&0));
}
