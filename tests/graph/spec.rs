//! The op table of SPEC is the op table of the code.

use gllm_kernels::graph::Op;

#[test]
fn spec_lists_every_op_and_no_other() {
    let page = include_str!("../../SPEC/graph.md");
    let table = page.split("## Ops").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<Vec<_>>(), Op::NAMES);
}
