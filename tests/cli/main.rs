//! The binary as a user meets it: output, exit codes, bad input, signals.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod check;
mod quantize;

use gllm_kernels::embedded::TINY;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn gllm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gllm"));
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG").env_remove("GLLM_ISA");
    command
}

fn run(args: &[&str]) -> Output {
    gllm(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// One line on standard error that names what is wrong, nothing on standard output, exit code 1.
fn refused(args: &[&str], wanted: &str) {
    let output = run(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("gllm: ") && error.contains(wanted), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn without_arguments_it_writes_english() {
    let output = run(&[]);
    assert!(output.status.success());
    let text = text(&output.stdout);
    assert!(text.starts_with("The old man looked out over the sea, and"), "{text}");
    let common = ["the", "and", "of", "to", "he", "was", "a", "in", "it", "that"];
    let words: Vec<&str> = text.split(|c: char| !c.is_alphabetic()).collect();
    let found = words.iter().filter(|w| common.contains(&w.to_lowercase().as_str())).count();
    assert!(found * 5 > words.len(), "{found} common words of {}: {text}", words.len());
}

#[test]
fn json_holds_what_was_promised() {
    let args = ["run", "-p", "The king said", "-n", "12", "--json"];
    let report: serde_json::Value = serde_json::from_slice(&run(&args).stdout).unwrap();
    assert_eq!(report["ids"].as_array().unwrap().len(), 12);
    assert!(!report["prompt_ids"].as_array().unwrap().is_empty());
    assert_eq!(report["stop"], "length");
    for rate in ["prefill_tokens_per_second", "decode_tokens_per_second", "bytes_per_token"] {
        assert!(report[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    let streamed = text(&run(&args[..5]).stdout);
    assert_eq!(report["text"].as_str().unwrap(), streamed.strip_suffix('\n').unwrap_or(&streamed));
}

#[test]
fn bench_measures_what_it_was_asked_for() {
    let args = ["bench", "-p", "32", "-n", "4", "-r", "2", "--depth", "0,32", "--threads", "1"];
    let report = run(&[&args[..], &["--json"]].concat()).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let names = ["pp32", "tg4", "pp32 @ d32", "tg4 @ d32"];
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|r| r["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for run in runs {
        let number = |key: &str| run[key].as_f64().unwrap();
        assert!(0.0 < number("min") && number("min") <= number("tokens_per_second"), "{run}");
        assert!(number("tokens_per_second") <= number("max"), "{run}");
        assert_eq!(run["samples"].as_array().unwrap().len(), 2);
    }
    let reads = |i: usize, key: &str| runs[i]["reads"][key].as_f64().unwrap();
    for key in ["bytes_per_second", "read_bytes_per_second", "share_of_bandwidth"] {
        assert!(reads(1, key) > 0.0 && reads(3, key) > 0.0, "{key}");
    }
    // 8 layers, keys and values, 2 heads of 64, f16; counted halfway through the steps. (A context
    // of 64 is kept without padding.)
    let bytes = |i: usize| runs[i]["reads"]["bytes_per_token"].as_u64().unwrap();
    let weights = report["weight_bytes_per_token"].as_u64().unwrap();
    assert_eq!(bytes(1), weights + 3 * 4096);
    assert_eq!(bytes(3), weights + 35 * 4096);
    let table = text(&run(&args).stdout);
    assert!(names.iter().all(|name| table.contains(name)) && table.contains("GB/s"), "{table}");
    let nothing = run(&["bench", "-p", "0", "-n", "0"]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn perplexity_prefers_english() {
    let folder = folder("perplexity");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let model = path("tiny.gguf");
    fs::write(&model, TINY).unwrap();
    let english = "The old man looked out over the sea, and he was silent for a long time. ";
    let words: Vec<&str> = english.split(' ').collect();
    let shuffled: Vec<&str> = (0..words.len()).map(|i| words[i * 7 % words.len()]).collect();
    let measure = |name: &str, text: &str| {
        let file = path(name);
        fs::write(&file, text).unwrap();
        let args = ["perplexity", &model, &file, "--window", "16", "--json"];
        let report: serde_json::Value = serde_json::from_slice(&run(&args).stdout).unwrap();
        report["perplexity"].as_f64().unwrap()
    };
    let (sense, none) = (measure("a.txt", english), measure("b.txt", &shuffled.join(" ")));
    assert!(1.0 < sense && 2.0 * sense < none, "{sense} {none}");
    refused(&["perplexity", &model, &path("none.txt")], "No such file");
    refused(&["perplexity", &model, &path("a.txt")], "window");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let draw = |seed| run(&["run", "-p", "Once", "-n", "30", "--temp", "1", "--seed", seed]).stdout;
    assert_eq!(draw("5"), draw("5"));
    assert_ne!(draw("5"), draw("6"));
}

#[test]
fn prompts_come_from_files_and_standard_input_too() {
    let folder = folder("prompts");
    let file = folder.join("prompt.txt");
    fs::write(&file, "The king said").unwrap();
    let want = run(&["run", "-p", "The king said", "-n", "8"]).stdout;
    assert_eq!(run(&["run", "-f", file.to_str().unwrap(), "-n", "8"]).stdout, want);
    let mut child =
        gllm(&["run", "-n", "8"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"The king said").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, want);
}

#[test]
fn stop_strings_end_the_text_and_are_not_shown() {
    let all = text(&run(&["run", "-p", "The king said", "-n", "30"]).stdout);
    let word = all.split_whitespace().nth(5).unwrap();
    let cut = text(&run(&["run", "-p", "The king said", "-n", "30", "--stop", word]).stdout);
    assert_eq!(cut.trim_end(), all.split(word).next().unwrap().trim_end());
}

#[test]
fn bad_files_are_refused_in_one_line() {
    let folder = folder("bad");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).unwrap();
        path(name)
    };
    let all_refuse = |path: String, wanted| {
        for command in ["run", "plan", "info"] {
            let prompt: &[&str] = if command == "run" { &["-p", "x"] } else { &[] };
            refused(&[&[command, &path], prompt].concat(), wanted);
        }
    };
    all_refuse(path("none.gguf"), "No such file");
    all_refuse(folder.to_str().unwrap().to_string(), "regular file");
    all_refuse(write("cut.gguf", &TINY[..TINY.len() / 2]), "cut.gguf");
    all_refuse(write("short.gguf", &TINY[..100]), "short.gguf");
    all_refuse(write("empty.gguf", b""), "empty.gguf");
    all_refuse(write("magic.gguf", &[b"GGML", &TINY[4..]].concat()), "magic");
    let absurd = [&TINY[..8], &u64::MAX.to_le_bytes(), &TINY[16..]].concat();
    all_refuse(write("absurd.gguf", &absurd), "tensor");
    let fifo = path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    all_refuse(fifo, "regular file");
}

#[test]
fn an_unknown_architecture_is_named() {
    let folder = folder("unknown");
    let at = TINY.windows(5).position(|w| w == b"llama").unwrap();
    let mut bytes = TINY.to_vec();
    bytes[at..at + 5].copy_from_slice(b"lhama");
    let file = folder.join("lhama.gguf");
    fs::write(&file, bytes).unwrap();
    refused(&["run", file.to_str().unwrap(), "-p", "x"], "lhama");
}

#[test]
fn a_context_beyond_memory_says_what_it_needs() {
    let args = ["run", "-p", "x", "--ctx", "4000000000"];
    refused(&args, "are available; try --ctx");
    refused(&["run", "-p", "x", "--ctx", "99999999999"], "cannot be counted");
}

#[test]
fn a_profile_adds_up_and_draws() {
    let page = folder("profile").join("step.html");
    let page = page.to_str().unwrap();
    let args = ["profile", "--backend", "cpu", "--threads", "1", "--context", "20", "-r", "1"];
    let output = run(&[&args[..], &["--json", "--html", page]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = |v: &serde_json::Value| v["seconds"].as_f64().unwrap();
    let sum = json["sum"].as_f64().unwrap();
    let (lines, launches) =
        (json["lines"].as_array().unwrap(), json["launches"].as_array().unwrap());
    let ops = || lines.iter().flat_map(|l| l["ops"].as_array().unwrap());
    for part in [lines.iter().map(seconds).sum::<f64>(), launches.iter().map(seconds).sum()] {
        assert!((part - sum).abs() < 1e-9 * sum, "{part} {sum}");
    }
    assert!((ops().map(seconds).sum::<f64>() - sum).abs() < 1e-9 * sum);
    let count: u64 = ops().map(|o| o["count"].as_u64().unwrap()).sum();
    assert_eq!(count as usize, launches.len());
    let bytes: u64 = launches.iter().map(|l| l["bytes"]["weights"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"]["weights"], bytes);
    assert_eq!((&json["position"], &json["backend"]), (&20.into(), &"cpu".into()));
    assert_eq!(json["adds_up"].as_bool().unwrap(), output.stderr.is_empty());
    let html = fs::read_to_string(page).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>"));
    let shown = text(&run(&args).stdout);
    assert!(shown.contains("sum of the launches") && shown.contains("llama.star:"), "{shown}");
}

#[test]
fn a_profile_that_cannot_be_made_is_refused_in_one_line() {
    refused(&["profile", "--html", "/no/such/folder/step.html"], "No such file");
    refused(&["profile", "/no/such/model.gguf"], "No such file");
    refused(&["profile", "--context", "99999999999"], "cannot be counted");
    for wrong in [&["--context", "x"][..], &["-r", "0"], &["--kv", "f8"], &["--backend", "tpu"]] {
        let output = run(&[&["profile"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(text(&output.stderr).contains("error: invalid value"), "{wrong:?}");
    }
}

#[test]
fn a_prompt_beyond_the_context_says_which_would_do() {
    refused(&["run", "-p", "one two three four five six", "--ctx", "4"], "try --ctx");
}

#[test]
fn a_full_context_keeps_what_was_generated() {
    let output = run(&["run", "-p", "The king said", "--ctx", "24", "-n", "100"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("context of 24 tokens is full"));
    assert!(output.stdout.len() > 20);
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [
        &["run", "--nonsense"][..],
        &["run", "-p", "x", "--temp", "-1"],
        &["run", "-p", "x", "--temp", "NaN"],
        &["run", "-p", "x", "--threads", "0"],
        &["run", "-p", "x", "--stop", ""],
        &["run", "-p", "x", "--isa", "sse"],
        &["run", "-p", "x", "--kv", "q4_0"],
        &["run", "-p", "x", "-f", "y"],
        &["nonsense"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_environment_names_an_instruction_set() {
    let with = |isa: &str, args: &[&str]| gllm(args).env("GLLM_ISA", isa).output().unwrap();
    let line = |output: &Output| {
        let text = text(&output.stdout);
        let line = text.lines().find(|l| l.starts_with("instruction set")).unwrap();
        let (picked, all) =
            line.strip_prefix("instruction set ").unwrap().split_once(", of ").unwrap();
        (picked.to_string(), all.split(", ").map(str::to_string).collect::<Vec<_>>())
    };
    // The best is the last of them, unless that is a slow one or told otherwise; any gives the same text.
    let (picked, all) = line(&run(&["info"]));
    let slow = (picked.as_str(), all.last().map(String::as_str)) == ("avx512", Some("avx512bf16"));
    assert!(slow || all.last() == Some(&picked), "{picked} of {all:?}");
    assert_eq!(all[0], "scalar");
    assert_eq!(line(&with("", &["info"])).0, picked);
    let args = ["run", "-p", "The king said", "-n", "12"];
    let want = run(&args).stdout;
    for isa in &all {
        assert_eq!(line(&with(isa, &["info"])), (isa.clone(), all.clone()));
        assert_eq!(with(isa, &args).stdout, want, "{isa}");
    }
    // The option wins; a name that is no good is refused with those that are.
    assert_eq!(with("sse", &[&args[..], &["--isa", "scalar"]].concat()).stdout, want);
    for args in [&["info"][..], &args] {
        let output = with("sse\n", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let error = text(&output.stderr);
        assert_eq!(error.lines().count(), 1, "{error}");
        let all = all.join(", ");
        assert!(error.starts_with("gllm: GLLM_ISA: ") && error.contains(&all), "{error}");
    }
}

#[test]
fn chat_needs_a_template() {
    refused(&["run", "--chat", "-p", "x"], "no chat template");
}

#[test]
fn a_full_disk_is_an_error_and_a_closed_pipe_is_not() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = gllm(&["run", "-p", "Once", "-n", "4"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard output"), "{}", text(&output.stderr));
    let mut child = gllm(&["run", "-p", "Once", "-n", "400"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(141));
}

#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_stops_loading() {
    let mut child = gllm(&["run"])
        .env("RUST_LOG", "gllm_kernels=info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the signal would be caught; then it waits for the prompt.
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (libc::SIGINT - 1) != 0
    };
    while !catches() {
        std::thread::yield_now();
    }
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a signal to our own child.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    child.stdin.take().unwrap().write_all(b"Once").unwrap();
    let output = child.wait_with_output().unwrap();
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert!(output.stdout.is_empty());
    // It came to loading, and no further.
    assert!(log.contains("load") && !log.contains("prefill"), "{log}");
}

#[test]
fn ctrl_c_stops_and_keeps_what_was_generated() {
    let mut child = gllm(&["run", "-p", "Once", "-n", "1000000", "--ctx", "1000100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0u8; 64];
    out.read_exact(&mut first).unwrap();
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a signal to our own child.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.ends_with('\n'));
}

#[test]
fn caches_of_8_bits_take_about_half_and_write_text() {
    let kv = |kept: &[&str]| {
        let plan = text(&run(&[&["plan", "--ctx", "64"], kept].concat()).stdout);
        let line = plan.lines().find(|l| l.contains("KV cache")).unwrap().to_string();
        line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(kv(&[]), kv(&["--kv", "f16"]));
    assert_eq!(kv(&["--kv", "q8_0"]) * 32, kv(&[]) * 17);
    let args = ["run", "-p", "The king said", "-n", "12", "--json", "--kv"];
    let report = |kept| {
        let output = run(&[&args[..], &[kept]].concat());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let (half, eight) = (report("f16"), report("q8_0"));
    assert_eq!(eight["ids"].as_array().unwrap().len(), 12);
    let bytes = |report: &serde_json::Value| report["bytes_per_token"].as_u64().unwrap();
    assert!(bytes(&eight) < bytes(&half));
}

/// What an author holds against the original: ids and logits.
#[test]
fn ids_and_logits_are_shown() {
    let args = ["run", "-p", "The king said", "-n", "8"];
    let report = |more: &[&str]| {
        let output = run(&[&args[..], &["--json"], more].concat());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let plain = report(&[]);
    assert!(plain.get("logits").is_none());
    let three = report(&["--logits", "3"]);
    assert_eq!(three["ids"], plain["ids"]);
    let logits = three["logits"].as_array().unwrap();
    // The greatest is the token that comes, and they fall.
    assert_eq!(logits[0][0], plain["ids"][0]);
    let value = |i: usize| logits[i][1].as_f64().unwrap();
    assert!(logits.len() == 3 && value(0) > value(1) && value(1) > value(2), "{logits:?}");
    // Of a longer answer it is those after the prompt, not the last.
    let output = run(&["run", "-p", "The king said", "-n", "1", "--json", "--logits", "3"]);
    let short: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(short["logits"], three["logits"]);
    let ids: Vec<String> =
        plain["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let shown = run(&[&args[..], &["--ids"]].concat());
    assert_eq!(text(&shown.stdout), format!("{}\n", ids.join(" ")));
    for wrong in [&["--ids", "--json"][..], &["--logits", "3"], &["--json", "--logits", "0"]] {
        assert_eq!(run(&[&args[..], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn plan_and_graph_and_completions_print() {
    let plan = text(&run(&["plan", "--ctx", "64"]).stdout);
    assert!(plan.contains("KV cache") && plan.contains("launches") && plan.contains("scratch"));
    let graph = text(&run(&["graph"]).stdout);
    let parsed: gllm_kernels::graph::Graph = graph.parse().unwrap();
    assert_eq!(parsed.to_string(), graph);
    assert!(text(&run(&["graph", "--dot"]).stdout).starts_with("digraph"));
    assert!(text(&run(&["completions", "bash"]).stdout).contains("gllm"));
    assert!(text(&run(&["--help"]).stdout).contains("Examples:"));
}

#[test]
fn a_graph_file_takes_the_place_of_the_built_in_one() {
    let folder = folder("graphs");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    // The built-in file without its last norm: another model, and other text.
    let source = include_str!("../../graphs/llama.star");
    let changed =
        source.replace("g.rms_norm(g.select(x), \"output_norm\", eps = c.eps)", "g.select(x)");
    assert_ne!(source, changed);
    fs::write(path("same.star"), source).unwrap();
    fs::write(path("other.star"), changed).unwrap();
    let args = ["run", "-p", "The king said", "-n", "16"];
    let plain = run(&args).stdout;
    let with = |flag: &str, value: &str| run(&[&args[..], &[flag, value]].concat()).stdout;
    assert_eq!(with("--graph", &path("same.star")), plain);
    assert_ne!(with("--graph", &path("other.star")), plain);
    let shown = text(&run(&["graph", "--graph", &path("same.star")]).stdout);
    assert!(shown.contains("@ \"same.star:"), "{shown}");
    // In a folder a file serves by what it says, whatever its name.
    fs::remove_file(path("same.star")).unwrap();
    assert_ne!(with("--graphs", folder.to_str().unwrap()), plain);
    refused(&["graph", "--graph", &path("none.star")], "No such file");
    refused(&["graph", "--graph", "/dev/zero"], "not a regular file");
}

#[test]
fn hostile_graph_files_end_soon_within_little_memory() {
    let folder = folder("hostile-graphs");
    for (name, body, wanted) in [
        (
            "loop",
            "    for i in range(1000000000000):\n        pass",
            "loop.star:3: the script takes more",
        ),
        (
            "nodes",
            "    x = g.embed(\"token_embd\")\n    for i in range(1000000000):\n        x = x + x",
            "nodes.star:4: ",
        ),
        ("text", "    return \"x\" * 100000000", "text.star:2: the script's values"),
        (
            "list",
            "    x = []\n    for i in range(1000000000):\n        x = [x, x]",
            "list.star:4: ",
        ),
        ("self", "    return build(g, c)", "self.star:2: build calls itself"),
        (
            "double",
            "    x = \"x\"\n    for i in range(60):\n        x = x + x",
            "double.star:4: the script's values take more",
        ),
        (
            "mutual",
            "    return one(g, c)\ndef one(g, c):\n    return two(g, c)\ndef two(g, c):\n    return one(g, c)",
            "mutual.star:6: one calls itself",
        ),
        (
            "rounds",
            "    for a in range(100000):\n        for b in range(100000):\n            pass",
            "rounds.star:3: the script takes more",
        ),
        (
            "deep",
            &format!("    return {}1", "-".repeat(100_000)),
            "deep.star:2: more than 48 levels",
        ),
        ("long", "#".repeat(100_000_000).as_str(), "long.star: longer than 1048576 bytes"),
        ("result", "    return 5", "result.star:2: build returned 5, not a node"),
        (
            "base",
            "    return g.rope(g.embed(\"token_embd\"), base = \"big\")",
            "base.star:2: rope: base: \"big\" is no number",
        ),
        ("type", "    return g.linear(\"x\", 5)", "type.star:2: linear: x is \"x\", not a node"),
        ("op", "    return g.exec(\"rm\")", "op.star:2: exec: there is no such op"),
        (
            "tensor",
            "    return g.embed(\"nothing\")",
            "tensor.star:2: embed: there is no tensor nothing.weight",
        ),
        (
            "shape",
            "    return g.linear(g.embed(\"token_embd\"), \"blk.0.ffn_down\")",
            "shape.star:2: linear: blk.0.ffn_down.weight",
        ),
    ] {
        let file = folder.join(format!("{name}.star"));
        fs::write(&file, format!("def build(g, c):\n{body}\n")).unwrap();
        let limited = "ulimit -v 1048576; exec \"$0\" graph --graph \"$1\"";
        let start = std::time::Instant::now();
        let output = Command::new("sh")
            .args(["-c", limited, env!("CARGO_BIN_EXE_gllm"), file.to_str().unwrap()])
            .output()
            .unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(error.contains(wanted) && error.lines().count() == 1, "{name}: {error}");
        assert!(
            start.elapsed() < std::time::Duration::from_secs(2),
            "{name}: {:?}",
            start.elapsed()
        );
    }
}
