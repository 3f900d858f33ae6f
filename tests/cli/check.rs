//! `gllm check` and its like, for whoever writes graph files.

use super::{folder, refused, run, text};
use std::fs;
use std::path::PathBuf;

/// The config of a fixture of `tests/graphs`.
fn config(folder: &std::path::Path, name: &str) -> String {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/graphs/fixtures/");
    let fixture = fs::read(format!("{fixture}{name}.json")).unwrap();
    let fixture: serde_json::Value = serde_json::from_slice(&fixture).unwrap();
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, fixture["config"].to_string()).unwrap();
    path.to_str().unwrap().to_string()
}

fn graph_file(name: &str) -> String {
    format!("{}/graphs/{name}.star", env!("CARGO_MANIFEST_DIR"))
}

/// A file with something else in the place of a part of a built-in one.
fn changed(folder: &std::path::Path, name: &str, from: &str, to: &str) -> PathBuf {
    let source = fs::read_to_string(graph_file(name)).unwrap();
    assert!(source.contains(from), "{name} has no {from}");
    let path = folder.join("changed.star");
    fs::write(&path, source.replacen(from, to, 1)).unwrap();
    path
}

#[test]
fn check_runs_every_backend_beside_the_reference() {
    let folder = folder("check");
    for (file, name) in [("llama", "qwen3moe"), ("gemma", "gemma3"), ("gpt2", "gpt2")] {
        let config = config(&folder, name);
        let output = run(&["check", &graph_file(file), "--config", &config, "--threads", "2"]);
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{shown}{}", text(&output.stderr));
        for part in
            ["noise in ", " launches a step", "arena of", "reference", "cpu scalar", "\nOK: "]
        {
            assert!(shown.contains(part), "{name}: no {part:?} in {shown}");
        }
        // Every instruction set computes the same.
        let rows: Vec<&str> = shown.lines().filter(|l| l.starts_with("cpu ")).collect();
        assert!(rows.iter().all(|r| r[16..] == rows[0][16..] && r.ends_with(" ok")), "{shown}");
        let cuda = shown.lines().find(|l| l.starts_with("cuda")).unwrap();
        assert!(cuda.contains("not run: ") || cuda.ends_with(" ok"), "{cuda}");
    }
}

#[test]
fn check_says_what_it_cut_and_lists_tensors() {
    let folder = folder("check-large");
    let large = folder.join("large.json");
    let json = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 3,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;
    fs::write(&large, json).unwrap();
    let args = ["check", &graph_file("llama"), "--config", large.to_str().unwrap()];
    let output = run(&[&args[..], &["--layers", "1", "--text", "--tensors"]].concat());
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    assert!(shown.contains("8 of 32 heads, 2 of 8 key heads, rows of 1024 instead of 4096"));
    assert!(shown.starts_with("gllm-graph 1\n"));
    let tensor =
        "blk.0.attn_k.weight       f32[256, 1024]   model.layers.0.self_attn.k_proj.weight\n";
    assert!(shown.contains(tensor), "{shown}");
    assert!(!shown.contains("blk.1."));
}

#[test]
fn check_refuses_what_does_not_fit() {
    let folder = folder("check-bad");
    let config = config(&folder, "llama");
    let check = |file: &PathBuf, wanted: &str| {
        refused(&["check", file.to_str().unwrap(), "--config", &config], wanted);
    };
    let linear = "p + \"attn_output\"";
    let line = fs::read_to_string(graph_file("llama")).unwrap();
    let line = line.lines().position(|l| l.contains(linear)).unwrap() + 1;
    check(
        &changed(&folder, "llama", linear, "p + \"ffn_down\""),
        &format!(
            "changed.star:{line}: linear: blk.0.ffn_down.weight: the weight f32[48, 72] takes 72 \
             inputs, x is f32[R, 48]"
        ),
    );
    check(
        &changed(&folder, "llama", linear, "p + \"attn_out\""),
        &format!("changed.star:{line}: linear: there is no tensor blk.0.attn_out.weight"),
    );
    // Tensors that are said to be something else.
    check(
        &changed(&folder, "llama", "    all = shapes(c)\n", "    return 5\n"),
        "tensors returned no dict of names and dimensions",
    );
    check(
        &changed(&folder, "llama", "    all = shapes(c)\n", "    return {\"a\": [-1]}\n"),
        "tensors returned no dict of names and dimensions",
    );
    // Values that no backend can compute with.
    let file =
        changed(&folder, "llama", "logits = head(g, x)", "logits = head(g, x * 1e38) * 1e38");
    let output = run(&["check", file.to_str().unwrap(), "--config", &config]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("the logits are not finite"), "{output:?}");
    // Neither a model nor a config, and a config that is none.
    assert_eq!(run(&["check", &graph_file("llama")]).status.code(), Some(2));
    fs::write(folder.join("none.json"), "[1]").unwrap();
    let none = folder.join("none.json");
    refused(&["check", &graph_file("llama"), "--config", none.to_str().unwrap()], "not an object");
    refused(&["check", &graph_file("llama"), "--config", "/dev/zero"], "not a regular file");
}

#[test]
fn check_takes_a_model_as_well() {
    let folder = folder("check-model");
    let model = folder.join("tiny.gguf");
    fs::write(&model, gllm_kernels::embedded::TINY).unwrap();
    let output = run(&["check", &graph_file("llama"), model.to_str().unwrap(), "--layers", "2"]);
    let shown = text(&output.stdout);
    assert!(output.status.success() && shown.contains("those of "), "{shown}");
    // What a graph forgets to read is told; nothing is, where nothing is forgotten.
    let args = |file: &str| run(&["check", file, model.to_str().unwrap()]);
    let shown = text(&args(&graph_file("llama")).stdout);
    assert!(shown.contains("\nOK: ") && !shown.contains("unread"), "{shown}");
    let gate = "g.silu(g.linear(x, p + \"ffn_gate\")) * ";
    let forgets = changed(&folder, "llama", gate, "");
    let shown = text(&args(forgets.to_str().unwrap()).stdout);
    let layers = gllm_kernels::embedded::tiny().unwrap();
    let layers = layers.meta().get_u64("llama.block_count").unwrap().unwrap();
    let unread = format!("unread    {layers} of the model's ");
    assert!(shown.contains(&unread) && shown.contains("\"blk.*.ffn_gate.weight\"\n"), "{shown}");
}

#[test]
fn check_knows_what_was_swapped() {
    let folder = folder("check-swapped");
    let config = config(&folder, "llama");
    let (file, here) = (graph_file("llama"), folder.to_str().unwrap());
    for (args, wanted) in [
        (vec!["check", "m.gguf", "a.star"], "the graph file comes first: gllm check a.star m.gguf"),
        (vec!["check", here, &file], "the graph file comes first: gllm check "),
        (vec!["check", &file, &config], "a config goes with --config: gllm check "),
        (
            vec!["check", "m.gguf", "--config", &config],
            "m.gguf is a model; a graph file comes first",
        ),
        (vec!["check", here, "--config", &config], "is a model; a graph file comes first"),
        (vec!["check", &config, here], "is a config; a graph file comes first"),
    ] {
        let output = run(&args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(wanted) && error.lines().count() == 1, "{args:?}: {error}");
    }
}

#[test]
fn check_lists_both_names_of_a_folders_tensors() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/graphs/packed/gptq4");
    let output = run(&["check", &graph_file("llama"), fixture, "--tensors"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    let (left, right) = ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight");
    let line = shown.lines().find(|l| l.starts_with(left));
    assert!(line.is_some_and(|l| l.ends_with(right)), "{shown}");
    // Scales are read as a part of their weights.
    assert!(!shown.contains("unread"), "{shown}");
    // Types stand in one column.
    let lines = shown.lines().take_while(|l| !l.starts_with("weights "));
    let columns: Vec<usize> =
        lines.map(|l| l.find('[').map_or(0, |at| l[..at].rfind(' ').unwrap())).collect();
    assert!(columns.len() > 10 && columns.iter().all(|c| *c == columns[0]), "{shown}");
}

#[test]
fn check_draws_a_page() {
    let folder = folder("check-page");
    let config = config(&folder, "gemma3");
    let page = folder.join("page.html");
    let args = ["check", &graph_file("gemma"), "--config", &config, "--html"];
    let output = run(&[&args[..], &[page.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>"));
    assert!(html.contains("gemma.star") && html.contains("blk.*.attn_q_norm"));
    refused_with_output(&[&args[..], &["/no/such/folder/page.html"]].concat(), "No such file");
}

/// Exit code 1 and a line that says why, whatever was printed before.
fn refused_with_output(args: &[&str], wanted: &str) -> String {
    let output = run(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    assert!(error.lines().count() == 1 && error.contains(wanted), "{args:?}: {error}");
    text(&output.stdout)
}

#[test]
fn diff_names_the_node_that_was_changed() {
    let folder = folder("diff");
    let config = config(&folder, "llama");
    let file = graph_file("llama");
    for (from, to, op, what) in [
        (
            "g.silu(g.linear(x, p + \"ffn_gate\"))",
            "g.gelu(g.linear(x, p + \"ffn_gate\"))",
            "unary",
            "kind=\"gelu\"",
        ),
        ("k = g.rope(k, base = base", "k = g.rope(k, base = base * 1.5", "rope", "base=15000.0"),
        ("p + \"ffn_norm\", eps = c.eps", "p + \"ffn_norm\", eps = 0.001", "rms_norm", "eps=0.001"),
        ("scale = scale, window", "scale = scale * 0.9, window", "attend", "scale=0.318"),
    ] {
        let other = changed(&folder, "llama", from, to);
        let line = fs::read_to_string(&other).unwrap();
        let line = line.lines().position(|l| l.contains(to)).unwrap() + 1;
        let args = ["diff", &file, other.to_str().unwrap(), "--config", &config];
        let shown = refused_with_output(&args, &format!("changed.star:{line}: {op}: values part"));
        let at = shown.lines().position(|l| l.contains("the first node that parts")).unwrap();
        let named = shown.lines().nth(at + 2).unwrap();
        assert!(
            named.contains(what) && named.ends_with(&format!("changed.star:{line}")),
            "{shown}"
        );
        assert!(
            shown.contains("of the largest, NMSE ") && shown.contains("most at row "),
            "{shown}"
        );
        assert!(shown.contains("the files differ first in"), "{shown}");
    }
    // A node more is skipped and named; what follows it parts.
    let more = changed(
        &folder,
        "llama",
        "    x = g.rms_norm(g.select(x)",
        "    x = x * 1.01\n    x = g.rms_norm(g.select(x)",
    );
    let args = ["diff", &file, more.to_str().unwrap(), "--config", &config];
    let shown = refused_with_output(&args, "select: values part");
    assert!(shown.contains("only in B: ") && shown.contains("unary(scale=1.01)"), "{shown}");
}

#[test]
fn diff_of_what_is_the_same_finds_nothing() {
    let folder = folder("diff-same");
    let config = config(&folder, "qwen3moe");
    let file = graph_file("llama");
    let nothing = |args: &[&str]| {
        let output = run(&[&["diff"], args, &["--config", &config]].concat());
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{shown}{}", text(&output.stderr));
        assert!(shown.contains("no value parts, of "), "{shown}");
        shown
    };
    // Other lines, other ways to write it, a difference too small to matter.
    let other = changed(&folder, "llama", "def turns(c, layer):", "\n\ndef turns(c, layer):");
    let other = other.to_str().unwrap();
    assert!(!nothing(&[&file, other]).contains("differ first"));
    changed(
        &folder,
        "llama",
        "p + \"attn_norm\", eps = c.eps",
        "p + \"attn_norm\", eps = c.eps * 1.01",
    );
    assert!(nothing(&[&file, other]).contains("the files differ first in"));
    assert!(nothing(&[&file, "--backends", "reference,cpu"]).contains("NMSE 1.0e-5"));
    let exact = nothing(&[&file, "--backends", "cpu:scalar,cpu"]);
    assert!(exact.contains("allowed is the same bits"), "{exact}");
}

#[test]
fn diff_says_what_it_needs() {
    let folder = folder("diff-usage");
    let config = config(&folder, "llama");
    let file = graph_file("llama");
    for (args, wanted) in [
        (vec!["diff", &file, "--config", &config], "two backends are needed"),
        (vec!["diff", &file, &file], "one model is needed"),
        (vec!["diff", &file, "--config", &config, "--backends", "cpu,gpu"], "\"gpu\" is none of"),
        (vec!["diff", &file, "--config", &config, "--backends", "cpu,cpu:mmx"], "\"mmx\""),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(wanted), "{args:?}: {}", text(&output.stderr));
    }
}
