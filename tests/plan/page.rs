//! A plan as a page: one file, everything escaped, alike layers drawn once.

use gllm_kernels::cpu::CpuBackend;
use gllm_kernels::graph::{Builder, Graph, MemoryWeights};
use gllm_kernels::plan::{Limits, Page, Plan};

/// A model of `layers` layers, of which all but the first and the last few are alike: their sum is
/// made with the next product. Their tensors have these names.
fn graph(layers: usize, name: &str) -> Graph {
    let mut weights = MemoryWeights::new();
    let values = vec![0.5; 16 * 16];
    weights.insert("embed.weight", &[16, 16], &values).unwrap();
    for i in 0..layers {
        weights.insert(&format!("blk.{i}.{name}.weight"), &[16, 16], &values).unwrap();
    }
    let mut b = Builder::new(&weights);
    let mut x = b.embed("embed").unwrap();
    for i in 0..layers {
        let h = b.linear(x, &format!("blk.{i}.{name}")).unwrap();
        let h = b.silu(h).unwrap();
        x = b.add(x, h).unwrap();
    }
    let x = b.select(x).unwrap();
    let logits = b.linear(x, "embed").unwrap();
    let token = b.sample(logits).unwrap();
    b.output(logits);
    b.output(token);
    b.finish()
}

fn page(layers: usize, name: &str, title: &str) -> String {
    let limits = Limits { rows: 4, outs: 1, slots: 1, context: 16 };
    let plan = Plan::new(&graph(layers, name), &CpuBackend::detect(), limits).unwrap();
    Page { plan: &plan, title, about: title }.to_string()
}

/// How many layers the page says are alike.
fn most_alike(html: &str) -> usize {
    let before = html.split(" alike · ").filter_map(|part| part.rsplit('>').next());
    before.filter_map(|n| n.parse().ok()).max().unwrap_or(0)
}

#[test]
fn it_is_whole_and_needs_nothing_else() {
    let html = page(5, "w", "five");
    let count = |what: &str| html.matches(what).count();
    for tag in ["details", "svg", "table", "section", "summary", "g", "body", "html"] {
        let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
        assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    for link in ["http:", "https:", "src=", "url(", "@import", "<link", "<img", "<iframe", "fetch("]
    {
        assert!(!html.contains(link), "{link}");
    }
    // A card says op, weight, shape and line; the chart has a bar for each value.
    for part in [">silu<", ">blk.*.w<", "→ f32[R, 16]", "page.rs:", "launches a step on cpu"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(most_alike(&html) >= 2);
}

#[test]
fn texts_of_a_file_are_only_text() {
    let hostile = "</title><script>alert(1)</script><b onclick='x' a=\"y\">&\u{202e}";
    let html = page(2, hostile, hostile);
    assert!(!html.contains("<script>alert") && !html.contains("<b onclick"));
    assert!(!html.contains("a=\"y\"") && !html.contains('\u{202e}'));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert_eq!(html.matches("<script>").count(), 1);
    // Nor does their length count: a name of a million letters is cut.
    let long = page(2, &"n".repeat(1_000_000), &"t".repeat(1_000_000));
    assert!(long.len() < 100_000, "{}", long.len());
}

#[test]
fn alike_layers_are_drawn_once() {
    let cards = |html: &str| html.matches("<g class=\"card").count();
    let (few, many) = (page(4, "w", "few"), page(400, "w", "many"));
    assert_eq!(cards(&few), cards(&many));
    assert!(most_alike(&many) >= 397 && many.contains("Layers 1–39"));
    assert!(graph(400, "w").nodes().len() > 1000 && many.len() < 1_000_000, "{}", many.len());
}
