//! That launches find their nodes, lines and bytes again, on every architecture and chip.

use super::{load, tiny};
use crate::cuda::CudaTarget;
use crate::cuda::lower::{self, launches};
use crate::cuda::program::unchained;
use crate::cuda::session::times;
use crate::graph::{Graph, Op, Weights, arch};
use crate::plan::{Limits, Part, Plan, Rate, Role, Times};
use crate::replay::profile::{Profile, join};

/// A profile with made-up times: launch `i` takes `i + 1` microseconds.
fn profile(graph: &Graph, w: &dyn Weights, capability: u32) -> (Plan, Profile) {
    let limits = Limits { rows: 1, outs: 1, slots: 1, context: 96 };
    let target = CudaTarget::of(capability).unwrap();
    let plan = Plan::new(graph, &target, limits).unwrap();
    let program = lower::lower(&target.0, &plan).unwrap();
    let bases = load(&program, w, 0).bases;
    let mut made = launches(&target.0, &program, &bases).unwrap();
    made.iter_mut().for_each(|l| l.set_rows(1));
    let made = unchained(&made);
    let ends: Vec<f64> = (0..made.len()).map(|i| ((i + 1) * (i + 2) / 2) as f64 * 1e-6).collect();
    let launches = times(&plan, &made, &bases, 0.0, &ends);
    let replay = ends.last().copied().unwrap_or(0.0);
    let times = Times {
        launches,
        clock: 0.0,
        replay,
        token: replay,
        empty: None,
        ceiling: Rate { bytes_per_second: 3e12, how: "made up" },
        beside: None,
        steps: 1,
    };
    let profile = join(&plan, 10, times).unwrap();
    (plan, profile)
}

/// What a step over one row reads of weights, counted weight by weight: a table that is looked into
/// and multiplied with is read by both.
fn read(plan: &Plan) -> u64 {
    let graph = plan.graph();
    let mut sum = plan.weight_bytes_per_token();
    for b in plan.buffers().iter().filter(|b| b.role == Role::Weight) {
        let users = || graph.nodes().iter().filter(|n| n.args.contains(&b.value));
        let looked = users().any(|n| matches!(n.op, Op::Embed(_)));
        if looked && users().any(|n| !matches!(n.op, Op::Embed(_))) {
            sum += b.bytes / graph.ty(b.value).dims[0] as u64;
        }
    }
    sum
}

#[test]
fn every_launch_has_a_line_and_no_byte_is_lost() {
    for name in tiny::fixtures() {
        let fixture = tiny::fixture(&name);
        for format in ["F32", "BF16"] {
            let model = tiny::model(&format!("{name}-profiled-{format}"), &fixture, format, 1);
            let library = arch::Library::embedded();
            let graph = arch::build_for(model.meta(), &model, &library, 96).unwrap();
            for capability in [80, 90] {
                let (plan, profile) = profile(&graph, &model, capability);
                let what = format!("{name} in {format} on sm_{capability}");
                let count = profile.launches.len() as f64;
                assert!(
                    (profile.total() * 1e6 - count * (count + 1.0) / 2.0).abs() < 1e-6,
                    "{what}"
                );
                assert!(profile.adds_up() && profile.warning().is_none(), "{what}");
                for (launch, timed) in profile.timed() {
                    assert!(launch.line.line > 0 && !launch.name.is_empty(), "{what}: {launch:?}");
                    // What a group takes in and leaves is with its first product.
                    let bare = timed.kernel == "pick" || timed.part != Part::Whole;
                    assert!(launch.moved.total() > 0 || bare, "{what}: {launch:?}");
                }
                let (moved, cache) = (profile.moved(), plan.cache_bytes_per_token(10));
                assert_eq!(moved.weights, read(&plan), "{what}");
                // Each layer that attends also writes its row.
                assert!(moved.cache > cache && moved.cache < cache * 2, "{what}");
                // Rows are the launches, each once.
                let rows = profile.rows();
                let mut members: Vec<usize> = rows.iter().flat_map(|r| r.members.clone()).collect();
                members.sort_unstable();
                assert!(members.into_iter().eq(0..profile.launches.len()), "{what}");
                let seconds: f64 = rows.iter().map(|r| r.seconds).sum();
                assert!((seconds - profile.total()).abs() < 1e-12, "{what}");
                let bytes: u64 = rows.iter().map(|r| r.moved.total()).sum();
                assert_eq!(bytes, moved.total(), "{what}");
            }
        }
    }
}

#[test]
fn what_an_attention_takes_on_is_not_said_of_the_product_before() {
    let fixture = tiny::fixture("llama");
    let model = tiny::model("llama-taken", &fixture, "F32", 1);
    let graph = arch::build_for(model.meta(), &model, &arch::Library::embedded(), 96).unwrap();
    let (_, profile) = profile(&graph, &model, 90);
    let attends = profile.timed().filter(|(l, _)| l.kind == "attend");
    let mut taken = 0;
    for (launch, timed) in attends {
        assert!(timed.takes_on && launch.name.contains("rope") && launch.name.contains("store"));
        taken += 1;
    }
    assert!(taken > 0);
    let products = profile.launches.iter().filter(|l| l.name.contains("q_proj"));
    assert!(products.clone().count() > 0 && products.clone().all(|l| !l.name.contains("rope")));
}
