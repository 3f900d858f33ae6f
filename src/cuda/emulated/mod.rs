//! The kernels written down a second time, in plain f32 over a vector of bytes: what is wrong in the
//! lowering shows here, on a machine without a device. What is wrong in the kernels does not.

#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

#[path = "../../../tests/cuda/cases.rs"]
mod cases;
#[path = "../../../tests/cuda/common.rs"]
mod common;
#[path = "../../../tests/graphs/tiny.rs"]
mod tiny;

mod machine;
mod profile;
mod rows;

use super::CudaTarget;
use super::abi::{MAKES_HEADS, SEVERAL};
use super::lower::{self, launches};
use super::program::{Bases, Launch, Parameters, Program, TensorKind, Work};
use crate::graph::{DType, Graph, Lead, Weights, arch};
use crate::model::Format;
use crate::plan::{Limits, Options, Plan, Role, origin};
use common::{SMALL, Shape, llama, llama_weights, nmse, random, reference};
use machine::Machine;
use std::collections::BTreeMap;

/// Memory for `program`, with the weights in it.
fn load(program: &Program, w: &dyn Weights, few: usize) -> Machine {
    let several = few == SEVERAL;
    let (plan, limits) = (&program.plan, program.plan.limits());
    let bytes = plan.bytes();
    let offsets = program.work.offsets().unwrap();
    // The first bytes belong to nobody.
    let mut end = 4096u64;
    let mut region = |bytes: u64| {
        let at = end;
        end += (bytes + 4096).next_multiple_of(256);
        at
    };
    let (weights, kv, scratch) = (region(bytes.weights), region(bytes.kv), region(bytes.scratch));
    let (logits, tables) = (region(bytes.logits), region(bytes.tables));
    let part = |i: usize, work: u64| work + offsets[i] as u64;
    let work = region(offsets[Work::PARTS] as u64);
    let list = |i: u64| part(9, work) + (limits.rows as u64 * 4).next_multiple_of(256) * i;
    let bases = Bases {
        weights,
        kv,
        scratch,
        logits,
        tables,
        raw: part(0, work),
        x: part(1, work),
        high: part(2, work),
        low: part(2, work) + program.work.split as u64 / 2,
        tokens: list(0),
        positions: list(1),
        slots: list(2),
        outs: list(3),
        fresh: part(if several { 12 } else { 10 }, work),
        next: if several { program.work.several } else { program.work.fresh } as i64 / 2,
        links: part(if several { 13 } else { 11 }, work),
        sorted: part(14, work),
        few,
        ..Bases::default()
    };
    // What nobody wrote is not a number.
    let mut machine =
        Machine { memory: vec![0xff; end as usize], matrices: BTreeMap::new(), bases };
    for tensor in &program.tensors {
        let (format, _) = w.find(&tensor.name).unwrap();
        let src = w.bytes(&tensor.name).unwrap();
        let at = weights + tensor.offset;
        match tensor.kind {
            TensorKind::Vector(len) => {
                let mut values = vec![0.0; len];
                format.decode(&src, &mut values).unwrap();
                values.iter().enumerate().for_each(|(i, &v)| machine.set(at + 4 * i as u64, v));
            }
            TensorKind::Matrix(l) => {
                let mut values = vec![0.0; l.rows * l.cols];
                format.decode(&src, &mut values).unwrap();
                machine.matrices.insert(at, (l.rows, l.cols, values));
            }
            TensorKind::Experts(l, n) => {
                for (i, src) in src.chunks_exact(src.len() / n).enumerate() {
                    let mut values = vec![0.0; l.rows * l.cols];
                    format.decode(src, &mut values).unwrap();
                    let at = at + (i * l.bytes()) as u64;
                    machine.matrices.insert(at, (l.rows, l.cols, values));
                }
            }
        }
    }
    for table in &program.ropes {
        let mut at = tables + table.offset as u64;
        let mut factors = vec![1.0; table.rope.dim / 2];
        if let Some((_, name)) = &table.factors {
            let (format, _) = w.find(name).unwrap();
            format.decode(&w.bytes(name).unwrap(), &mut factors).unwrap();
        }
        for position in 0..limits.context as u32 {
            for (pair, &factor) in factors.iter().enumerate() {
                let (cos, sin) = table.rope.turn(table.rope.angle(position, pair, factor));
                machine.set(at, cos);
                machine.set(at + 4, sin);
                at += 8;
            }
        }
    }
    machine
}

/// Rows of a step, and rows at most of the steps that launches are made for: chains over several, attention that makes heads,
/// or neither.
type Rows = (usize, usize);

/// The first output's rows for all tokens in chunks, in slot 1 of 2.
fn run(
    graph: &Graph,
    w: &dyn Weights,
    (chunk, few): Rows,
    context: usize,
    tokens: &[u32],
) -> Vec<f32> {
    let rows = chunk.min(tokens.len());
    let limits = Limits { rows, outs: rows, slots: 2, context };
    let target = CudaTarget::of(90).unwrap();
    let plan = Plan::with_options(graph, &target, limits, Options::default()).unwrap();
    let program = lower::lower(&target.0, &plan).unwrap();
    let mut machine = load(&program, w, few);
    let mut all = Vec::new();
    let mut position = 0;
    for chunk in tokens.chunks(chunk) {
        let n = chunk.len();
        for (i, &token) in chunk.iter().enumerate() {
            let at = 4 * i as u64;
            let words = [token, position + i as u32, 1, i as u32];
            let b = machine.bases;
            for (list, word) in [b.tokens, b.positions, b.slots, b.outs].into_iter().zip(words) {
                machine.set(list + at, f32::from_bits(word));
            }
        }
        for mut launch in launches(&target.0, &program, &machine.bases).unwrap() {
            launch.set_rows(n as u32);
            let (grid, shared) = (launch.shape.grid, launch.shape.shared as usize);
            machine.run(&launch.parameters, grid, shared, n);
        }
        let graph = plan.graph();
        let id = origin(graph, graph.outputs()[0]);
        let (ty, buffer) = (graph.ty(id), plan.place(id).unwrap());
        assert_eq!((ty.dtype, ty.lead == Lead::Fixed), (DType::F32, false));
        let base =
            if buffer.role == Role::Logits { machine.bases.logits } else { machine.bases.scratch };
        let at = |i: usize| machine.get(base + buffer.offset + 4 * i as u64);
        all.extend((0..n * ty.width()).map(at));
        position += n as u32;
    }
    all
}

#[test]
fn every_op_lowers_to_what_it_means() {
    let w = cases::weights(&random);
    let mut failed = Vec::new();
    for case in cases::cases() {
        let graph = case.graph(&w);
        for rows in [(1, 0), (5, SEVERAL), (10, 0), (10, MAKES_HEADS)] {
            let tokens: Vec<u32> = (0..10).map(|i| (i * 37 % cases::TOKENS) as u32).collect();
            let want = reference(&graph, &w, 16, &tokens);
            let got = std::panic::catch_unwind(|| run(&graph, &w, rows, 16, &tokens));
            let error = got.map_or(f64::INFINITY, |got| nmse(&got, &want));
            if error > if case.caches { 2e-6 } else { 1e-9 } {
                failed.push(format!("{}, {rows:?}: {error:.1e}", case.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Such a model's launches of a step of so many rows, after it gave the reference's values in such steps.
fn small_steps(s: &Shape, format: Format, (rows, few): Rows) -> Vec<Launch> {
    let w = llama_weights(s, format);
    let graph = llama(s, &w);
    let tokens: Vec<u32> = (0..10).map(|i| i * 71 % s.vocabulary as u32).collect();
    let got = run(&graph, &w, (rows, few), 16, &tokens);
    let error = nmse(&got, &reference(&graph, &w, 16, &tokens));
    assert!(error < 2e-6, "{rows} rows: {error:.1e}");
    let target = CudaTarget::of(90).unwrap();
    let limits = Limits { rows, outs: rows, slots: 2, context: 16 };
    let plan = Plan::new(&graph, &target, limits).unwrap();
    let program = lower::lower(&target.0, &plan).unwrap();
    let bases = load(&program, &w, few).bases;
    launches(&target.0, &program, &bases).unwrap()
}

#[test]
fn rows_that_launches_leave_split_are_what_products_take() {
    let narrow = Shape { heads: 16, head: 16, ..SMALL };
    for few in [0, MAKES_HEADS] {
        // Attention's, the gate's and, through norms, both residual sums of each layer but the last one's second; with their
        // sums where something is added to weights, which a head must have whole units for.
        for (shape, format, each, summed) in [
            (&SMALL, Format::BF16, 4, false),
            (&SMALL, Format::Q4_0, 4, false),
            (&SMALL, Format::Q4_K, 4, true),
            (&narrow, Format::Q8_0, 4, false),
            (&narrow, Format::Q4_1, 3, true),
        ] {
            let made = small_steps(shape, format, (10, few));
            let left = made.iter().filter_map(|l| match &l.parameters {
                Parameters::Gemm(p) => Some(p.left),
                Parameters::Attend(p) => Some(p.left),
                Parameters::AttendFew(p) => Some(p.many.left),
                _ => None,
            });
            let left: Vec<_> = left.filter(|left| left.at != 0).collect();
            assert_eq!(left.len(), each * SMALL.layers - 1, "{format:?}");
            assert!(left.iter().all(|left| (left.sums != 0) == summed), "{format:?}");
            let products = made.iter().filter_map(|l| match &l.parameters {
                Parameters::Gemm(p) => Some(p),
                _ => None,
            });
            let products: Vec<_> = products.collect();
            let normed = products.windows(2).filter(|p| p[0].norm != 0);
            assert!(normed.clone().all(|p| p[0].left_squares == p[1].squares));
            assert_eq!(normed.count(), 2 * SMALL.layers - 1);
        }
    }
}

#[test]
fn products_of_a_few_rows_are_links_of_chains() {
    for rows in [2, 5, 8] {
        let made = small_steps(&SMALL, Format::BF16, (rows, SEVERAL));
        let links = made.iter().map(|l| match &l.parameters {
            Parameters::Chain(p) => p.links.len(),
            _ => 0,
        });
        // Four products a layer.
        assert_eq!(links.sum::<usize>(), 4 * SMALL.layers);
    }
}

#[test]
fn attention_of_few_rows_makes_their_heads() {
    for (rows, lists) in [((5, SEVERAL), 0), ((10, MAKES_HEADS), 0), ((10, 0), 1)] {
        let made = small_steps(&SMALL, Format::BF16, rows);
        let all = |of: fn(&Parameters) -> bool| made.iter().filter(|l| of(&l.parameters)).count();
        let attention = all(|p| matches!(p, Parameters::AttendFew(_)));
        assert_eq!(attention, if rows.1 > 0 { SMALL.layers } else { 0 });
        // Of a layer the making of heads, if attention does not make them.
        let rest = all(|p| matches!(p, Parameters::Rows(_)));
        assert!(rest >= lists * SMALL.layers && rest < (lists + 1) * SMALL.layers + 3, "{rest}");
    }
    // Not where heads have norms, which a list adds up in another order.
    let made = small_steps(&Shape { head_norm: true, ..SMALL }, Format::BF16, (5, SEVERAL));
    assert!(made.iter().all(|l| !matches!(l.parameters, Parameters::AttendFew(_))));
}

#[test]
fn every_architecture_lowers_to_what_it_means() {
    let mut failed = Vec::new();
    for name in tiny::fixtures() {
        let fixture = tiny::fixture(&name);
        let model = tiny::model(&format!("{name}-emulated"), &fixture, "F32", 1);
        let context = if name.ends_with("-long") { 96 } else { 0 };
        let library = arch::Library::embedded();
        let graph = arch::build_for(model.meta(), &model, &library, context).unwrap();
        let want = tiny::reference_logits(&graph, &model, &fixture.prompt);
        for rows in [(1, 0), (7, SEVERAL), (16, 0), (16, MAKES_HEADS)] {
            let got = std::panic::catch_unwind(|| run(&graph, &model, rows, 96, &fixture.prompt));
            let error = got.map_or(f64::INFINITY, |got| nmse(&got, &want));
            println!("{name}, {rows:?}: {error:.1e}");
            if error > 2e-6 {
                failed.push(format!("{name}, {rows:?}: {error:.1e}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
