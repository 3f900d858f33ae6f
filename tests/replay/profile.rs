//! Where a step's time goes: nothing is lost on the way to the table, and the session is none the worse.

use crate::common::{CONTEXT, PROMPT, generator, session};
use gllm_kernels::cpu::{CpuBackend, CpuSession};
use gllm_kernels::embedded;
use gllm_kernels::graph::{Builder, MemoryWeights, Op, arch};
use gllm_kernels::plan::{Limits, Part, Plan, Rate, Role, Session, StepInput, Timed, Times};
use gllm_kernels::replay::Generator;
use gllm_kernels::replay::profile::{Profile, ProfilePage, join, profile};

fn plan(threads: usize) -> Plan {
    let model = embedded::tiny().unwrap();
    let backend = CpuBackend::detect().with_threads(threads).unwrap();
    let limits = Limits { rows: 1, outs: 1, slots: 1, context: CONTEXT };
    Plan::new(&arch::build(&model).unwrap(), &backend, limits).unwrap()
}

/// Each group takes a microsecond more than the one before; the step takes `replay` of the sum.
fn made_up(plan: &Plan, replay: f64) -> Times {
    let launches: Vec<Timed> = (0..plan.groups().len())
        .map(|group| Timed {
            group,
            part: Part::Whole,
            takes_on: false,
            kernel: "k".to_string(),
            weights: None,
            seconds: (group + 1) as f64 * 1e-6,
            waits: None,
        })
        .collect();
    let sum: f64 = launches.iter().map(|t| t.seconds).sum();
    let ceiling = Rate { bytes_per_second: 1e11, how: "made up" };
    let replay = sum * replay;
    let (token, empty, beside) = (replay, Some(1e-6), None);
    Times { launches, clock: 0.0, replay, token, empty, ceiling, beside, steps: 1 }
}

#[test]
fn a_measured_step_has_every_group_and_every_byte() {
    let plan = plan(2);
    let mut generator = Generator::new(session(2, 32, 1));
    let mut measure = || profile(&mut generator, &plan, 40, 1, || true).unwrap().unwrap();
    // How near the sum is to the step depends on what else the machine does; that it is the step
    // and not a part of it or several does not, and shows as soon as nothing else is done.
    let mut profile = measure();
    for _ in 0..20 {
        if profile.apart().abs() < 0.5 {
            break;
        }
        profile = measure();
    }
    assert!(profile.apart().abs() < 0.5, "{profile}");
    let groups: Vec<usize> = profile.times.launches.iter().map(|t| t.group).collect();
    assert!(groups.into_iter().eq(0..plan.groups().len()));
    let gap: f64 = profile.times.launches.iter().filter_map(|t| t.waits).sum();
    assert!(gap >= 0.0 && gap < profile.total(), "{profile}");
    assert!(profile.timed().all(|(l, t)| l.line.line > 0 && t.seconds > 0.0), "{profile}");
    assert!(profile.times.empty.unwrap() > 0.0);
    // The head is the embedding, which is looked into as well.
    let graph = plan.graph();
    let row: u64 = plan
        .buffers()
        .iter()
        .filter(|b| b.role == Role::Weight)
        .filter(|b| {
            let users = || graph.nodes().iter().filter(|n| n.args.contains(&b.value));
            users().count() > 1 && users().any(|n| matches!(n.op, Op::Embed(_)))
        })
        .map(|b| b.bytes / graph.ty(b.value).dims[0] as u64)
        .sum();
    assert_eq!(profile.moved().weights, plan.weight_bytes_per_token() + row);
    assert!(profile.moved().cache > plan.cache_bytes_per_token(40));
    assert_eq!((generator.position(), profile.position), (40, 40));
}

#[test]
fn rows_and_lines_sum_to_the_step() {
    let plan = plan(1);
    let profile = join(&plan, 9, made_up(&plan, 1.0)).unwrap();
    let (n, rows) = (plan.groups().len(), profile.rows());
    let sum = (n * (n + 1) / 2) as f64 * 1e-6;
    let close = |a: f64| (a - sum).abs() < 1e-12;
    assert!(close(profile.total()) && close(rows.iter().map(|r| r.seconds).sum()));
    let lines = profile.lines();
    assert!(close(lines.iter().flat_map(|(_, rows)| rows).map(|r| r.seconds).sum()));
    let mut members: Vec<usize> = rows.iter().flat_map(|r| r.members.clone()).collect();
    members.sort_unstable();
    assert!(members.into_iter().eq(0..n));
    // Layers are folded: far fewer rows than launches, and one of them for every layer.
    let layers = rows.iter().map(|r| r.members.len()).max().unwrap();
    assert!(layers > 2 && rows.len() < n / 2, "{profile}");
    let attend = rows.iter().find(|r| r.launch.kind == "attend").unwrap();
    let times: Vec<f64> =
        attend.members.iter().map(|&i| profile.times.launches[i].seconds).collect();
    assert!(times.iter().any(|&t| t < attend.median) && times.iter().any(|&t| t > attend.median));
    assert!(attend.launch.moved.cache > 0 && attend.launch.line.file.ends_with(".star"));
}

#[test]
fn what_does_not_add_up_is_said() {
    let plan = plan(1);
    let of = |replay| join(&plan, 9, made_up(&plan, replay)).unwrap();
    for (replay, said) in [(1.0, None), (1.02, None), (1.05, Some("less")), (0.95, Some("more"))] {
        let warning = of(replay).warning();
        assert_eq!(warning.is_some(), said.is_some(), "{replay}: {warning:?}");
        assert!(said.is_none_or(|s| warning.unwrap().contains(s)), "{replay}");
        assert_eq!(of(replay).adds_up(), said.is_none());
    }
    // Nor is a launch of another plan taken for one of this.
    let mut times = made_up(&plan, 1.0);
    times.launches[0].group = plan.groups().len();
    let error = join(&plan, 9, times).unwrap_err().to_string();
    assert!(error.contains("launch 0"), "{error}");
}

#[test]
fn a_launch_below_zero_is_shown_as_it_is() {
    let plan = plan(1);
    let mut times = made_up(&plan, 1.0);
    times.launches[1].seconds = -2.5e-6;
    let profile = join(&plan, 9, times).unwrap();
    assert!(
        profile.rows().iter().any(|r| r.seconds < 0.0 || r.median < 0.0 || r.members.len() > 1)
    );
    let page = page(&plan, &profile, "below");
    assert!(page.contains("-2.50 µs") && !page.contains("width=\"-"));
}

#[test]
fn the_session_goes_on_as_if_nothing_had_been() {
    let mut fresh = generator(2, 8);
    let go_on = |g: &mut Generator<CpuSession>| {
        let tokens: Vec<u32> = (0..20).map(|_| g.next_token().unwrap()).collect();
        let logits = g.session().peek(0).unwrap();
        (tokens, logits.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
    };
    let want = go_on(&mut fresh);
    let mut generator = generator(2, 8);
    let input = StepInput { tokens: &[5], positions: &[11], slots: &[0], outs: &[0] };
    generator.session().profile(&input, 1).unwrap();
    // That wrote position 11, and no other.
    generator.rewind(PROMPT.len() - 1).unwrap();
    generator.prefill(&PROMPT[PROMPT.len() - 1..], || true).unwrap();
    assert!(go_on(&mut generator) == want, "other tokens or other logits");
}

#[test]
fn what_cannot_be_profiled_is_refused() {
    let mut session = session(1, 4, 1);
    let two = StepInput { tokens: &[1, 2], positions: &[0, 1], slots: &[0, 0], outs: &[1] };
    let error = session.profile(&two, 1).unwrap_err().to_string();
    assert!(error.contains("one row"), "{error}");
    let far = [CONTEXT as u32];
    let far = StepInput { tokens: &[1], positions: &far, slots: &[0], outs: &[0] };
    assert!(session.profile(&far, 1).is_err());
    let mut generator = Generator::new(session);
    assert!(profile(&mut generator, &plan(1), 8, 1, || false).unwrap().is_none());
    assert!(profile(&mut generator, &plan(1), CONTEXT + 1, 1, || true).is_err());
}

fn page(plan: &Plan, profile: &Profile, title: &str) -> String {
    ProfilePage { profile, plan, title, about: title }.to_string()
}

/// A page is whole if what is opened is closed, and needs nothing else if it names nothing else.
fn check(html: &str) {
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>"));
    let count = |what: &str| html.matches(what).count();
    for tag in ["svg", "g", "section", "table", "title", "text", "p", "div", "body", "html"] {
        let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
        assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    for link in ["http:", "https:", "src=", "url(", "@import", "<link", "<img", "<script", "fetch("]
    {
        assert!(!html.contains(link), "{link}");
    }
    assert!(!html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let plan = plan(1);
    let profile = join(&plan, 9, made_up(&plan, 1.0)).unwrap();
    let html = page(&plan, &profile, "a step");
    check(&html);
    // A box for each launch, once in the step, and a layer's again.
    let boxes = html.matches("class=\"box\"").count();
    assert!(boxes > plan.groups().len() && boxes < 2 * plan.groups().len(), "{boxes}");
    assert!(!html.contains("class=\"warn\""));
    let apart = page(&plan, &join(&plan, 9, made_up(&plan, 1.2)).unwrap(), "apart");
    assert!(apart.contains("class=\"warn\""));
}

#[test]
fn names_of_a_file_are_only_text() {
    let hostile = "</title><script>alert(1)</script><b onclick='x' a=\"y\">&\u{202e}";
    let mut weights = MemoryWeights::new();
    let values = vec![0.5; 16 * 16];
    weights.insert("embed.weight", &[16, 16], &values).unwrap();
    weights.insert(&format!("blk.0.{hostile}.weight"), &[16, 16], &values).unwrap();
    let mut b = Builder::new(&weights);
    let x = b.embed("embed").unwrap();
    let h = b.linear(x, &format!("blk.0.{hostile}")).unwrap();
    let x = b.add(x, h).unwrap();
    let x = b.select(x).unwrap();
    let logits = b.linear(x, "embed").unwrap();
    let token = b.sample(logits).unwrap();
    b.output(token);
    let limits = Limits { rows: 1, outs: 1, slots: 1, context: 16 };
    let plan = Plan::new(&b.finish(), &CpuBackend::detect(), limits).unwrap();
    let profile = join(&plan, 3, made_up(&plan, 1.0)).unwrap();
    let html = page(&plan, &profile, hostile);
    assert!(!html.contains("<script") && !html.contains("<b onclick"));
    assert!(html.contains("&lt;script&gt;") && !html.contains('\u{202e}'));
    check(&html);
    assert!(!profile.to_string().contains('\u{202e}'));
}
