//! What the shape rules refuse, as lines of the text form that would otherwise be fine.

use gllm_kernels::graph::{AttendOptions, Builder, Graph, MemoryWeights, Origin};

const HEAD: &str = r#"gllm-graph 1
%0 = input(kind="tokens") : u32[R] @ "a:1"
%1 = input(kind="positions") : u32[R] @ "a:1"
%2 = input(kind="slots") : u32[R] @ "a:1"
%3 = input(kind="outs") : u32[O] @ "a:1"
%4 = weight(name="e") : f32[10, 8] @ "a:1"
%5 = weight(name="n") : f32[8] @ "a:1"
%6 = embed(%4, %0) : f32[R, 8] @ "a:1"
%7 = reshape(%6, dims="2x4") : f32[R, 2, 4] @ "a:1"
%8 = cache(layer=0, part="key") : f16[S, 2, 4] @ "a:1"
%9 = select(%6, %3) : f32[O, 8] @ "a:1"
"#;

/// A last line, and what the error must say.
const REFUSED: &[(&str, &str)] = &[
    (r#"input(%0, kind="tokens") : u32[R]"#, "takes 0 arguments"),
    (r#"input(kind="time") : u32[R]"#, "no input \"time\""),
    (r#"input(kind="tokens") : u32[O]"#, "is u32[R], the text says u32[O]"),
    (r#"weight(name="w") : f32[R, 4]"#, "a weight's type is declared"),
    (r#"cache(layer=0, part="key") : f32[R, 2, 4]"#, "f16[S, heads, dim]"),
    (r#"cache(layer=0, part="key") : q8_0[2, 4]"#, "f16[S, heads, dim] or q8_0"),
    (r#"cache(layer=0, part="keys") : f16[S, 2, 4]"#, "no cache part"),
    ("embed(%4, %6) : f32[R, 8]", "tokens must be u32[R]"),
    ("embed(%5, %0) : f32[R, 8]", "the table must be a matrix"),
    ("linear(%6) : f32[R, 8]", "at least one weight"),
    ("linear(%6, %5) : f32[R, 8]", "must be a matrix, is f32[8]"),
    ("linear(%7, %4) : f32[R, 10]", "takes 8 inputs, x is f32[R, 2, 4]"),
    ("linear(%0, %4) : f32[R, 10]", "must be f32 rows, is u32[R]"),
    ("rms_norm(%7, %4, eps=1e-5) : f32[R, 2, 4]", "does not fit the last dimension"),
    ("rms_norm(%6, %5, eps=-1.0) : f32[R, 8]", "small positive"),
    ("rms_norm(%6, %5, eps=inf) : f32[R, 8]", "finite"),
    (r#"rope(%6, %1, dim=4, base=1.0, scale=1.0, layout="half") : f32[R, 8]"#, "cannot turn 4"),
    (r#"rope(%7, %1, dim=3, base=1.0, scale=1.0, layout="half") : f32[R, 2, 4]"#, "cannot turn 3"),
    (r#"rope(%7, %1, dim=6, base=1.0, scale=1.0, layout="half") : f32[R, 2, 4]"#, "cannot turn 6"),
    (r#"rope(%7, %3, dim=4, base=1.0, scale=1.0, layout="half") : f32[R, 2, 4]"#, "positions are"),
    (r#"rope(%7, %1, dim=4, base=0.0, scale=1.0, layout="half") : f32[R, 2, 4]"#, "unfit"),
    (r#"rope(%7, %1, %5, dim=4, base=1.0, scale=1.0, layout="half") : f32[R, 2, 4]"#, "2 pairs"),
    ("store(%8, %6, %1, %2) : f16[S, 2, 4]", "cannot store f32[R, 8] in f16[S, 2, 4]"),
    ("store(%8, %7, %1, %3) : f16[S, 2, 4]", "u32 rows"),
    ("attend(%7, %8, %6, %1, %2, scale=1.0) : f32[R, 2, 4]", "caches of one type"),
    ("attend(%6, %8, %8, %1, %2, scale=1.0) : f32[R, 8]", "queries f32[R, 8] do not fit"),
    ("attend(%7, %8, %8, %1, %2, scale=0.0) : f32[R, 2, 4]", "positive"),
    ("attend(%7, %8, %8, %1, %2, scale=1.0, window=0) : f32[R, 2, 4]", "sees nothing"),
    ("unary(%6, softcap=-1.0) : f32[R, 8]", "not positive"),
    (r#"unary(%6, kind="sin") : f32[R, 8]"#, "no function"),
    (r#"unary(%0, kind="silu") : u32[R]"#, "f32 rows"),
    (r#"binary(%6, %7, kind="add") : f32[R, 8]"#, "do not match"),
    (r#"binary(%6, %9, kind="add") : f32[R, 8]"#, "f32[R, 8] and f32[O, 8] do not match"),
    (r#"binary(%6, %6, kind="xor") : f32[R, 8]"#, "no operation"),
    ("layer_norm(%6, %5, %5, %5, eps=1e-5) : f32[R, 8]", "1 to 3 arguments"),
    ("layer_norm(%7, %4, eps=1e-5) : f32[R, 2, 4]", "does not fit"),
    ("concat(%6) : f32[R, 8]", "at least two"),
    ("concat(%6, %7) : f32[R, 16]", "do not match"),
    ("concat(%6, %9) : f32[R, 16]", "do not match"),
    ("softmax(%0) : u32[R]", "f32 rows"),
    ("top_k(%6, k=0) : u32[R, 1]", "cannot pick 0"),
    ("top_k(%6, k=9) : u32[R, 9]", "cannot pick 9"),
    ("top_k(%7, k=2) : u32[R, 2]", "cannot pick 2"),
    ("pick(%6, %6) : f32[R, 8]", "picks must be u32"),
    ("pick(%6, %0) : f32[R, 8]", "picks must be u32"),
    ("experts(%6, %0, %4) : f32[R, 10]", "picks must be u32"),
    ("mix(%7, %6) : f32[R, 4]", "do not match"),
    ("unary(%6, low=1.0, high=-1.0) : f32[R, 8]", "cannot clamp"),
    (
        r#"rope(%7, %1, dim=4, base=1.0, scale=1.0, layout="half", factors="1.0") : f32[R, 2, 4]"#,
        "2 pairs",
    ),
    (
        r#"rope(%7, %1, dim=4, base=1.0, scale=1.0, layout="half", gain=0.0) : f32[R, 2, 4]"#,
        "positive",
    ),
    ("attend(%7, %8, %8, %1, %2, %5, scale=1.0) : f32[R, 2, 4]", "sinks f32[8] do not fit"),
    ("attend(%7, %8, %8, %1, %2, scale=1.0, alibi=-1.0) : f32[R, 2, 4]", "positive"),
    (r#"reshape(%6, dims="3x3") : f32[R, 3, 3]"#, "cannot see"),
    (r#"reshape(%6, dims="0x8") : f32[R, 0, 8]"#, "empty or too large"),
    (r#"reshape(%6, dims="1x1x1x1x1x1x1x1x8") : f32[R, 8]"#, "more than 8 dimensions"),
    ("slice(%6, start=4, len=5) : f32[R, 5]", "no elements"),
    ("slice(%6, start=18446744073709551615, len=2) : f32[R, 2]", "no elements"),
    ("select(%9, %3) : f32[O, 8]", "cannot select"),
    ("sample(%6) : u32[R]", "logits must be f32[O, vocabulary]"),
];

#[test]
fn shapes_that_do_not_fit_are_refused() {
    HEAD.parse::<Graph>().unwrap();
    for (line, wanted) in REFUSED {
        let text = format!("{HEAD}%10 = {line} @ \"a:1\"\n");
        let error = text.parse::<Graph>().expect_err(line).to_string();
        assert!(error.contains(wanted) && error.starts_with("line 12: "), "{line}: {error}");
    }
}

#[test]
fn the_builder_names_line_tensor_and_shapes() {
    let mut weights = MemoryWeights::new();
    weights.insert("e.weight", &[10, 8], &[0.0; 80]).unwrap();
    weights.insert("blk.3.attn_q.weight", &[2, 4], &[0.0; 8]).unwrap();
    let mut b = Builder::new(&weights);
    let x = b.embed("e").unwrap();
    let line = line!() + 1;
    let error = b.linear(x, "blk.3.attn_q").unwrap_err().to_string();
    let wanted = format!(
        "refusals.rs:{line}: linear: blk.3.attn_q.weight: \
         the weight f32[2, 4] takes 4 inputs, x is f32[R, 8]"
    );
    assert_eq!(error, wanted);

    let origin = Origin { file: "llama.star".into(), line: 21 };
    let error = b.at(origin, |b| b.rms_norm(x, "no\n", 1e-5)).unwrap_err().to_string();
    assert_eq!(error, r#"llama.star:21: rms_norm: there is no tensor "no\n.weight""#);
    assert!(
        b.heads(x, 3).unwrap_err().to_string().contains("f32[R, 8] does not fall into 3 heads")
    );
    assert!(b.heads(x, 0).is_err());

    let q = b.heads(x, 2).unwrap();
    let options = AttendOptions { layer: 0, scale: 1.0, window: None, softcap: None };
    b.attend(q, q, q, options).unwrap();
    assert!(
        b.attend(q, q, q, options).unwrap_err().to_string().contains("layer 0 has one already")
    );
}

#[test]
fn sources_are_made_once() {
    let mut weights = MemoryWeights::new();
    weights.insert("e.weight", &[10, 8], &[0.0; 80]).unwrap();
    let mut b = Builder::new(&weights);
    let (tokens, table) = (b.tokens().unwrap(), b.weight("e").unwrap());
    let x = b.embed("e").unwrap();
    let y = b.linear(x, "e").unwrap();
    assert_eq!(b.graph().node(x).args.as_slice(), [table, tokens]);
    assert_eq!(b.graph().node(y).args.as_slice(), [x, table]);
    assert!(b.has("e") && !b.has("f"));
}
